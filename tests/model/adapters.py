"""Random LoRA adapters, made and saved by peft."""

from pathlib import Path
from typing import Any

import peft
import torch
import transformers


def save_adapter(kind: str, base: Path, folder: Path, seed: int = 0, **options: Any) -> Any:
    """An adapter of the base, loaded in transformers' class of this name; given back is what peft loads of it. Biases
    that are trained are random, too.
    """
    torch.manual_seed(seed)
    labels = {"num_labels": options.pop("num_labels")} if "num_labels" in options else {}

    def loaded() -> Any:
        return getattr(transformers, kind).from_pretrained(
            base, dtype=torch.float32, ignore_mismatched_sizes=True, **labels
        )

    config = peft.LoraConfig(**{"init_lora_weights": False, "target_modules": ["query", "value"], **options})
    model = peft.get_peft_model(loaded(), config)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if one.requires_grad and name.endswith("bias"):
                one += torch.randn_like(one) / 20
    model.save_pretrained(folder)
    return peft.PeftModel.from_pretrained(loaded(), str(folder)).eval()
