"""A checkpoint's tensors into a module, one by one, with a report of what matched and what did not."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xlmr_ray.checkpoint.device_map import Devices, device_of
from xlmr_ray.checkpoint.digest import check_encoder
from xlmr_ray.checkpoint.folder import model_folder, read_config
from xlmr_ray.checkpoint.names import (
    DECODER_BIAS,
    DECODER_WEIGHT,
    Names,
    canonical_names,
    is_encoder,
    is_pooler,
    module_name,
    same_tensor,
)
from xlmr_ray.checkpoint.quantization import (
    BitsAndBytesConfig,
    companions,
    described,
    quantize_layers,
    quantized_parameter,
    stored_parameter,
)
from xlmr_ray.checkpoint.tensors import TensorFiles, open_tensors
from xlmr_ray.errors import UserError
from xlmr_ray.text.plural import some

log = logging.getLogger(__name__)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class LoadReport:
    """What a load found. `missing` and `mismatched` are named as in the module and got fresh values; the others are
    named as on disk, except `tied`.

    `unexpected`: tensors of the files that the module does not have (another head, say). `ignored`: saved counters,
    no weights. `tied`: (name, name whose parameter it shares). `untied`: pairs that the module ties and the files hold
    with two contents. `dtype_on_disk` is the narrowest type that holds all that was read. `quantized`: the layers of
    the module that are bitsandbytes' now, and `quantization` how.
    """

    folder: Path
    files: tuple[Path, ...]
    prefix: str
    dtype_on_disk: torch.dtype
    dtype: torch.dtype
    loaded: int
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]
    unexpected: tuple[str, ...]
    ignored: tuple[str, ...]
    tied: tuple[tuple[str, str], ...]
    untied: tuple[tuple[str, str], ...]
    # Of those in `mismatched`: name, shape in the files, shape in the module.
    misfits: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    quantized: tuple[str, ...] = ()
    quantization: BitsAndBytesConfig | None = None

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors from {self.folder} ({str(self.dtype).removeprefix('torch.')})"]
        for word, names in (
            ("newly initialized", self.missing + self.mismatched),
            ("unexpected", self.unexpected),
            ("ignored", self.ignored),
        ):
            if names:
                parts.append(f"{word}: {some(names, 5)}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Slot:
    """Where a module holds a parameter. Tied slots hold the same one."""

    owner: nn.Module
    attr: str
    name: str

    @property
    def canonical(self) -> str:
        return module_name(self.name)

    @property
    def parameter(self) -> nn.Parameter:
        parameter = self.owner._parameters[self.attr]
        assert parameter is not None
        return parameter

    def put(self, parameter: nn.Parameter) -> None:
        self.owner._parameters[self.attr] = parameter


def load_tensors(
    module: nn.Module,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: Devices = "cpu",
    quantization: BitsAndBytesConfig | None = None,
    new_head: bool = False,
    ignore_mismatched_sizes: bool = False,
    init: Callable[[nn.Module], None] | None = None,
) -> LoadReport:
    """Fills every parameter of `module`, which may be on the meta device, from the weights of `folder`.

    Parameters are replaced, and tied ones stay one: peak memory is the model and one tensor. `dtype=None` is that of
    the files (the narrowest that holds them all where they are mixed). A module without encoder (only a head) takes
    its part of the files. `device` may be a map of module names to devices.

    Linear layers that the files hold quantized, or that `quantization` names, are replaced by bitsandbytes' (look
    modules up again after the call), one tensor at a time.

    An encoder tensor that is absent or misshapen is an error. So is one of a head, unless `new_head` (absent) or
    `ignore_mismatched_sizes` (misshapen) allow a fresh one: the parameters are made by `init(owner)`, or by the owner's
    `reset_parameters`. A bare model's pooler may always be absent, since many files have none; under a head (multiple
    choice) it counts as a part of the head. Where files hold different contents for two tied parameters, the files win
    and the two come apart, as in transformers.

    Raises UserError with file, key, got and expected.
    """
    where = model_folder(folder)
    check_encoder(folder)
    tensors = open_tensors(where)
    names = canonical_names(tensors.stored, str(where))
    config = read_config(where) if (where / "config.json").is_file() else {}
    _check_layout(where, config, names.prefix)
    stats = companions(names.on_disk)
    said = _stored_config(where, config)
    if stats and quantization is not None:
        log.warning("%s: quantized already, and loaded as it is: no use for another quantization", where)
    layers = quantize_layers(
        module,
        said if stats else quantization,
        {canonical: tensors.stored[name].shape for canonical, name in names.on_disk.items()},
    )
    groups = _groups(module)
    slots = [slot for group in groups for slot in group]
    bare = any(is_encoder(s.canonical) for s in slots) and not any(s.name != s.canonical for s in slots)

    sources: dict[Slot, str] = {}  # what to read, by the first slot of each parameter to be
    members: dict[Slot, list[Slot]] = {}
    missing: list[list[Slot]] = []
    mismatched: list[list[Slot]] = []
    misfits: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    untied: list[tuple[str, str]] = []
    for group in groups:
        present = [slot for slot in group if slot.canonical in names.on_disk]
        if not present:
            alias = next((a for a in same_tensor(group[0].canonical) if a in names.on_disk), None)
            if alias is None:
                optional = is_pooler(group[0].canonical) and bare
                if not optional and (is_encoder(group[0].canonical) or not new_head):
                    raise _absent(group[0], names, tensors)
                missing.append(group)
                continue
            sources[group[0]], members[group[0]] = names.on_disk[alias], group
        else:
            first, *others = present
            sources[first], members[first] = names.on_disk[first.canonical], [s for s in group if s not in others]
            for other in others:
                if _equal(tensors, names.on_disk[first.canonical], names.on_disk[other.canonical]):
                    members[first].append(other)
                else:
                    sources[other], members[other] = names.on_disk[other.canonical], [other]
                    untied.append((other.name, first.name))
    owners = {id(layer) for layer in layers.values()}
    to_quantize = {slot for slot in sources if slot.attr == "weight" and id(slot.owner) in owners}
    # What the files hold beside each weight that is quantized there.
    beside = {slot: stats[slot.canonical.removesuffix(".weight")] for slot in to_quantize} if stats else {}
    for slot in list(sources):
        if slot in beside:
            continue
        got, expected = tensors.stored[sources[slot]].shape, tuple(slot.parameter.shape)
        if got == expected and tensors.stored[sources[slot]].dtype in FLOATS:
            continue
        if got == expected or is_encoder(slot.canonical) or not ignore_mismatched_sizes:
            raise _misfit(slot, sources[slot], tensors)
        del sources[slot]
        misfits.append((slot.name, tuple(got), expected))
        mismatched.append(members.pop(slot))

    floats = [tensors.stored[name].dtype for slot, name in sources.items() if slot not in beside]
    on_disk = reduce(torch.promote_types, floats) if floats else None
    target = dtype or on_disk or torch.get_default_dtype()
    with torch.no_grad():
        fresh = missing + mismatched
        for group in fresh:
            where_to = device_of(device, group[0].name)
            _put(group, torch.empty(group[0].parameter.shape, dtype=target, device=where_to))
        # Before the files' own: a module's init sets all of its parameters, and those on the meta device take it
        # without effect.
        for owner in {id(slot.owner): slot.owner for group in fresh for slot in group}.values():
            _initialize(owner, init)
        for slot, name in sources.items():
            content, there = tensors.read(name), device_of(device, slot.name)
            if slot in beside:
                parts = {part: tensors.read(names.on_disk[full]) for part, full in beside[slot].items()}
                try:
                    slot.put(stored_parameter(slot.owner, content, parts, there))
                except UserError as error:
                    raise UserError(f"{tensors.stored[name].file}: {name}: {error}") from None
            elif slot in to_quantize:
                slot.put(quantized_parameter(slot.owner, content.to(target), there))
            else:
                # A copy, not the mapped file: aligned, alive when the file is gone, in its dtype and on its device.
                _put(members[slot], torch.empty(content.shape, dtype=target, device=there).copy_(content))
    left = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if left:
        raise RuntimeError(f"still on the meta device after loading, no file fills them: {', '.join(left)}")

    taken = {name for slot in sources for name in _names_taken(members[slot], sources[slot], names)}
    taken |= {names.on_disk[full] for parts in beside.values() for full in parts.values()}
    taken |= {names.on_disk[s.canonical] for group in mismatched for s in group if s.canonical in names.on_disk}
    report = LoadReport(
        folder=folder,
        files=tensors.files,
        prefix=names.prefix,
        dtype_on_disk=on_disk or target,
        dtype=target,
        loaded=len(sources),
        missing=tuple(group[0].name for group in missing),
        mismatched=tuple(group[0].name for group in mismatched),
        misfits=tuple(misfits),
        unexpected=tuple(name for name in names.on_disk.values() if name not in taken),
        ignored=names.ignored,
        tied=tuple((s.name, group[0].name) for group in _groups(module) for s in group[1:]),
        untied=tuple(untied),
        quantized=tuple(layers),
        quantization=None if not layers else quantization if not stats else said or described(module),
    )
    _warn(report, any(is_encoder(slot.canonical) for slot in sources))
    return report


def _check_layout(where: Path, config: Mapping[str, Any], prefix: str) -> None:
    """Raises UserError for names of BERT's layout under another configuration, or the other way round: positions would
    be another's.
    """
    model_type = config.get("model_type", "xlm-roberta")
    if prefix and (prefix == "bert.") != (model_type == "bert"):
        raise UserError(
            f"{where}: the encoder's names begin with {prefix!r}, and config.json's model_type is {model_type}"
        )


def _stored_config(where: Path, config: Mapping[str, Any]) -> BitsAndBytesConfig | None:
    """What `config.json` says of the quantized layers: the tensors do not say the dtype of computing."""
    values = config.get("quantization_config")
    try:
        return BitsAndBytesConfig.from_dict(values) if isinstance(values, Mapping) else None
    except UserError as error:
        raise UserError(f"{where / 'config.json'}: {error}") from None


def _groups(module: nn.Module) -> list[list[Slot]]:
    """The slots of each parameter, first the one under whose name files keep it."""
    groups: dict[int, list[Slot]] = {}
    for path, owner in module.named_modules():
        for attr, parameter in owner._parameters.items():
            if parameter is not None:
                groups.setdefault(id(parameter), []).append(Slot(owner, attr, f"{path}.{attr}" if path else attr))
    return [sorted(g, key=lambda s: s.canonical in (DECODER_WEIGHT, DECODER_BIAS)) for g in groups.values()]


def _equal(tensors: TensorFiles, one: str, other: str) -> bool:
    a, b = tensors.read(one), tensors.read(other)
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b))


def _put(slots: list[Slot], tensor: Tensor) -> None:
    parameter = nn.Parameter(tensor, requires_grad=slots[0].parameter.requires_grad)
    for slot in slots:
        slot.put(parameter)


def _initialize(owner: nn.Module, init: Callable[[nn.Module], None] | None) -> None:
    if init is not None:
        init(owner)
    elif callable(getattr(owner, "reset_parameters", None)):
        owner.reset_parameters()  # type: ignore[operator]
    else:
        raise RuntimeError(f"{type(owner).__name__} has no reset_parameters: give load_tensors an init")


def _names_taken(slots: list[Slot], source: str, names: Names) -> set[str]:
    return {source} | {
        names.on_disk[c] for s in slots for c in (s.canonical, *same_tensor(s.canonical)) if c in names.on_disk
    }


def _absent(slot: Slot, names: Names, tensors: TensorFiles) -> UserError:
    encoder = is_encoder(slot.canonical) or is_pooler(slot.canonical)
    key = names.prefix + slot.canonical if encoder else slot.canonical
    files = tensors.files[0] if len(tensors.files) == 1 else f"{tensors.files[0].parent} ({len(tensors.files)} files)"
    hint = "the checkpoint is not whole, or its config.json is another model's"
    if not is_encoder(slot.canonical):
        heads = {name.split(".")[0] for name in names.on_disk} - {"embeddings", "encoder", "pooler"}
        has = f"the files have {', '.join(sorted(heads))}" if heads else "the files have no head"
        hint = f"{has}: use a checkpoint trained for this task, or ask for a new head to train"
    return UserError(f"{files}: {key}: got no such tensor, expected shape {tuple(slot.parameter.shape)}; {hint}")


def _misfit(slot: Slot, name: str, tensors: TensorFiles) -> UserError:
    described = tensors.stored[name]
    got, expected = described.shape, tuple(slot.parameter.shape)
    if got == expected:
        return UserError(f"{described.file}: {name}: got {described.dtype}, expected a floating point type")
    hint = "its config.json is another model's"
    if not is_encoder(slot.canonical):
        hint = "the head is of another size: give its num_labels, or ask for a new one with ignore_mismatched_sizes"
    return UserError(f"{described.file}: {name}: got shape {got}, expected {expected}; {hint}")


def _warn(report: LoadReport, has_encoder: bool) -> None:
    for name, other in report.untied:
        log.warning(
            "%s: %s and %s are tied by config.json and differ in the files: loaded apart", report.folder, name, other
        )
    extra = tuple(n for n in report.unexpected if is_encoder(n.removeprefix(report.prefix)))
    if extra and has_encoder:
        log.warning(
            "%s: encoder tensors that config.json does not provide for, not loaded: %s", report.folder, some(extra, 5)
        )
