"""Which linear layers bitsandbytes quantizes, and how; their parameters from float weights or from what files hold.

NF4 and FP4 keep a weight in blocks of 64 four-bit codes with a scale each (QLoRA, arXiv:2305.14314), LLM.int8 a row in
eight bits with a scale (arXiv:2208.07339). Names and defaults are those of transformers, and so are the files.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from xlmr_ray.checkpoint.names import module_name
from xlmr_ray.errors import UserError
from xlmr_ray.model.linear import linear

# What a quantized layer `X` has in a file beside `X.weight` and `X.bias`.
COMPANION = re.compile(
    r"(.+)\.(weight\.(?:nested_)?(?:absmax|quant_map)|weight\.quant_state\.bitsandbytes__\w+|SCB|weight_format)"
)
STATE = "weight.quant_state.bitsandbytes__"
STORAGE = ("uint8", "int8", "float16", "bfloat16", "float32", "float64")
# The last layer of a language model: as large as the embeddings, and often the same parameter.
OUTPUT_EMBEDDINGS = ("lm_head.decoder",)
HEADS = ("classifier", "lm_head", "pooler", "qa_outputs")
SCHEMES = ("nf4", "fp4", "int8-weights")


@dataclass
class BitsAndBytesConfig:
    """How linear layers are quantized: 4-bit (`bnb_4bit_…`) or 8-bit (`llm_int8_…`).

    `llm_int8_skip_modules` names the layers that stay as they are, for both: a module with all below it, an ending, or
    a regular expression from the beginning; None is the output embeddings only. `llm_int8_threshold`: a column of the
    activations with a value above it, in any token of the batch, is computed in floating point; 0.0 for none, and then
    a token's result does not depend on the others. `bnb_4bit_compute_dtype` None is float32. With
    `llm_int8_enable_fp32_cpu_offload` the modules that a `device_map` puts on the CPU are not quantized.
    """

    load_in_8bit: bool = False
    load_in_4bit: bool = False
    llm_int8_threshold: float = 6.0
    llm_int8_skip_modules: list[str] | None = None
    llm_int8_enable_fp32_cpu_offload: bool = False
    llm_int8_has_fp16_weight: bool = False
    bnb_4bit_compute_dtype: torch.dtype | str | None = None
    bnb_4bit_quant_type: str = "fp4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_quant_storage: torch.dtype | str | None = None

    quant_method: ClassVar[str] = "bitsandbytes"

    def __post_init__(self) -> None:
        if self.load_in_4bit and self.load_in_8bit:
            raise UserError("BitsAndBytesConfig: load_in_4bit and load_in_8bit are both set: give one")
        if self.bnb_4bit_quant_type not in ("nf4", "fp4"):
            raise UserError(f"BitsAndBytesConfig: bnb_4bit_quant_type {self.bnb_4bit_quant_type!r} is none of nf4, fp4")
        self.bnb_4bit_compute_dtype = _dtype("bnb_4bit_compute_dtype", self.bnb_4bit_compute_dtype, torch.float32)
        self.bnb_4bit_quant_storage = _dtype("bnb_4bit_quant_storage", self.bnb_4bit_quant_storage, torch.uint8)
        if _name(self.bnb_4bit_quant_storage) not in STORAGE:
            raise UserError(
                f"BitsAndBytesConfig: bnb_4bit_quant_storage {_name(self.bnb_4bit_quant_storage)} is none of "
                + ", ".join(STORAGE)
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From `quantization_config` of a `config.json`; keys that it does not know are left out. Raises UserError for
        another library's.
        """
        method = values.get("quant_method", cls.quant_method)
        if method != cls.quant_method:
            raise UserError(f"quantization_config: quant_method {method!r} is not supported; {cls.quant_method} is")
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds under `quantization_config`; transformers reads it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
            values[name] = _name(values[name])
        own = {"_load_in_4bit": self.load_in_4bit, "_load_in_8bit": self.load_in_8bit}
        return {**own, **values, "quant_method": self.quant_method}

    @property
    def bits(self) -> int:
        """4 or 8. Raises UserError where neither is set."""
        if not (self.load_in_4bit or self.load_in_8bit):
            raise UserError("BitsAndBytesConfig: set load_in_4bit or load_in_8bit")
        return 4 if self.load_in_4bit else 8

    def skips(self, name: str) -> bool:
        """Whether the module of that name stays as it is."""
        patterns = OUTPUT_EMBEDDINGS if self.llm_int8_skip_modules is None else self.llm_int8_skip_modules
        return any(re.match(rf"(?:{p})(?:(?<=\.)|(?=\.|$))", name) or name.endswith(p) for p in patterns)


