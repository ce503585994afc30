"""One `Trainer.fit`: the LightningModule, the objective, optimisers, callbacks."""
