"""sentence-transformers folders: how token states become one vector (`modules.json` and what it names)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xlmr_ray.checkpoint.tensors import BIN, SINGLE, TensorFiles
from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.files import load_object

if TYPE_CHECKING:
    from torch import Tensor

Pooling = Literal["cls", "mean", "max", "mean_sqrt_len"]
POOLING: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "max": "max", "mean_sqrt_len_tokens": "mean_sqrt_len"}
# The booleans of old files, and what they are called now.
OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
TEXTS = "sentence_embedding"  # what modules behind the pooling call their input
MULTI_VECTOR = "MultiVectorMask"  # the module that only folders of token vectors have
LENGTH_FILES = ("bert", "roberta", "camembert", "xlm-roberta")


@dataclass(frozen=True)
class Dense:
    """A linear layer after pooling: `activation(x @ weight.T + bias)`; `activation` is a class of torch.nn by name."""

    in_features: int
    out_features: int
    bias: bool
    activation: str
    file: Path

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """`weight (out, in)` and `bias (out,)` as on disk. Raises UserError for an absent or misshapen one."""
        files = TensorFiles([self.file])
        expected: dict[str, tuple[int, ...]] = {"linear.weight": (self.out_features, self.in_features)}
        if self.bias:
            expected["linear.bias"] = (self.out_features,)
        for name, shape in expected.items():
            got = f"shape {files.stored[name].shape}" if name in files.stored else "no such tensor"
            if got != f"shape {shape}":
                raise UserError(f"{self.file}: {name}: got {got}, expected shape {shape}")
        return files.read("linear.weight").clone(), files.read("linear.bias").clone() if self.bias else None


@dataclass(frozen=True)
class SentenceConfig:
    """In the order of use: a prompt before the text, at most `max_seq_length` tokens, pooling, dense layers,
    normalization, truncation.

    `max_seq_length` is None where the folder sets none. `include_prompt=False` leaves the prompt's tokens out of the
    pooling.
    """

    pooling: Pooling
    include_prompt: bool
    max_seq_length: int | None
    do_lower_case: bool
    dense: tuple[Dense, ...]
    normalize: bool
    prompts: dict[str, str]
    default_prompt_name: str | None
    truncate_dim: int | None
    similarity: str | None


def read_sentence_config(folder: Path) -> SentenceConfig | None:
    """What a sentence-transformers folder asks for; None for a folder that is none.

    Raises UserError for a module, a pooling or an option that would give other vectors than sentence-transformers if
    passed over.
    """
    steps = read_modules(folder)
    if steps is None or any(kind == MULTI_VECTOR for kind, _ in steps):
        return None
    if ("Pooling" in dict(steps)) and steps[0][0] == "Transformer":
        # Behind the pooling, what is done to the vectors of tokens has no effect on that of the text.
        pooled = [kind for kind, _ in steps].index("Pooling")
        steps = [
            (kind, path)
            for place, (kind, path) in enumerate(steps)
            if not (kind == "Normalize" and place > pooled and not normalizes_texts(path))
        ]
    kinds = [kind for kind, _ in steps]
    known = {"Transformer", "Pooling", "Dense", "Normalize", "Dropout"}
    for kind in kinds:
        if kind not in known:
            raise UserError(
                f"{folder / 'modules.json'}: module {kind} is not supported; {', '.join(sorted(known))} are"
            )
    kinds = [kind for kind in kinds if kind != "Dropout"]
    tail = [kind for kind in kinds[2:] if kind != "Dense"]
    if (
        kinds[:2] != ["Transformer", "Pooling"]
        or set(tail) - {"Normalize"}
        or "Dense" in kinds[len(kinds) - len(tail) :]
    ):
        order = ", ".join(kinds)
        raise UserError(
            f"{folder / 'modules.json'}: got modules {order}, expected Transformer, Pooling, any Dense, then Normalize"
        )
    paths = dict(steps)
    pooling, include_prompt = _pooling(paths["Pooling"] / "config.json")
    dense = tuple(read_dense(path) for kind, path in steps if kind == "Dense")
    max_seq_length, lower = transformer_settings(paths["Transformer"])
    own_path = folder / "config_sentence_transformers.json"
    own = _json(own_path, dict) if own_path.is_file() else {}
    prompts = {str(k): str(v) for k, v in (own.get("prompts") or {}).items() if v is not None}
    default = own.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise UserError(
            f"{own_path}: default_prompt_name {default!r} is none of the prompts ({', '.join(prompts) or 'none'})"
        )
    return SentenceConfig(
        pooling=pooling,
        include_prompt=include_prompt,
        max_seq_length=max_seq_length,
        do_lower_case=lower,
        dense=dense,
        normalize="Normalize" in kinds,
        prompts=prompts,
        default_prompt_name=default,
        truncate_dim=_dimensions(own_path, own.get("truncate_dim")),
        similarity=own.get("similarity_fn_name"),
    )


def read_modules(folder: Path) -> list[tuple[str, Path]] | None:
    """The class name and folder of each module that `modules.json` lists; None for a folder without that file."""
    if not (folder / "modules.json").is_file():
        return None
    return [_module(folder, entry) for entry in _json(folder / "modules.json", list)]


def _module(folder: Path, entry: Any) -> tuple[str, Path]:
    try:
        name, path = str(entry["type"]), str(entry["path"])
    except (LookupError, TypeError):
        raise UserError(f"{folder / 'modules.json'}: expected a list of objects with type and path") from None
    package, _, kind = name.rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise UserError(
            f"{folder / 'modules.json'}: module {name} is other code than sentence-transformers', and is not run"
        )
    if path.startswith("/") or ".." in Path(path).parts:
        raise UserError(f"{folder / 'modules.json'}: path {path!r} leads out of the folder")
    return kind, folder / path


def normalizes_texts(folder: Path) -> bool:
    """Whether a Normalize module acts on the vector of a text, and not on those of tokens. Raises UserError where it
    makes the one of the other.
    """
    values = load_object(folder / "config.json")
    source = values.get("module_input_name") or TEXTS
    target = values.get("module_output_name") or source
    if target == TEXTS != source:
        raise UserError(f"{folder / 'config.json'}: module_input_name {source!r} for {TEXTS} is not supported")
    return bool(target == TEXTS)


def _dimensions(path: Path, value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise UserError(f"{path}: truncate_dim: got {value!r}, expected a whole number from 1 on")
    return value


def transformer_settings(folder: Path) -> tuple[int | None, bool]:
    """`max_seq_length` and `do_lower_case`. The length is the tokenizer's own where the module's file gives none."""
    paths = (folder / f"sentence_{kind}_config.json" for kind in LENGTH_FILES)
    values: dict[str, Any] = next((_json(path, dict) for path in paths if path.is_file()), {})
    length = values.get("max_seq_length")
    if length is None and (folder / "tokenizer_config.json").is_file():
        length = _json(folder / "tokenizer_config.json", dict).get("model_max_length")
    # "No limit" is saved as a number of thirty digits.
    usable = isinstance(length, int | float) and 0 < length < 10**9
    return int(length) if usable and length is not None else None, bool(values.get("do_lower_case", False))


def _pooling(path: Path) -> tuple[Pooling, bool]:
    values = _json(path, dict)
    modes = values.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in OLD_POOLING.items() if values.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLING:
        raise UserError(
            f"{path}: pooling {' + '.join(map(str, modes))} is not supported; one of {', '.join(POOLING)} is"
        )
    return POOLING[modes[0]], bool(values.get("include_prompt", True))


def read_dense(folder: Path, level: str = TEXTS) -> Dense:
    """A Dense module over vectors of texts, or over those of tokens (`level` `token_embeddings`)."""
    path = folder / "config.json"
    values = _json(path, dict)
    if values.get("use_residual"):
        raise UserError(f"{path}: use_residual is not supported")
    for key in ("module_input_name", "module_output_name"):
        if (values.get(key) or TEXTS) != level:
            raise UserError(f"{path}: {key} {values.get(key)!r} is not supported; {level} is")
    activation = str(values.get("activation_function", "torch.nn.modules.activation.Tanh"))
    package, _, name = activation.rpartition(".")
    if not package.startswith("torch.nn") or name not in ACTIVATIONS:
        raise UserError(f"{path}: activation {activation} is not supported; {', '.join(ACTIVATIONS)} of torch.nn are")
    file = next((folder / n for n in (SINGLE, BIN) if (folder / n).is_file()), None)
    if file is None:
        raise UserError(f"{folder}: no weights: looked for {SINGLE}, {BIN}")
    try:
        sizes = int(values["in_features"]), int(values["out_features"])
    except (LookupError, TypeError, ValueError):
        raise UserError(f"{path}: expected in_features and out_features") from None
    return Dense(*sizes, bool(values.get("bias", True)), name, file)


def check_widths(dense: tuple[Dense, ...], hidden: int) -> None:
    """Raises UserError where a layer does not take what the one before it gives; the first takes `hidden` numbers."""
    width = hidden
    for layer in dense:
        if layer.in_features != width:
            raise UserError(
                f"{layer.file.parent / 'config.json'}: in_features: got {layer.in_features}, expected {width}, the "
                "numbers that come before it"
            )
        width = layer.out_features


def _json(path: Path, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, which modules.json asks for") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, kind):
        raise UserError(f"{path}: expected a JSON {'list' if kind is list else 'object'}, got {type(values).__name__}")
    return values
