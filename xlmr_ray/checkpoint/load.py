"""A checkpoint's tensors into a module, one by one, with a report of what matched and what did not."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from xlmr_ray.checkpoint.device_map import Devices, device_of
from xlmr_ray.checkpoint.folder import has_adapter
from xlmr_ray.checkpoint.match import Slot, match_tensors, slot_groups
from xlmr_ray.checkpoint.names import is_encoder
from xlmr_ray.checkpoint.quantization import BitsAndBytesConfig, quantization_in, quantized_parameter, stored_parameter
from xlmr_ray.errors import UserError
from xlmr_ray.text.plural import some


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
    match = match_tensors(
        module,
        folder,
        quantization=quantization,
        new_head=new_head,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
    if has_adapter(folder) and any(is_encoder(slot.canonical) for slot in match.sources):
        raise UserError(
            f"{folder}: an adapter beside its base, which tasks of an encoder compute; else set merge: true"
        )
    tensors, names, beside = match.tensors, match.names, match.beside
    floats = [tensors.stored[name].dtype for slot, name in match.sources.items() if slot not in beside]
    on_disk = reduce(torch.promote_types, floats) if floats else None
    target = dtype or on_disk or torch.get_default_dtype()
    with torch.no_grad():
        fresh = match.missing + match.mismatched
        for group in fresh:
            where_to = device_of(device, group[0].name)
            _put_tensor(group, torch.empty(group[0].parameter.shape, dtype=target, device=where_to))
        # Before the files' own: a module's init sets all of its parameters, and those on the meta device take it
        # without effect.
        for owner in {id(slot.owner): slot.owner for group in fresh for slot in group}.values():
            _initialize(owner, init)
        for slot, name in match.sources.items():
            content, there = tensors.read(name), device_of(device, slot.name)
            if slot in beside:
                parts = {part: tensors.read(names.on_disk[full]) for part, full in beside[slot].items()}
                slot.put(stored_parameter(slot.owner, content, parts, there))
            elif slot in match.to_quantize:
                slot.put(quantized_parameter(slot.owner, content.to(target), there))
            else:
                # A copy, not the mapped file: aligned, alive when the file is gone, in its dtype and on its device.
                _put_tensor(match.members[slot], torch.empty(content.shape, dtype=target, device=there).copy_(content))
    left = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if left:
        raise RuntimeError(f"still on the meta device after loading, no file fills them: {', '.join(left)}")

    quantized_by = quantization
    if not match.layers:
        quantized_by = None
    elif beside:
        quantized_by = match.stored_quantization or quantization_in(module)
    return LoadReport(
        folder=folder,
        files=tensors.files,
        prefix=names.prefix,
        dtype_on_disk=on_disk or target,
        dtype=target,
        loaded=len(match.sources),
        missing=tuple(group[0].name for group in match.missing),
        mismatched=tuple(group[0].name for group in match.mismatched),
        misfits=tuple(match.misfits),
        unexpected=match.unexpected,
        ignored=names.ignored,
        tied=tuple((s.name, group[0].name) for group in slot_groups(module) for s in group[1:]),
        untied=tuple(match.untied),
        quantized=tuple(match.layers),
        quantization=quantized_by,
    )


def _put_tensor(slots: list[Slot], tensor: Tensor) -> None:
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