def scheme(name: str, compute_dtype: torch.dtype = torch.float32) -> BitsAndBytesConfig:
    """What a job's word means: the encoder as `nf4`, `fp4` or `int8-weights`, heads as they are, batch-invariant
    (no outlier columns in 8 bits; `make_int8_batch_invariant` keeps activations in floating point, too). Raises
    UserError for another word.
    """
    if name not in SCHEMES:
        raise UserError(f"quantization {name!r} is none of {', '.join(SCHEMES)}")
    if name == "int8-weights":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=list(HEADS))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=name,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=list(HEADS),
    )


class Int8Weights(nn.Module):
    """A linear layer of 8-bit weights, computed in floating point: a token's result is the same whatever the batch.

    LLM.int8 rounds the activations too. That cost a small encoder (e5) 0.4 to 0.7 points of retrieval, this nothing
    that was seen.
    """

    def __init__(self, layer: Any) -> None:
        """From bitsandbytes' layer, whose codes `(out, in)`, scales `(out)` and bias it takes over."""
        super().__init__()
        self.register_buffer("codes", layer.weight.data)
        self.register_buffer("scales", layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """`(*tokens, in)` to `(*tokens, out)`."""
        codes, scales = self.get_buffer("codes"), self.get_buffer("scales")
        return linear(x, (codes * (scales / 127)[:, None]).to(x.dtype), self.bias)


def make_int8_batch_invariant(module: nn.Module) -> None:
    """Makes every 8-bit layer one whose results do not depend on the batch. For inference: it is not saved again."""
    for name, layer in list(module.named_modules()):
        if type(layer).__name__ == "Linear8bitLt":
            module.set_submodule(name, Int8Weights(layer))


def companions(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Quantized layers among the names of tensors: layer -> what it has beside its weight -> the name of that."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if match := COMPANION.fullmatch(name):
            found.setdefault(match[1], {})[match[2]] = name
    return found


def quantize_layers(
    module: nn.Module, config: BitsAndBytesConfig | None, on_disk: Mapping[str, tuple[int, ...]]
) -> dict[str, nn.Module]:
    """Replaces linear layers by bitsandbytes' ones, still empty; returns them by their names.

    Which: where files hold quantized layers, those and no others, whatever the configuration says; else those that it
    does not skip and that have weights in the files (`on_disk`: canonical name -> shape): new heads are to be trained.
    """
    stored = companions(on_disk)
    if not stored and config is None:
        return {}
    config = config or BitsAndBytesConfig()
    placed: dict[str, nn.Module] = {}
    for name, old in list(module.named_modules()):
        if type(old) is not nn.Linear:
            continue
        canonical = module_name(name)
        parts = stored.get(canonical, {})
        if parts:
            state = next((part for part in parts if part.startswith(STATE)), None)
            bits, kind = (4, state.removeprefix(STATE)) if state else (8, "")
        elif stored or config.skips(name) or on_disk.get(f"{canonical}.weight") != tuple(old.weight.shape):
            continue
        else:
            bits, kind = config.bits, config.bnb_4bit_quant_type
        placed[name] = _empty(old, bits, kind, config, fp16=config.llm_int8_has_fp16_weight and not parts)
        module.set_submodule(name, placed[name])
    return placed


def quantized_parameter(layer: nn.Module, weight: Tensor, device: torch.device) -> nn.Parameter:
    """The parameter of an empty layer from a float weight `(out, in)`, in the dtype that the model is to have."""
    old: Any = layer.weight
    layers = bnb_library()
    bnb = layers.bnb
    # Eight bits are made on the CPU, as transformers does: the same bits wherever the model goes.
    if not isinstance(layer, layers.Linear8bitLt):
        parameter = bnb.nn.Params4bit(weight.to(device), requires_grad=False, **old.__dict__)
    elif old.has_fp16_weights:
        return _parameter(bnb.nn.Int8Params(weight.to(device, copy=True), requires_grad=False, has_fp16_weights=True))
    else:
        parameter = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    return _parameter(parameter.to(device))


def check_stored(layer: Any, shape: tuple[int, ...], dtype: torch.dtype, parts: Mapping[str, Tensor]) -> None:
    """Raises UserError, without the file's name, for what is no whole quantized layer of the empty layer's shape: codes
    of this shape and dtype in a file, and `parts` by their names in the layer.
    """
    expected: tuple[int, int] = (layer.out_features, layer.in_features)
    if isinstance(layer, bnb_library().Linear8bitLt):
        scales = parts.get("SCB")
        if dtype is not torch.int8 or shape != expected:
            raise UserError(f"got {dtype} of shape {shape}, expected int8 of {expected}")
        if scales is None or scales.numel() != expected[0]:
            raise UserError(f"SCB: got {'none' if scales is None else scales.numel()}, expected {expected[0]} scales")
        if int(parts.get("weight_format", torch.tensor(0))) != 0:
            raise UserError("8-bit weights in a layout of old bitsandbytes: save them again with version 0.45 or later")
        return
    # Each name exactly: what is absent or has another name is not found out later, and gives other weights.
    got, needed = _state(_stats(parts))
    if got != expected:
        raise UserError(f"got a quantized weight of shape {got}, expected {expected}")
    if lacking := needed - set(_stats(parts)):
        raise UserError(f"no {', '.join(sorted(lacking))} beside the quantized weight: the file is not whole")


def stored_parameter(layer: Any, weight: Tensor, parts: Mapping[str, Tensor], device: torch.device) -> nn.Parameter:
    """The parameter of an empty layer from what a file holds, `check_stored` before."""
    layers = bnb_library()
    bnb = layers.bnb
    if isinstance(layer, layers.Linear8bitLt):
        copied = bnb.nn.Int8Params(weight.clone(), requires_grad=False, SCB=parts["SCB"].clone())
        return _parameter(copied.to(device))
    stats = {name: tensor.clone() for name, tensor in _stats(parts).items()}
    parameter = bnb.nn.Params4bit.from_prequantized(
        weight.clone(), stats, requires_grad=False, device=device, module=layer
    )
    return _parameter(parameter)


def quantization_in(module: nn.Module) -> BitsAndBytesConfig:
    """How the layers are quantized that are, where no configuration came with them."""
    for layer in module.modules():
        if type(layer).__name__ == "Linear8bitLt":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=float(layer.state.threshold))  # type: ignore[union-attr, arg-type]
        if type(layer).__name__ == "Linear4bit":
            weight: Any = layer.weight
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=weight.quant_type,
                bnb_4bit_use_double_quant=bool(weight.compress_statistics),
                bnb_4bit_quant_storage=weight.quant_storage,
            )
    raise ValueError("no quantized layer")


