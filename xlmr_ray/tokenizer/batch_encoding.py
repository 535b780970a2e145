"""What calling the tokenizer returns: a dictionary of model inputs that also knows where each token came from."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from xlmr_ray.errors import UserError

if TYPE_CHECKING:
    import torch


class CharSpan(NamedTuple):
    """Characters `start` to `end` (exclusive) of the original text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` to `end` (exclusive) of a sequence."""

    start: int
    end: int


class BatchEncoding(UserDict[str, Any]):
    """Model inputs by name (`encoding["input_ids"]`, `encoding.input_ids`, `model(**encoding)`).

    The methods about characters, words and sequences take `(batch_index, index)`, or only `index` for the first
    sequence of the batch. Without encodings (after `pad`) they raise UserError.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        encoding: Encoding | Sequence[Encoding] | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        """`tensor_type` and `prepend_batch_axis` as in `convert_to_tensors`."""
        super().__init__(data or {})
        self._encodings = [encoding] if isinstance(encoding, Encoding) else None if encoding is None else list(encoding)
        self._n_sequences = n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getitem__(self, key: str | int | slice) -> Any:
        """A string names an input; an integer gives the `tokenizers.Encoding` of that sequence."""
        if isinstance(key, str):
            return self.data[key]
        if self._encodings is not None:
            return self._encodings[key]
        if isinstance(key, slice):
            return {name: value[key] for name, value in self.data.items()}
        raise KeyError(f"{key!r}: not an input's name, and there are no encodings to index")

    def __getattr__(self, name: str) -> Any:
        # `data` itself is looked up here while unpickling, before __init__'s work is back.
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(
            f"BatchEncoding has no {name!r}; it holds {', '.join(self.data) if name != 'data' else ''}"
        )

    @property
    def encodings(self) -> list[Encoding] | None:
        return self._encodings

    @property
    def is_fast(self) -> bool:
        return self._encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """1 for single texts, 2 for pairs, None where unknown."""
        return self._encodings[0].n_sequences if self._n_sequences is None and self._encodings else self._n_sequences

    def tokens(self, batch_index: int = 0) -> list[str]:
        return list(self._encoding(batch_index).tokens)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Per token: 0 or 1 for the first or second text, None for a special token."""
        return list(self._encoding(batch_index).sequence_ids)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Per token: the index of its word, None for a special token."""
        return list(self._encoding(batch_index).word_ids)

    def token_to_sequence(self, batch_or_token: int, token: int | None = None) -> int | None:
        encoding, index = self._at(batch_or_token, token)
        return encoding.token_to_sequence(self._positive(encoding, index))

    def token_to_word(self, batch_or_token: int, token: int | None = None) -> int | None:
        encoding, index = self._at(batch_or_token, token)
        return encoding.token_to_word(self._positive(encoding, index))

    def token_to_chars(self, batch_or_token: int, token: int | None = None) -> CharSpan | None:
        encoding, index = self._at(batch_or_token, token)
        span = encoding.token_to_chars(self._positive(encoding, index))
        return CharSpan(*span) if span is not None else None

    def char_to_token(self, batch_or_char: int, char: int | None = None, sequence_index: int = 0) -> int | None:
        encoding, index = self._at(batch_or_char, char)
        return encoding.char_to_token(index, sequence_index)

    def char_to_word(self, batch_or_char: int, char: int | None = None, sequence_index: int = 0) -> int | None:
        encoding, index = self._at(batch_or_char, char)
        return encoding.char_to_word(index, sequence_index)

    def word_to_tokens(self, batch_or_word: int, word: int | None = None, sequence_index: int = 0) -> TokenSpan | None:
        """First token of the word and the one after its last."""
        encoding, index = self._at(batch_or_word, word)
        span = encoding.word_to_tokens(index, sequence_index)
        return TokenSpan(*span) if span is not None else None

    def word_to_chars(self, batch_or_word: int, word: int | None = None, sequence_index: int = 0) -> CharSpan | None:
        encoding, index = self._at(batch_or_word, word)
        span = encoding.word_to_chars(index, sequence_index)
        return CharSpan(*span) if span is not None else None

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> Self:
        """Turn every list into a tensor ("pt") or array ("np"), in place; with a first dimension of 1 more if asked.

        Sequences that differ in length give an array of arrays for "np", as in transformers, and raise UserError for
        "pt".
        """
        if tensor_type is None:
            return self
        convert = _converter(tensor_type)
        for name, value in self.data.items():
            try:
                self.data[name] = convert([value] if prepend_batch_axis else value)
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{name} cannot become one tensor: sequences differ in length; ask for padding=True and "
                    f"truncation=True ({error})"
                ) from None
        return self

    def to(self, device: str | int | torch.device, *, non_blocking: bool = False) -> Self:
        """Move the tensors to a device, in place; other values stay. A dtype is refused: ids must stay integers."""
        import torch

        if isinstance(device, torch.dtype):
            raise UserError(f"to({device}): token ids cannot be cast; name a device")
        self.data = {
            name: value.to(device=device, non_blocking=non_blocking) if hasattr(value, "to") else value
            for name, value in self.data.items()
        }
        return self

    def _encoding(self, batch_index: int) -> Encoding:
        if not self._encodings:
            raise UserError("this BatchEncoding holds no encodings; call the tokenizer on the text to get them")
        return self._encodings[batch_index]

    def _at(self, first: int, second: int | None) -> tuple[Encoding, int]:
        return (self._encoding(0), first) if second is None else (self._encoding(first), second)

    def _positive(self, encoding: Encoding, index: int) -> int:
        return index + len(encoding.ids) if index < 0 else index


def _converter(tensor_type: str) -> Any:
    # A member of a string enumeration, such as transformers', does as well.
    if tensor_type == "pt":
        return _to_torch
    if tensor_type == "np":
        return _to_numpy
    raise UserError(f"return_tensors={tensor_type!r}: expected 'pt' or 'np'")


def _to_torch(value: Any) -> torch.Tensor:
    import torch

    if torch.is_tensor(value):
        return value
    if isinstance(value, (list, tuple)) and value and torch.is_tensor(value[0]):
        return torch.stack(list(value))
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"got values of type {array.dtype}")
    return torch.from_numpy(array if array.size else array.astype(np.int64))


def _to_numpy(value: Any) -> NDArray[Any]:
    rows = isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple, np.ndarray))
    if rows and len({len(row) for row in value}) > 1:
        ragged = np.empty(len(value), object)
        ragged[:] = [np.asarray(row) for row in value]
        return ragged
    array = np.asarray(value)
    return array if array.size else array.astype(np.int64)
