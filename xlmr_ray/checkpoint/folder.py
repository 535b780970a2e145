"""A checkpoint's folder: where in it the model is, and whether the model is an XLM-R."""

import json
from pathlib import Path
from typing import Any

from xlmr_ray.checkpoint.config_values import check_values
from xlmr_ray.errors import UserError

# The same layers under other names, each with how transformers' classes of it begin. BERT and RoBERTa are published
# with tokenizers of other kinds, too, which are refused when they are read (`tokenizer/files.py`).
MODEL_TYPES = {"xlm-roberta": "XLMRoberta", "camembert": "Camembert", "roberta": "Roberta", "bert": "Bert"}
OTHER_LAYERS = {"xlm-roberta-xl": "it has its norms in front of attention and feed-forward, and these layers behind"}
# A head beside its encoder, and the key of its config.json that tells which encoder that was.
HEADS, ENCODER_DIGEST = "heads", "encoder_digest"
# A LoRA adapter beside its base, which is a head's folder with these two: the adapter, and a link to the base.
LORA, ENCODER = "lora.safetensors", ".encoder"
CALIBRATION = "calibration.json"


def model_folder(folder: Path) -> Path:
    """Where `config.json`, weights and tokenizer are: the folder, or `0_Transformer` of a sentence-transformers one."""
    path = first_module(folder, "path")
    # Such folders may hold another config.json at the top, with nothing of the model in it.
    inner = folder / path if path and "/" not in path else folder
    return inner if (inner / "config.json").is_file() else folder


def first_module(folder: Path, key: str) -> str | None:
    """What `modules.json` of a sentence-transformers folder says of its first module; None where it says nothing."""
    try:
        value = json.loads((folder / "modules.json").read_text("utf-8"))[0][key]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return value if isinstance(value, str) else None


def encoder_folder(folder: Path) -> Path | None:
    """For a head, `ENCODER/heads/NAME`, and for an adapter beside its base: the folder of the encoder. None for a
    checkpoint that is whole.
    """
    folder = folder.absolute()
    if has_adapter(folder):
        return (folder / ENCODER).resolve()
    if folder.parent.name != HEADS or not (folder / "config.json").is_file():
        return None
    return folder.parent.parent if ENCODER_DIGEST in read_config(folder) else None


def has_adapter(folder: Path) -> bool:
    """Whether it is one of an adapter beside its base."""
    return (folder / LORA).is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`, in the folder or in that of its model. Raises UserError when it is absent, no JSON
    object, or another architecture's.
    """
    path = model_folder(folder) / "config.json"
    if not path.is_file():
        kind = (first_module(folder, "type") or "").rpartition(".")[2]
        if kind and kind != "Transformer":
            raise UserError(
                f"{folder / 'modules.json'}: its first module is {kind}, expected Transformer: no XLM-R model"
            )
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise UserError(f"{folder}: no config.json, so this is no model folder; it holds {found}")
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(values).__name__}")
    # The earliest files do not say; their tensors' names will.
    model_type = values.get("model_type", "xlm-roberta")
    if model_type not in list(MODEL_TYPES):
        why = OTHER_LAYERS.get(str(model_type))
        raise UserError(
            f"{path}: model_type is {model_type!r}, not an XLM-R model ({', '.join(MODEL_TYPES)})"
            + (f": {why}" if why else "")
        )
    check_values(path, values)
    return values


def class_of(kind: str, model_type: str) -> str:
    """Transformers' class of a model type for ours: `BertForMaskedLM` for `XLMRobertaForMaskedLM`."""
    name = MODEL_TYPES[model_type] + kind.removeprefix(MODEL_TYPES["xlm-roberta"])
    return {"BertForCausalLM": "BertLMHeadModel"}.get(name, name)


def kind_of_class(name: str) -> str:
    """What one of transformers' classes is for, whatever its model type: `ForMaskedLM` for `BertForMaskedLM`."""
    if name == "BertLMHeadModel":
        return "ForCausalLM"
    return next((name.removeprefix(own) for own in MODEL_TYPES.values() if name.startswith(own)), name)
