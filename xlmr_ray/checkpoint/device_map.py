"""Which module goes to which device, and how tensors cross from one to the next."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xlmr_ray.errors import UserError

DeviceMap = Mapping[str, torch.device | str | int]
Devices = torch.device | str | DeviceMap
CPU = "cpu"


def device_of(devices: Devices, name: str) -> torch.device:
    """The device of a parameter or module: that of the longest prefix in the map. Raises UserError where none is."""
    if not isinstance(devices, Mapping):
        return torch.device(devices)
    prefix = name
    while prefix and prefix not in devices:
        prefix = prefix.rpartition(".")[0]
    if prefix not in devices:
        raise UserError(f"device_map: no device for {name}: name its module, or give all the rest one under ''")
    found = devices[prefix]
    return torch.device(f"cuda:{found}" if isinstance(found, int) else found)


def checked_device(device: torch.device | str | int) -> torch.device:
    """A device that is there. Raises UserError."""
    try:
        found = torch.device(f"cuda:{device}" if isinstance(device, int) else device)
    except RuntimeError:
        raise UserError(f"device {device!r} is none: cpu, cuda or cuda:0 are usual; disk is not supported") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device}: torch {torch.__version__} finds {torch.cuda.device_count()} GPUs")
    return found


def spread_modules(sizes: Mapping[str, int], free: Mapping[str, int]) -> dict[str, str]:
    """Modules in their order to devices: each GPU takes its share by free memory, and the CPU, which takes the rest,
    what goes beyond.

    `sizes` are bytes by module, `free` bytes by GPU, both in order. Neighbours stay together: a device that is left is
    not come back to, so that tensors cross once from each to the next.
    """
    whole, room = sum(sizes.values()), sum(free.values())
    placed: dict[str, str] = {}
    waiting = list(free)
    used = taken = 0  # bytes on the device that is being filled, and on it and those before
    share = 0.0  # of the whole, up to the device that is being filled
    for name, size in sizes.items():
        while waiting:
            device = waiting[0]
            end = whole * (share + free[device]) / room
            # A module goes where most of it falls; the last GPU takes what is left if it fits.
            mine = len(waiting) == 1 or whole > room or taken + size / 2 <= end
            if mine and used + size <= free[device]:
                break
            share, used = share + free[device], 0
            waiting.pop(0)
        placed[name] = waiting[0] if waiting else CPU
        used, taken = used + size, taken + size
    return placed


def automatic(
    model: nn.Module, float_bytes: float, linear_bytes: float, most: Mapping[str, int] | None = None
) -> dict[str, str]:
    """The map for the GPUs of this machine, of which `most` are the bytes to use, or all but those of a GPU that it
    has not. Weights of linear layers take `linear_bytes` a number, others `float_bytes`.
    """
    # Activations, and the work space of quantization, want room too.
    free = {f"cuda:{i}": int(0.9 * torch.cuda.mem_get_info(i)[0]) for i in range(torch.cuda.device_count())}
    if most:
        free = {device: min(size, most[device]) for device, size in free.items() if device in most}
    sizes, together = unit_sizes(model, float_bytes, linear_bytes)
    placed = spread_modules(sizes, free)
    return {name: placed[first] for name, first in together.items()}


def unit_sizes(model: nn.Module, float_bytes: float, linear_bytes: float) -> tuple[dict[str, int], dict[str, str]]:
    """Bytes by unit, and for every unit the one that it has to be with: that has a parameter of its, or itself."""
    home: dict[int, str] = {}
    sizes: dict[str, int] = {}
    together: dict[str, str] = {}
    for name, unit in units(model):
        first = next((home[id(p)] for p in unit.parameters() if id(p) in home), name)
        together[name] = first
        sizes.setdefault(first, 0)
        for module in unit.modules():
            for attr, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in home:
                    each = linear_bytes if isinstance(module, nn.Linear) and attr == "weight" else float_bytes
                    sizes[first] += int(parameter.numel() * each)
                    home[id(parameter)] = first
    return sizes, together


def units(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that stay whole, by name: the embeddings, each layer, each head."""
    for name, child in model.named_children():
        if name in ("roberta", "bert", "encoder") or isinstance(child, nn.ModuleList):
            yield from units(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def connect(model: nn.Module, devices: DeviceMap) -> None:
    """Makes a model that lies on several devices work: what goes into a unit comes to its device, and what the last
    layer and the heads give comes back to that of the first parameter. Does nothing for a model on one device.
    """
    if len({parameter.device for parameter in model.parameters()}) < 2:
        return
    named = dict(units(model))
    named |= {name: model.get_submodule(name) for name in devices if name}
    for unit in named.values():
        parameter = next(unit.parameters(), None)
        if parameter is not None:
            unit.register_forward_pre_hook(_bring(parameter.device), with_kwargs=True)
    first = next(model.parameters()).device
    for name, module in model.named_modules():
        if name.endswith("encoder") or (name in named and ".layer." not in name and not name.endswith("embeddings")):
            module.register_forward_hook(lambda module, inputs, output: moved(output, first))


def moved(value: Any, device: torch.device) -> Any:
    """The value with its tensors on the device: in tuples, lists and frozen dataclasses (layouts), too. Other objects
    (a cache, a trace) are for the layers to fill, and stay themselves.
    """
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(moved(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return replace(value, **{f.name: moved(getattr(value, f.name), device) for f in fields(value)})
    return value


def _bring(device: torch.device) -> Callable[..., tuple[Any, dict[str, Any]]]:
    def bring(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return moved(inputs, device), {name: moved(value, device) for name, value in named.items()}

    return bring
