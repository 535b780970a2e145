"""What truncation and padding a call asks for, and a tokenizer of the library's that is set to do it."""

import threading
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from xlmr_ray.errors import UserError

NO_LIMIT = int(1e30)  # the reference's length for a tokenizer that names none
_LIMITS = int(1e20)  # above, a length counts as none
TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
PADDINGS = ("longest", "max_length", "do_not_pad")
_KEPT = 64


@dataclass(frozen=True)
class Cut:
    """Truncation, by the library's names."""

    max_length: int
    strategy: str
    stride: int = 0
    direction: str = "right"


@dataclass(frozen=True)
class Pad:
    """Padding, by the library's names; `length` None is that of the longest sequence."""

    length: int | None
    pad_id: int
    pad_token: str
    direction: str = "right"
    pad_to_multiple_of: int | None = None


def asked_padding(padding: bool | str, limit: int) -> tuple[bool, int | None]:
    """Whether to pad, and to which length (None: the longest). "max_length" without a limit pads nothing."""
    how = ("longest" if padding else "do_not_pad") if isinstance(padding, bool) else padding
    one_of("padding", how, PADDINGS)
    if how == "max_length":
        return (True, limit) if limit <= _LIMITS else (False, None)
    return how == "longest", None


def asked_truncation(truncation: bool | str | None, limit: int) -> str | None:
    """The strategy, None for no truncation. Without a limit nothing is truncated."""
    how = ("longest_first" if truncation else "do_not_truncate") if isinstance(truncation, bool) else truncation
    one_of("truncation", how := how or "do_not_truncate", TRUNCATIONS)
    return how if how != "do_not_truncate" and limit <= _LIMITS else None


def check_room(max_length: int, stride: int, added: int) -> None:
    """The library panics where a stride leaves a window no way forward; say it before. `added`: special tokens."""
    room = max_length - added
    if room < 0:
        raise UserError(f"max_length={max_length} has no room for {added} special tokens")
    if stride < 0 or (stride and stride >= room):
        raise UserError(f"stride={stride}: expected 0 to {max(room - 1, 0)}, less than the tokens of a window")


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}={value!r}: expected one of {', '.join(choices)}")


class Clones:
    """A tokenizer a setting. Settings live in the library's tokenizer, so threads that share one would change it under
    each other: here each distinct setting has its own, made once and never changed. The parts, vocabulary first, are
    shared, so that one costs about 0.1 ms and little memory.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._made: dict[tuple[Cut | None, Pad | None], Tokenizer] = {}
        self._lock = threading.Lock()

    def get(self, cut: Cut | None, pad: Pad | None) -> Tokenizer:
        if cut is None and pad is None:
            return self._backend
        with self._lock:
            if (cut, pad) not in self._made:
                if len(self._made) >= _KEPT:
                    self._made.clear()
                self._made[cut, pad] = self._make(cut, pad)
            return self._made[cut, pad]

    def _make(self, cut: Cut | None, pad: Pad | None) -> Tokenizer:
        backend = self._backend
        clone = Tokenizer(backend.model)
        for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            if (value := getattr(backend, part)) is not None:
                setattr(clone, part, value)
        clone.add_tokens([token for _, token in sorted(backend.get_added_tokens_decoder().items())])
        if cut is not None:
            clone.enable_truncation(
                max_length=cut.max_length, stride=cut.stride, strategy=cut.strategy, direction=cut.direction
            )
        if pad is not None:
            clone.enable_padding(
                direction=pad.direction,
                pad_id=pad.pad_id,
                pad_token=pad.pad_token,
                length=pad.length,
                pad_to_multiple_of=pad.pad_to_multiple_of,
            )
        return clone
