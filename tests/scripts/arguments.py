"""What the scripts train with: two steps on the CPU, the same in every run."""

from typing import Any

from transformers import TrainingArguments


def two_steps(out: str, **arguments: Any) -> TrainingArguments:
    usual = {"per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True}
    return TrainingArguments(out, max_steps=2, **{**usual, "optim": "sgd", "learning_rate": 0.1, **arguments})
