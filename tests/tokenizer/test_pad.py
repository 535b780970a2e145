"""Padding sequences that are already encoded."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tokenizer.cases import MANY
from xlmr_ray.errors import UserError


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


ROW = st.lists(st.integers(0, 99), max_size=6)


@MANY
@given(data=st.data())
def test_any_sequences(ours, theirs, data) -> None:
    """Lists of dictionaries, a dictionary of lists, or one sequence; arrays and tensors too."""
    ids = data.draw(st.lists(ROW, min_size=1, max_size=4))
    columns = {"input_ids": ids}
    for name in ("attention_mask", "token_type_ids", "special_tokens_mask"):
        if data.draw(st.booleans()):
            columns[name] = [[1] * len(row) for row in ids]
    if data.draw(st.booleans()):
        columns["labels"] = list(range(len(ids)))
    options = {
        "padding": data.draw(st.sampled_from([True, False, "longest", "max_length", "do_not_pad"])),
        "max_length": data.draw(st.sampled_from([None, 9])),
        "pad_to_multiple_of": data.draw(st.sampled_from([None, 4])),
        "padding_side": data.draw(st.sampled_from([None, "left", "right"])),
        "return_attention_mask": data.draw(st.sampled_from([None, True, False])),
    }
    as_rows = [{name: value[row] for name, value in columns.items()} for row in range(len(ids))]
    # For one empty sequence the reference forgets the mask.
    forms = [columns, as_rows, *([as_rows[0]] if ids[0] else [])]
    if all(ids):
        arrays = [{name: np.array(value) for name, value in row.items()} for row in as_rows]
        even = options["padding"] in (True, "longest", "max_length") or len({len(row) for row in ids}) == 1
        # The reference does not take a column of integers beside tensors back as one.
        forms += [arrays] if even and "labels" not in columns else []
    for form in forms:
        expected = theirs.pad(copy.deepcopy(form), verbose=False, **options)
        actual = ours.pad(form, **options)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert type(actual[name]) is type(value)
            # A mask that was given and not asked for is not padded: then an array holds arrays.
            assert str(listed(actual[name])) == str(listed(value)), name


def listed(value):
    return value.tolist() if hasattr(value, "tolist") else value


def test_a_collate_function(ours, theirs) -> None:
    rows = [ours("a b c"), ours("d", return_special_tokens_mask=False)]
    expected = theirs.pad([dict(row) for row in rows], return_tensors="pt")
    actual = ours.pad(rows, return_tensors="pt")
    assert {name: value.tolist() for name, value in actual.items()} == {
        name: value.tolist() for name, value in expected.items()
    }
    asked = ours.pad([{"input_ids": torch.tensor([5, 6])}, {"input_ids": torch.tensor([5])}], return_tensors="np")
    assert isinstance(asked.input_ids, np.ndarray)


@pytest.mark.parametrize(
    ("inputs", "options", "said"),
    [
        ({"ids": [1]}, {}, "expected input_ids, got ids"),
        ([{"input_ids": [1]}, {"ids": [1]}], {}, "sequence 1 has no input_ids"),
        ({"input_ids": [[1]], "labels": [1, 2]}, {}, "labels has 2 sequences, input_ids has 1"),
        ({"input_ids": [[1, 2], [1]]}, {"padding": False, "return_tensors": "pt"}, "padding=True"),
        ({"input_ids": [[1]]}, {"padding": "wide"}, "padding='wide': expected one of longest"),
        ({"input_ids": [[1]]}, {"padding_side": "up"}, "padding_side='up': expected one of right, left"),
        ({"input_ids": [[1]]}, {"pad_to_multiple_of": 0}, "pad_to_multiple_of=0: expected an integer, 1 or more"),
        (5, {}, "expected a dictionary or a list of dictionaries, got int"),
        (["a"], {}, "expected a dictionary or a list of dictionaries, got a list of str"),
    ],
)
def test_what_cannot_be_padded_is_said(ours, inputs, options, said) -> None:
    with pytest.raises(UserError, match=said):
        ours.pad(inputs, **options)
