"""CrossEncoder folders of sentence-transformers: the function applied to logits, and the prompt before a query."""

from dataclasses import dataclass
from pathlib import Path

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.files import load_object

# Classes of torch.nn that map each logit by itself and need no argument.
ACTIVATIONS = (
    "Identity", "Sigmoid", "Tanh", "ReLU", "ReLU6", "Softplus", "Softsign", "GELU", "SiLU", "ELU", "CELU", "SELU",
    "LeakyReLU", "LogSigmoid", "Mish", "Hardsigmoid", "Hardswish", "Hardtanh", "Hardshrink", "Softshrink", "Tanhshrink",
)  # fmt: skip


@dataclass(frozen=True)
class CrossEncoderConfig:
    """`activation`: a class of torch.nn by name; `prompt`: the folder's default one, "" for none."""

    activation: str = "Sigmoid"
    prompt: str = ""


def read_cross_encoder_config(folder: Path, config: XLMRobertaConfig) -> CrossEncoderConfig:
    """What the folder says: `config_sentence_transformers.json` first (sentence-transformers 5 and 6), then the keys of
    `config.json` (4, and before). A function that is not torch's is not run: sigmoid, as sentence-transformers has it.

    Raises UserError for a function of torch that does not map each logit by itself, or a default prompt that is not
    among the folder's.
    """
    path = folder / "config_sentence_transformers.json"
    own = load_object(path)
    of_config = config.extra.get("sentence_transformers")
    name = (
        own.get("activation_fn")
        or (of_config.get("activation_fn") if isinstance(of_config, dict) else None)
        or config.extra.get("sbert_ce_default_activation_function")
        or "torch.nn.Sigmoid"
    )
    package, _, activation = str(name).rpartition(".")
    if not package.startswith("torch"):
        activation = "Sigmoid"
    elif activation not in ACTIVATIONS:
        raise UserError(
            f"{folder}: activation_fn {name} is not supported; give function_to_apply: sigmoid or none, or one of "
            f"torch.nn's {', '.join(ACTIVATIONS)}"
        )
    prompts, default = own.get("prompts") or {}, own.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise UserError(
            f"{path}: default_prompt_name {default!r} is none of the prompts ({', '.join(prompts) or 'none'})"
        )
    return CrossEncoderConfig(activation, "" if default is None else str(prompts[default]))
