"""Texts to flat arrays of ids: the batch path. No padding, no list of lists, no state in the shared Rust tokenizer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.known_words import Ids, KnownWords
from xlmr_ray.tokenizer.safe_prefix import LongText

Truncation = Literal["longest_first", "only_first", "only_second", "do_not_truncate"]

# A first guess at how many characters hold a wanted number of tokens (XLM-R's mean over languages is 3.7), and the
# factor for a text that gives too few. Measured at 512 tokens on documents of 8 to 60 articles in 90 languages: 5 and 2
# took the least time of 3 to 6 and 2 or 4.
_CHARS_A_TOKEN = 5
_GROWTH = 2


class TokenizerError(UserError):
    """One text could not be tokenized. `index` is its index in the call, `reason` says why without quoting it."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(index, reason)
        self.index = index
        self.reason = reason

    def __str__(self) -> str:
        return f"text {self.index} cannot be tokenized: {self.reason}"


@dataclass(frozen=True)
class Ragged:
    """N sequences of T tokens in all, end to end; sequence i is `input_ids[row_splits[i]:row_splits[i + 1]]`.

    `owner[i]` is the text that sequence i comes from, ascending; with overflow windows a text has several.
    `truncated[j]` tells whether text j (or its pair) lost tokens; overflow windows lose none.
    `offsets` are characters of the original text (0, 0 for special tokens) and `sequence_ids` 0 or 1 for the first or
    second text, -1 for special tokens; both are None unless offsets were asked for.
    """

    input_ids: NDArray[np.int32]  # [T]
    row_splits: NDArray[np.int64]  # [N + 1]
    owner: NDArray[np.int32]  # [N]
    truncated: NDArray[np.bool_]  # [texts]
    offsets: NDArray[np.int32] | None = None  # [T, 2]
    sequence_ids: NDArray[np.int8] | None = None  # [T]

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, [N]."""
        return np.diff(self.row_splits)


@dataclass(frozen=True)
class Template:
    """The special tokens around one text (`head A tail`) or two (`head A middle B tail`)."""

    head: tuple[int, ...]
    middle: tuple[int, ...]
    tail: tuple[int, ...]
    typed: bool = False  # whether some of the tokens are of another type than 0

    @property
    def added(self) -> int:
        return len(self.head) + len(self.middle) + len(self.tail)

    @classmethod
    def of(cls, backend: Tokenizer, *, pair: bool) -> "Template":
        """Read off an encoded probe, whatever kind of post-processor the tokenizer has."""
        probe = backend.encode("a", "a") if pair else backend.encode("a")
        indices = [index for index, owner in enumerate(probe.sequence_ids) if owner is not None]
        second = next((index for index in indices if probe.sequence_ids[index] == 1), None)
        first_end = max(index for index in indices if probe.sequence_ids[index] == 0) + 1
        return cls(
            head=tuple(probe.ids[: indices[0]]),
            middle=tuple(probe.ids[first_end:second]) if second is not None else (),
            tail=tuple(probe.ids[indices[-1] + 1 :]),
            typed=any(probe.type_ids),
        )


def as_strings(texts: Sequence[str] | pa.Array | pa.ChunkedArray) -> list[str]:
    """A list of Python strings. Raises TokenizerError for a null and for bytes that are not UTF-8."""
    if not isinstance(texts, (pa.Array, pa.ChunkedArray)):
        return texts if isinstance(texts, list) else list(texts)
    if texts.null_count:
        raise TokenizerError(texts.is_null().to_pylist().index(True), "it is null")
    try:
        return texts.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        for index, text in enumerate(texts):
            try:
                text.as_py()
            except UnicodeDecodeError as error:
                raise TokenizerError(index, f"byte {error.start} is not UTF-8") from None
        raise


def encode_batch(
    backend: Tokenizer,
    items: list[str] | list[tuple[str, str]] | list[list[str]],
    *,
    offsets: bool,
    add_special_tokens: bool,
    is_pretokenized: bool = False,
    texts_an_item: int = 1,
) -> list[Encoding]:
    """The library's batch call, with a failure traced to its text: TokenizerError.

    A panic in the Rust library arrives as an exception outside Exception; it becomes a TokenizerError too. With
    `texts_an_item` = 2, two neighbouring items belong to one text of the caller.
    """
    call = backend.encode_batch if offsets else backend.encode_batch_fast
    options = {"add_special_tokens": add_special_tokens, "is_pretokenized": is_pretokenized}
    try:
        return call(items, **options)
    except BaseException as error:
        if not _of_the_library(error):
            raise
        for index, item in enumerate(items):
            try:
                call([item], **options)
            except BaseException as culprit:
                if not _of_the_library(culprit):
                    raise
                raise TokenizerError(index // texts_an_item, _why_not(item, culprit)) from None
        raise RuntimeError(f"the tokenizer failed on {len(items)} texts, of which each one passes: {error}") from None


def encode_parts(
    backend: Tokenizer, known: KnownWords | None, parts: list[str], *, offsets: bool, sides: int = 1
) -> list[Encoding | Ids]:
    """Each part's tokens, without special ones: by the words that are known where these do, else by the library."""
    if offsets or known is None:
        return list(encode_batch(backend, parts, offsets=offsets, add_special_tokens=False, texts_an_item=sides))
    found: list[Encoding | Ids | None] = [_by_words(known, part) for part in parts]
    rest = [index for index, one in enumerate(found) if one is None]
    try:
        others = encode_batch(backend, [parts[index] for index in rest], offsets=False, add_special_tokens=False)
    except TokenizerError as error:
        raise TokenizerError(rest[error.index] // sides, error.reason) from None
    for index, encoding in zip(rest, others, strict=True):
        found[index] = encoding
    return [one for one in found if one is not None]


def _by_words(known: KnownWords, text: str) -> Ids | None:
    try:
        return known.ids(text)
    except BaseException as error:  # the library says what is wrong with the text
        if not _of_the_library(error):
            raise
        return None


def _of_the_library(error: BaseException) -> bool:
    # The panic's class cannot be imported: pyo3 makes one in every extension module.
    return (isinstance(error, Exception) and not isinstance(error, MemoryError)) or type(
        error
    ).__name__ == "PanicException"


def _why_not(item: object, error: BaseException) -> str:
    for text in _texts_in(item):
        if not isinstance(text, str):
            return f"expected str, got {type(text).__name__}"
        try:
            text.encode()
        except UnicodeEncodeError as surrogate:
            code = ord(text[surrogate.start])
            return f"lone surrogate U+{code:04X} at character {surrogate.start}; put U+FFFD in its place"
    # The library raises Exception itself, with a message that says what.
    return str(error) if type(error) is Exception else f"{type(error).__name__}: {error}"


def _texts_in(item: object) -> Iterator[object]:
    """The texts of an item: itself, those of a pair, the words of either."""
    if isinstance(item, (tuple, list)):
        for part in item:
            yield from _texts_in(part)
    else:
        yield item


def encode_ragged(
    backend: Tokenizer,
    windows: Tokenizer | None,
    template: Template,
    long_text: LongText,
    known: KnownWords | None,
    texts: list[str],
    pairs: list[str] | None,
    *,
    max_length: int,
    truncation: Truncation,
    keep_left: bool,
    offsets: bool,
) -> Ragged:
    """See `XLMRobertaTokenizer.encode_ragged`.

    `backend` neither truncates nor pads; `windows` is one that truncates as asked, given only for overflow windows,
    which the library knows how to make. All other truncation happens here, on lengths.
    """
    if windows is not None:
        return _overflow(windows, texts, pairs, offsets=offsets)
    sides = 1 if pairs is None else 2
    parts = texts if pairs is None else list(chain.from_iterable(zip(texts, pairs, strict=True)))
    room = max_length - template.added if truncation != "do_not_truncate" else None
    # The end of a text decides its last tokens: nothing to cut off when those are kept.
    encodings, cut = _tokenize(
        backend, known, long_text if keep_left else None, parts, room, offsets=offsets, sides=sides
    )
    length = np.fromiter(map(len, encodings), np.int64, len(encodings)).reshape(-1, sides)
    if sides == 2 and room is not None and room % 2 and truncation == "longest_first":
        # The odd token goes to the longer of two long texts: then both lengths must be known.
        unsure = np.flatnonzero((length > room).all(1) & cut.reshape(-1, 2).any(1))
        for row in unsure:
            whole = encode_parts(backend, known, parts[2 * row : 2 * row + 2], offsets=offsets)
            encodings[2 * row : 2 * row + 2] = whole
            length[row] = [len(part) for part in whole]
    keep = length if room is None else kept_tokens(length, room, truncation)
    return _assemble(encodings, length, keep, template, keep_left=keep_left, offsets=offsets)


def _tokenize(
    backend: Tokenizer,
    known: KnownWords | None,
    long_text: LongText | None,
    parts: list[str],
    room: int | None,
    *,
    offsets: bool,
    sides: int,
) -> tuple[list[Encoding | Ids], NDArray[np.bool_]]:
    """Encodings without special tokens, and which are of a cut text. A cut text gives more than `room` tokens."""
    cut = np.zeros(len(parts), np.bool_)
    if long_text is None or not long_text.usable or room is None:
        return encode_parts(backend, known, parts, offsets=offsets, sides=sides), cut
    chars = _CHARS_A_TOKEN * (room + 1)
    shorter = parts.copy()
    for index, text in enumerate(parts):
        if isinstance(text, str) and len(text) > chars:
            _shorten(long_text, shorter, cut, index, text, chars, room)
    encodings = encode_parts(backend, known, shorter, offsets=offsets, sides=sides)
    # Strictly more than room: that tokens were lost is then known without reading the rest.
    while again := [index for index in np.flatnonzero(cut).tolist() if len(encodings[index]) <= room]:
        chars *= _GROWTH
        for index in again:
            cut[index] = False
            shorter[index] = parts[index]
            _shorten(long_text, shorter, cut, index, parts[index], chars, room)
        try:
            longer = encode_parts(backend, known, [shorter[index] for index in again], offsets=offsets)
        except TokenizerError as error:
            raise TokenizerError(again[error.index] // sides, error.reason) from None
        for index, encoding in zip(again, longer, strict=True):
            encodings[index] = encoding
    return encodings, cut


def _shorten(
    long_text: LongText, into: list[str], cut: NDArray[np.bool_], index: int, text: str, chars: int, room: int
) -> None:
    prefix = long_text.at_space(text, chars) or long_text.without_space(text, chars, room)
    if prefix is not None:
        into[index], cut[index] = prefix, True


def kept_tokens(length: NDArray[np.int64], room: int, truncation: str) -> NDArray[np.int64]:
    """Tokens kept of each text: the library's own rules. length, result: [rows, 1 or 2]."""
    if room == 0:
        return np.zeros_like(length)
    over = np.maximum(length.sum(1) - room, 0)
    if truncation == "longest_first":
        if length.shape[1] == 1:
            return np.minimum(length, room)
        short, long = length.min(1), length.max(1)
        short_kept = np.where(short + np.maximum(short, room - short) > room, room // 2, short)
        short_kept = np.where(short > room, room // 2, short_kept)
        long_kept = np.minimum(room - short_kept, long)
        first_longer = length[:, 0] > length[:, 1]
        kept = np.where(
            first_longer[:, None], np.stack([long_kept, short_kept], 1), np.stack([short_kept, long_kept], 1)
        )
        return np.where(over[:, None] > 0, kept, length)
    target = 0 if truncation == "only_first" else 1
    if target == length.shape[1]:
        if over.any():
            raise TokenizerError(int(np.argmax(over > 0)), "truncation='only_second' needs a second text")
        return length
    keep = length.copy()
    keep[:, target] -= over
    impossible = (over > 0) & (keep[:, target] <= 0)
    if length.shape[1] == 2 and impossible.any():
        raise TokenizerError(
            int(np.argmax(impossible)),
            f"its {'first' if target else 'second'} text by itself fills the {room} tokens there are and "
            f"truncation={truncation!r} leaves it whole",
        )
    return np.maximum(keep, 0)


def _assemble(
    encodings: list[Encoding | Ids],
    length: NDArray[np.int64],
    keep: NDArray[np.int64],
    template: Template,
    *,
    keep_left: bool,
    offsets: bool,
) -> Ragged:
    rows, sides = keep.shape
    row_splits = np.zeros(rows + 1, np.int64)
    np.cumsum(keep.sum(1) + template.added, out=row_splits[1:])
    start, end = row_splits[:-1], row_splits[1:]
    input_ids = np.empty(row_splits[-1], np.int32)
    is_text = np.ones(len(input_ids), np.bool_)
    after_first = start + len(template.head) + keep[:, 0]
    for base, ids in (
        (start, template.head),
        (after_first, template.middle),
        (end - len(template.tail), template.tail),
    ):
        for step, token in enumerate(ids):
            input_ids[base + step] = token
            is_text[base + step] = False
    kept = keep.ravel()
    spans = [
        slice(0, count) if keep_left else slice(total - count, total)
        for count, total in zip(kept.tolist(), length.ravel().tolist(), strict=True)
    ]
    tokens = int(kept.sum())
    pieces = [np.asarray(encoding.ids[span], np.int32) for encoding, span in zip(encodings, spans, strict=True)]
    input_ids[is_text] = np.concatenate(pieces) if pieces else 0
    owner = np.arange(rows, dtype=np.int32)
    truncated: NDArray[np.bool_] = np.any(keep < length, axis=1)
    if not offsets:
        return Ragged(input_ids, row_splits, owner, truncated)
    characters = np.zeros((len(input_ids), 2), np.int32)
    ends = (cast(Encoding, encoding).offsets[span] for encoding, span in zip(encodings, spans, strict=True))
    flat = chain.from_iterable(chain.from_iterable(ends))
    characters[is_text] = np.fromiter(flat, np.int32, 2 * tokens).reshape(-1, 2)
    sequence_ids = np.full(len(input_ids), -1, np.int8)
    sequence_ids[is_text] = np.repeat(np.tile(np.arange(sides, dtype=np.int8), rows), kept)
    return Ragged(input_ids, row_splits, owner, truncated, characters, sequence_ids)


def _overflow(windows: Tokenizer, texts: list[str], pairs: list[str] | None, *, offsets: bool) -> Ragged:
    items = texts if pairs is None else list(zip(texts, pairs, strict=True))
    encodings = encode_batch(windows, items, offsets=offsets, add_special_tokens=True)
    each = [[encoding, *encoding.overflowing] for encoding in encodings]
    rows = list(chain.from_iterable(each))
    row_splits = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=row_splits[1:])
    tokens = int(row_splits[-1])
    input_ids = np.fromiter(chain.from_iterable(row.ids for row in rows), np.int32, tokens)
    owner = np.repeat(np.arange(len(each), dtype=np.int32), [len(several) for several in each])
    truncated = np.zeros(len(each), np.bool_)
    if not offsets:
        return Ragged(input_ids, row_splits, owner, truncated)
    flat = chain.from_iterable(chain.from_iterable(row.offsets for row in rows))
    characters = np.fromiter(flat, np.int32, 2 * tokens).reshape(-1, 2)
    sides = chain.from_iterable(row.sequence_ids for row in rows)
    sequence_ids = np.fromiter((-1 if side is None else side for side in sides), np.int8, tokens)
    return Ragged(input_ids, row_splits, owner, truncated, characters, sequence_ids)
