"""Texts and pairs encoded as the library does, without what two long texts cost there.

To cut a pair with `longest_first` the library makes every pair of the two texts' windows, even where only the first is
wanted: a million windows and more than a minute for two texts of 2,000 tokens at a length of 8. Here each of two such
texts is cut by itself.
"""

import json
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from xlmr_ray.tokenizer.backends import Clones, Pad, TruncationSettings
from xlmr_ray.tokenizer.ragged import TokenizerError, encode_batch, kept_tokens

# Tokens in all of an item's windows, at some 200 bytes each: above, each text is cut by itself.
_MOST = 1_000_000
# Above, the windows themselves are refused to a caller that asks for them.
_MOST_ASKED = 20_000_000


def encode_items(
    clones: Clones,
    items: list[Any],
    cut: TruncationSettings | None,
    to_pad: Pad | None,
    *,
    added: int,
    special: bool,
    split_special: bool,
    words: bool,
    overflow: bool,
) -> list[Encoding]:
    """An encoding an item, a text or a pair (of lists of words with `words`); with `overflow`, its further windows too.

    `added`: special tokens of a sequence. Raises TokenizerError with the index of the item that cannot be encoded.
    """
    whole = clones.get(None, None, split_special=split_special)
    long = [] if cut is None else _long(items, cut, added, words=words)
    if cut is not None and overflow:
        check_windows(whole, items, cut, added, words=words)
    if cut is None or overflow or not long:
        backend = clones.get(cut, to_pad, split_special=split_special)
        return encode_batch(backend, items, offsets=True, add_special_tokens=special, is_pretokenized=words)
    alone = {index: _cut_alone(whole, items, index, cut, added, special=special, words=words) for index in long}
    others = [index for index in range(len(items)) if index not in alone]
    try:
        encodings = encode_batch(
            clones.get(cut, None, split_special=split_special),
            [items[index] for index in others],
            offsets=True,
            add_special_tokens=special,
            is_pretokenized=words,
        )
    except TokenizerError as error:
        raise TokenizerError(others[error.index], error.reason) from None
    alone |= dict(zip(others, encodings, strict=True))
    rows = [alone[index] for index in range(len(items))]
    if to_pad is not None:
        _pad(rows, to_pad)
    return rows


def check_windows(
    whole: Tokenizer, items: list[Any], cut: TruncationSettings, added: int, *, words: bool = False
) -> None:
    """Raise TokenizerError for the first pair that has too many windows to make them all."""
    room = max(cut.max_length - added, 1)
    for index in _long(items, cut, added, words=words):
        first, second = map(len, _encoded_parts(whole, items, index, words=words))
        tokens = 4 * first * second // room
        if 2 * min(first, second) > room and tokens > _MOST_ASKED:
            raise TokenizerError(
                index,
                f"every window of the one text with every one of the other makes about {tokens:,} tokens; cut one text "
                "alone (truncation='only_first' or 'only_second')",
            )


def _long(items: list[Any], cut: TruncationSettings, added: int, *, words: bool) -> list[int]:
    """The indices of pairs with many windows, were every character a token."""
    if cut.strategy != "longest_first":
        return []
    room = max(cut.max_length - added, 1)
    found = []
    for index, item in enumerate(items):
        if isinstance(item, (list, tuple)) and len(item) == 2 and (not words or isinstance(item[0], (list, tuple))):
            first, second = map(_characters, item)
            if 2 * min(first, second) > room and 4 * first * second // room > _MOST:
                found.append(index)
    return found


def _characters(part: Any) -> int:
    if isinstance(part, str):
        return len(part)
    return sum(map(_characters, part)) if isinstance(part, (list, tuple)) else 0


def _encoded_parts(whole: Tokenizer, items: list[Any], index: int, *, words: bool) -> list[Encoding]:
    try:
        return encode_batch(
            whole,
            list(items[index]),
            offsets=True,
            add_special_tokens=False,
            is_pretokenized=words,
            texts_an_item=2,
        )
    except TokenizerError as error:
        raise TokenizerError(index, error.reason) from None


def _cut_alone(
    whole: Tokenizer, items: list[Any], index: int, cut: TruncationSettings, added: int, *, special: bool, words: bool
) -> Encoding:
    """The first of the windows that the library would make."""
    parts = _encoded_parts(whole, items, index, words=words)
    length = np.array([[len(part) for part in parts]], np.int64)
    keep = kept_tokens(length, cut.max_length - added, cut.strategy)[0].tolist()
    first, second = (_span(part, count, cut.direction == "right") for part, count in zip(parts, keep, strict=True))
    return whole.post_process(first, second, special)


def _span(encoding: Encoding, keep: int, left: bool) -> Encoding:
    """Its first or last tokens, as of no sequence yet: post-processing says which it is."""
    state = json.loads(encoding.__getstate__())
    span = slice(0, keep) if left else slice(len(encoding) - keep, None)
    lists = {name: value[span] for name, value in state.items() if isinstance(value, list)}
    part = Encoding()
    part.__setstate__(json.dumps(state | lists | {"overflowing": [], "sequence_ranges": {}}).encode())
    return part


def _pad(rows: list[Encoding], to: Pad) -> None:
    """As the library pads a batch, in place."""
    length = max(map(len, rows)) if to.length is None else to.length
    if to.pad_to_multiple_of:
        length = -(-length // to.pad_to_multiple_of) * to.pad_to_multiple_of
    for row in rows:
        row.pad(length, direction=to.direction, pad_id=to.pad_id, pad_token=to.pad_token)
