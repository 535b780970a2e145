"""Modules as shapes only, for values that are read from files afterwards."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DRAWS = {"normal_", "uniform_", "kaiming_uniform_"}  # those of linear layers and embeddings


class Undrawn(TorchFunctionMode):
    """Tensors stay as they are where a module would draw its first values.

    There are none on the meta device, and yet asking torch 2.13 for normal ones there imports its compiler: two
    seconds of each process that loads a model.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made in here are on the meta device, and no time is spent on values."""
    with torch.device("meta"), Undrawn():
        yield
