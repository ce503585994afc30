"""Class-incremental learning: task schedule, data, exemplars, the chain of tasks, forgetting."""