def bnb_library() -> ModuleType:
    """`bnb_layers`, which imports bitsandbytes. Raises UserError where that is not installed."""
    try:
        from xlmr_ray.checkpoint import bnb_layers
    except ImportError as error:
        raise UserError(
            f"4-bit and 8-bit layers need bitsandbytes ({error}): pip install 'xlmr-ray[quantization]'"
        ) from None
    return bnb_layers


def _empty(old: nn.Linear, bits: int, kind: str, config: BitsAndBytesConfig, *, fp16: bool) -> nn.Module:
    layers = bnb_library()
    sizes = (old.in_features, old.out_features, old.bias is not None)
    with torch.device("meta"):
        new: nn.Module
        if bits == 8:
            new = layers.Linear8bitLt(*sizes, has_fp16_weights=fp16, threshold=config.llm_int8_threshold)
        else:
            new = layers.Linear4bit(
                *sizes,
                compute_dtype=config.bnb_4bit_compute_dtype,
                compress_statistics=config.bnb_4bit_use_double_quant,
                quant_type=kind,
                quant_storage=config.bnb_4bit_quant_storage,
            )
    return new.requires_grad_(False)


def _stats(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {part.removeprefix("weight."): tensor for part, tensor in parts.items()}


def _state(stats: Mapping[str, Tensor]) -> tuple[tuple[int, ...], set[str]]:
    """The shape that the packed state tells, and the names of the tensors that go with it."""
    name = next(n for n in stats if n.startswith("quant_state."))
    try:
        values = json.loads(bytes(stats[name].tolist()))
        shape = tuple(int(n) for n in values["shape"])
        dtypes = [values["dtype"], *([values["nested_dtype"]] if "nested_dtype" in values else [])]
        if not all(isinstance(getattr(torch, d, None), torch.dtype) for d in dtypes):
            raise ValueError(f"dtype {dtypes}")
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{name}: not the state of a quantized weight ({error})") from None
    return shape, {"absmax", "quant_map"} | ({"nested_absmax", "nested_quant_map"} if len(dtypes) == 2 else set())


def _parameter(value: Any) -> nn.Parameter:
    assert isinstance(value, nn.Parameter)
    return value


def _dtype(name: str, value: torch.dtype | str | None, default: torch.dtype) -> torch.dtype:
    found = default if value is None else getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype):
        raise UserError(f"BitsAndBytesConfig: {name} {value!r} is not a dtype of torch")
    return found


def _name(dtype: torch.dtype | str | None) -> str:
    return str(dtype).removeprefix("torch.")
