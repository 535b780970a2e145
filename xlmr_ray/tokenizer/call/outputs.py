"""The library's encodings -> the named columns that a call asked for."""

from typing import Any

from tokenizers import Encoding


def as_columns(
    each: list[list[Encoding]],
    *,
    token_type_ids: bool,
    attention_mask: bool,
    special_tokens_mask: bool,
    offsets_mapping: bool,
    length: bool,
    overflow_mapping: bool,
) -> dict[str, Any]:
    """`each`: the sequences of each text, several where it overflowed. A row of a column is a sequence."""
    rows = [encoding for several in each for encoding in several]
    data: dict[str, Any] = {"input_ids": [row.ids for row in rows]}
    if token_type_ids:
        data["token_type_ids"] = [row.type_ids for row in rows]
    if attention_mask:
        data["attention_mask"] = [row.attention_mask for row in rows]
    if special_tokens_mask:
        data["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
    if offsets_mapping:
        data["offset_mapping"] = [row.offsets for row in rows]
    if length:
        data["length"] = [len(row.ids) for row in rows]
    if overflow_mapping:
        data["overflow_to_sample_mapping"] = [i for i, several in enumerate(each) for _ in several]
    return data


def without_batch(data: dict[str, Any]) -> dict[str, Any]:
    """The columns of one text without the dimension of the batch; lengths keep it, as in transformers."""
    return {name: value[0] if isinstance(value[0], list) else value for name, value in data.items()}
