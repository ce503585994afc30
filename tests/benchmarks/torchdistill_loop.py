"""The jobs of `loop.py` with torchdistill's distillation box; same nets, data, transforms, loss."""

import argparse

import torch
from loop import accuracy, datasets_of, mixed, nets_of, tell
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from torchdistill.core.distillation import get_distillation_box


def loader_of(name: str, sampler: type, batch: int, workers: int, drop: bool) -> dict[str, object]:
    return {
        "dataset_id": name,
        "sampler": {"class_or_func": sampler},
        "kwargs": {
            "batch_size": batch,
            "num_workers": workers,
            "drop_last": drop,
            "persistent_workers": workers > 0,
        },
    }


def distil(options: argparse.Namespace, temperature: float, alpha: float) -> float:
    """One job; gives the accuracy on test."""
    teacher, student = nets_of(options.teacher, options.layout)
    train, val, test = datasets_of(options.root, options.images)
    steps = options.epochs * (len(train) // options.batch)
    logits = {"student_module_path": ".", "student_module_io": "output"}
    logits |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    # torchdistill's alpha is the weight of the labels.
    loss = {"key": "KDLoss", "kwargs": {**logits, "temperature": temperature, "alpha": 1 - alpha}}
    config = {
        "num_epochs": options.epochs,
        "train_data_loader": loader_of(
            "train", RandomSampler, options.batch, options.workers, True
        ),
        "val_data_loader": loader_of("val", SequentialSampler, 500, 0, False),
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": 0.004, "weight_decay": 0.05, "fused": True}},
        "scheduler": {
            "key": "OneCycleLR",
            "kwargs": {"max_lr": 0.004, "total_steps": steps, "cycle_momentum": True},
            "scheduling_step": 1,
        },
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}},
        },
    }
    box = get_distillation_box(
        teacher, student, {"train": train, "val": val}, config, torch.device("cpu"), None, False, 1
    )
    layout = getattr(torch, options.layout)
    for epoch in range(options.epochs):
        box.pre_epoch_process(epoch=epoch)
        teacher.eval()  # the box leaves this to the caller
        for x, y, more in box.train_data_loader:
            box.pre_forward_process()
            with mixed(options):
                loss = box.forward_process(x.contiguous(memory_format=layout), y, more)
            box.post_forward_process(loss)
        accuracy(
            student, DataLoader(val, 500), options
        )  # its own loader gives three values per batch
        box.post_epoch_process()
    return accuracy(student, DataLoader(test, 500), options)


if __name__ == "__main__":
    tell(distil)
