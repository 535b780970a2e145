"""Padding sequences that are already encoded."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.batch_encoding import BatchEncoding


def pad(
    encoded: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    fill: Mapping[str, int],
    padding: bool,
    length: int | None,
    multiple: int | None,
    left: bool,
    attention_mask: bool,
    tensors: str | None,
) -> BatchEncoding:
    """One sequence, a dictionary of lists, or a list of dictionaries, padded to one length.

    `length` is the wanted length, the longest sequence's when None; it is rounded up to a `multiple`. Inputs named in
    `fill` are padded with that value, the attention mask with 0, others stay as they are. Arrays and tensors come back
    as such, unless `tensors` ("pt" or "np") asks for a kind. Raises UserError when there is no `input_ids`.
    """
    if not isinstance(encoded, Mapping):
        encoded = _columns(encoded)
    if "input_ids" not in encoded:
        raise UserError(f"pad: expected input_ids, got {', '.join(encoded) or 'nothing'}")
    kind = tensors or _tensor_type(encoded["input_ids"])
    inputs = {name: _lists(value) for name, value in encoded.items()}
    ids = inputs["input_ids"]
    if not ids:
        return BatchEncoding(inputs | ({"attention_mask": []} if attention_mask else {}), tensor_type=tensors)
    single = not isinstance(ids[0], (list, tuple))
    if single:
        inputs = {name: [value] for name, value in inputs.items()}
        ids = inputs["input_ids"]
    uneven = [name for name, value in inputs.items() if len(value) != len(ids)]
    if uneven:
        raise UserError(f"pad: {uneven[0]} has {len(inputs[uneven[0]])} sequences, input_ids has {len(ids)}")
    if attention_mask and "attention_mask" not in inputs:
        inputs["attention_mask"] = [[1] * len(row) for row in ids]
    if padding:
        wanted = length if length is not None else max(map(len, ids))
        if multiple:
            wanted = -(-wanted // multiple) * multiple
        missing = [wanted - len(row) for row in ids]
        values = dict(fill) | ({"attention_mask": 0} if attention_mask else {})
        for name in values.keys() & inputs.keys():
            inputs[name] = [
                [values[name]] * gap + list(row) if left else list(row) + [values[name]] * gap
                for row, gap in zip(inputs[name], missing, strict=True)
            ]
    data = {name: value[0] for name, value in inputs.items()} if single else inputs
    return BatchEncoding(data, tensor_type=kind)


def _columns(rows: Any) -> dict[str, list[Any]]:
    if not isinstance(rows, (list, tuple)) or any(not isinstance(row, Mapping) for row in rows):
        got = f"a list of {type(rows[0]).__name__}" if isinstance(rows, (list, tuple)) else type(rows).__name__
        raise UserError(f"pad: expected a dictionary or a list of dictionaries, got {got}")
    names = list(rows[0]) if rows else []
    for index, row in enumerate(rows):
        if missing := [name for name in names if name not in row]:
            raise UserError(f"pad: sequence {index} has no {missing[0]}, and the first has")
    return {name: [row[name] for row in rows] for name in names}


def _tensor_type(value: Any) -> str | None:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    if isinstance(value, (np.ndarray, np.generic)):
        return "np"
    return "pt" if hasattr(value, "numpy") else None


def _lists(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_lists(one) for one in value] if isinstance(value, (list, tuple)) else value
