"""LoRA, by peft: low-rank matrices beside the linear layers of an encoder that stays as it is, and the head."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from xlmr_ray.errors import UserError
from xlmr_ray.model.linear import train_with_onednn
from xlmr_ray.train.job import FinetuneJob
from xlmr_ray.train.model import Trained
from xlmr_ray.train.objectives.objective import Objective

# Tasks that peft has a kind of model for, by which an adapter's folder says what head it brings.
KINDS = {
    "text-classification": "SEQ_CLS",
    "rerank": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "embedding": "FEATURE_EXTRACTION",
}


def peft_library() -> Any:
    """Peft. Raises UserError where it is not installed."""
    try:
        import peft
    except ImportError:
        raise UserError("method: lora needs peft: pip install 'xlmr-ray[lora]'") from None
    return peft


def with_adapter(trained: Trained, objective: Objective, job: FinetuneJob) -> Trained:
    """The model with a fresh adapter, which is trained with the head in place of all weights. Raises UserError for
    modules that the model has not.
    """
    config = objective.config
    head = [name for name, _ in trained.head.named_children()]
    torch.manual_seed(job.seed)
    settings = peft_library().LoraConfig(
        task_type=KINDS[job.task],
        r=job.lora.rank,
        lora_alpha=job.lora.alpha,
        lora_dropout=job.lora.dropout,
        target_modules=job.lora.modules,
        modules_to_save=list(head) or None,  # peft adds names to the list
        auto_mapping=label_config(config.to_dict()) if head else None,
    )
    try:
        adapter = peft_library().get_peft_model(trained.model, settings)
    except ValueError as error:
        raise UserError(f"lora.modules: {', '.join(job.lora.modules)}: {' '.join(str(error).split())}") from None
    adapter.peft_config["default"].base_model_name_or_path = base_of(job.model)
    for name in head:
        owner = trained.model if hasattr(trained.model, name) else trained.model.base_model
        setattr(trained.head, name, owner.get_submodule(name))
    if trained.device.type == "cpu":
        train_with_onednn(trained.model)
    return replace(trained, adapter=adapter)


def base_of(model: str) -> str:
    """What an adapter calls its base: a folder of this machine by its whole path."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def label_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `checkpoint/adapter.py` reads of a head's labels."""
    return {key: config[key] for key in ("id2label", "label2id", "problem_type") if config.get(key) is not None}
