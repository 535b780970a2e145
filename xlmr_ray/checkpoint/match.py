"""Which tensor of a checkpoint fills which parameter of a module, by names and shapes: nothing is filled yet."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
from xlmr_ray.checkpoint.quantization import BitsAndBytesConfig, check_stored, companions, quantize_layers
from xlmr_ray.checkpoint.tensors import TensorFiles, open_tensors
from xlmr_ray.errors import UserError
from xlmr_ray.text.plural import some

log = logging.getLogger(__name__)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


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


@dataclass(frozen=True)
class Match:
    """What fills a module. Of each parameter to be read, `sources` has the tensor's name on disk by its first slot, and
    `members` all of its slots; `missing` and `mismatched` are the slots of those that are to be made anew. `beside`:
    what the files hold beside a weight that is quantized there; `to_quantize`: the weights of quantized layers, which
    are in `layers` by name; `stored_quantization`: what `config.json` says of them.

    `misfits`: of those in `mismatched`, name, shape in the files, shape in the module. `untied`: pairs of names that
    the module ties and the files hold with two contents.
    """

    folder: Path
    tensors: TensorFiles
    names: Names
    sources: Mapping[Slot, str]
    members: Mapping[Slot, list[Slot]]
    missing: list[list[Slot]]
    mismatched: list[list[Slot]]
    misfits: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    untied: list[tuple[str, str]]
    beside: Mapping[Slot, Mapping[str, str]]
    to_quantize: set[Slot]
    layers: Mapping[str, nn.Module]
    stored_quantization: BitsAndBytesConfig | None

    @property
    def unexpected(self) -> tuple[str, ...]:
        """The names on disk of tensors that fill nothing."""
        on_disk = self.names.on_disk
        taken = {
            name for slot, source in self.sources.items() for name in _names_taken(self.members[slot], source, on_disk)
        }
        taken |= {on_disk[full] for parts in self.beside.values() for full in parts.values()}
        taken |= {on_disk[s.canonical] for group in self.mismatched for s in group if s.canonical in on_disk}
        return tuple(name for name in on_disk.values() if name not in taken)


def match_tensors(
    module: nn.Module,
    folder: Path,
    *,
    quantization: BitsAndBytesConfig | None = None,
    new_head: bool = False,
    ignore_mismatched_sizes: bool = False,
) -> Match:
    """Finds what fills a `module`, which may be on the meta device, among the weights of `folder`; the arguments and
    what is refused are those of `load_tensors`. Reads no tensor but those of two names that the module ties, and the
    scales of quantized layers.

    Layers that are quantized are replaced by bitsandbytes' empty ones. Warns of tensors of the encoder that the module
    has no parameters for, and of those that come apart. Raises UserError with file, key, got and expected.
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
    groups = slot_groups(module)
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
        stored = tensors.stored[sources[slot]]
        if slot in beside:
            parts = {part: tensors.read(names.on_disk[full]) for part, full in beside[slot].items()}
            try:
                check_stored(slot.owner, stored.shape, stored.dtype, parts)
            except UserError as error:
                raise UserError(f"{stored.file}: {sources[slot]}: {error}") from None
            continue
        got, expected = stored.shape, tuple(slot.parameter.shape)
        if got == expected and stored.dtype in FLOATS:
            continue
        if got == expected or is_encoder(slot.canonical) or not ignore_mismatched_sizes:
            raise _misfit(slot, sources[slot], tensors)
        del sources[slot]
        misfits.append((slot.name, tuple(got), expected))
        mismatched.append(members.pop(slot))

    match = Match(
        folder=folder,
        tensors=tensors,
        names=names,
        sources=sources,
        members=members,
        missing=missing,
        mismatched=mismatched,
        misfits=misfits,
        untied=untied,
        beside=beside,
        to_quantize=to_quantize,
        layers=layers,
        stored_quantization=said if stats else None,
    )
    _warn(match)
    return match


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


def slot_groups(module: nn.Module) -> list[list[Slot]]:
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


def _names_taken(slots: list[Slot], source: str, on_disk: Mapping[str, str]) -> set[str]:
    return {source} | {on_disk[c] for s in slots for c in (s.canonical, *same_tensor(s.canonical)) if c in on_disk}


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


def _warn(match: Match) -> None:
    for name, other in match.untied:
        log.warning(
            "%s: %s and %s are tied by config.json and differ in the files: loaded apart", match.folder, name, other
        )
    extra = tuple(name for name in match.unexpected if is_encoder(name.removeprefix(match.names.prefix)))
    if extra and any(is_encoder(slot.canonical) for slot in match.sources):
        log.warning(
            "%s: encoder tensors that config.json does not provide for, not loaded: %s", match.folder, some(extra, 5)
        )
