"""Padding sequences that are already encoded."""

import json

import numpy as np
import pytest
import torch


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": False},
        {"padding": "max_length", "max_length": 12, "padding_side": "left"},
        {"pad_to_multiple_of": 8, "return_tensors": "pt"},
        {"return_attention_mask": False},
    ],
)
def test_pad(ours, theirs, options) -> None:
    rows = [
        {"input_ids": [0, 5, 2], "special_tokens_mask": [1, 0, 1]},
        {"input_ids": [0, 2], "special_tokens_mask": [1, 1]},
    ]
    for inputs in (rows, {"input_ids": [[0, 5, 2], [0, 7, 8, 9, 2]]}, {"input_ids": [0, 5, 2]}):
        if options.get("padding") is False and isinstance(inputs, dict) and options.get("return_tensors"):
            continue
        copy = json.loads(json.dumps(inputs))
        expected, actual = theirs.pad(copy, **options), ours.pad(inputs, **options)
        assert {k: np.asarray(v, object).tolist() for k, v in actual.items()} == {
            k: np.asarray(v, object).tolist() for k, v in expected.items()
        }
    tensors = ours.pad([{"input_ids": torch.tensor([0, 5, 2])}, {"input_ids": torch.tensor([0, 2])}])
    assert tensors.input_ids.tolist() == [[0, 5, 2], [0, 2, 1]]
