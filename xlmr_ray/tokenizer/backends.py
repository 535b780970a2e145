"""The library's tokenizer holds its settings; here each distinct setting has a tokenizer that never changes."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer

_KEPT = 64


@dataclass(frozen=True)
class TruncationSettings:
    """By the names of `tokenizers`."""

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


class Clones:
    """A tokenizer a setting, so that threads which share one do not change it under each other. Each is made once, in
    about 0.1 ms: the parts, vocabulary first, are shared. `split_special` reads special tokens in a text as plain text.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._made: dict[tuple[TruncationSettings | None, Pad | None, bool], Tokenizer] = {}
        self._lock = threading.Lock()

    def get(self, cut: TruncationSettings | None, pad: Pad | None, *, split_special: bool) -> Tokenizer:
        if cut is None and pad is None and split_special == self._backend.encode_special_tokens:
            return self._backend
        key = (cut, pad, split_special)
        with self._lock:
            if key not in self._made:
                if len(self._made) >= _KEPT:
                    self._made.clear()
                self._made[key] = self._make(cut, pad, split_special)
            return self._made[key]

    def _make(self, cut: TruncationSettings | None, pad: Pad | None, split_special: bool) -> Tokenizer:
        clone = copy_of(self._backend)
        clone.encode_special_tokens = split_special
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


def copy_of(backend: Tokenizer) -> Tokenizer:
    """The same tokenizer without truncation and padding; the parts are shared."""
    copy = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(backend, part)) is not None:
            setattr(copy, part, value)
    copy.add_tokens([token for _, token in sorted(backend.get_added_tokens_decoder().items())])
    copy.encode_special_tokens = backend.encode_special_tokens
    return copy


def with_tokens(backend: Tokenizer, tokens: Sequence[str | AddedToken], *, special: bool) -> tuple[Tokenizer, int]:
    """A copy that also has these tokens, each matched whole; and how many the library took."""
    copy = copy_of(backend)
    return copy, int(copy.add_special_tokens(list(tokens)) if special else copy.add_tokens(list(tokens)))
