"""Ids, pieces and text, each into the others."""

import numpy as np
import pytest
import torch

from tests.tokenizer.cases import SPECIAL
from xlmr_ray.errors import UserError


def test_conversions(ours, theirs) -> None:
    text = "Hello, world: it's <mask> time ."
    ids = ours.encode(text)
    assert ours.tokenize(text) == theirs.tokenize(text)
    assert ours.tokenize(text, add_special_tokens=True) == theirs.tokenize(text, add_special_tokens=True)
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens(ids, skip_special_tokens=True) == theirs.convert_ids_to_tokens(ids, True)
    assert ours.convert_ids_to_tokens(5) == theirs.convert_ids_to_tokens(5)
    tokens = [*theirs.convert_ids_to_tokens(ids), "no such piece"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
    assert ours.get_special_tokens_mask(ids, already_has_special_tokens=True) == theirs.get_special_tokens_mask(
        ids, already_has_special_tokens=True
    )
    for forms in (np.array(ids), torch.tensor(ids), [ids, ids], torch.tensor([ids, ids]), ids[1]):
        assert ours.decode(forms) == theirs.decode(forms)
    assert ours.batch_decode([torch.tensor(ids), torch.tensor(ids[:3])]) == [ours.decode(ids), ours.decode(ids[:3])]
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.get_vocab() == theirs.get_vocab()
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)
    assert ours.special_tokens_map == theirs.special_tokens_map
    for name in SPECIAL:
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_id")
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)


def test_formatting_by_hand_is_what_a_call_gives(ours) -> None:
    first, second = (ours.encode(text, add_special_tokens=False) for text in ("one two", "three"))
    for text_pair, ids in ((None, None), ("three", second)):
        encoded = ours("one two", text_pair, return_special_tokens_mask=True)
        assert ours.build_inputs_with_special_tokens(first, ids) == encoded.input_ids
        assert ours.get_special_tokens_mask(first, ids) == encoded.special_tokens_mask
        assert ours.create_token_type_ids_from_sequences(first, ids) == [0] * len(encoded.input_ids)
    with pytest.raises(UserError, match="token_ids_1"):
        ours.get_special_tokens_mask(first, second, already_has_special_tokens=True)


def test_forms_of_ids(ours, theirs) -> None:
    ids = ours.encode("Hello, world: it's <mask> time .")
    for form in (
        np.array(ids, np.int32),
        [np.int64(token) for token in ids],
        [torch.tensor(token) for token in ids],
        [np.array(ids), ids[:2]],
        ours("Hello").input_ids,
        ours(["Hello", "a b"], padding=True, return_tensors="pt").input_ids,
        [],
        [[]],
        10**6,
        [5, 10**6, 6],
    ):
        assert ours.decode(form) == theirs.decode(form), form
        if not isinstance(form, int):
            assert ours.batch_decode(form) == theirs.batch_decode(form), form
    assert ours.decode(ids[3]) == theirs.decode(ids[3])
    assert ours.convert_ids_to_tokens([5, 10**6]) == theirs.convert_ids_to_tokens([5, 10**6])
    assert ours.convert_ids_to_tokens(torch.tensor(ids)) == ours.convert_ids_to_tokens(ids)
    assert ours.clean_up_tokenization("it 's , no ?") == theirs.clean_up_tokenization("it 's , no ?")


@pytest.mark.parametrize("wrong", [[5, -100, 2], [5, "a"], [1.5], torch.tensor([5, -100])])
def test_what_is_no_id_is_refused(ours, wrong) -> None:
    with pytest.raises(UserError, match=r"cannot decode (-100|'a'|1\.5): ids are integers from 0 on"):
        ours.decode(wrong)


def test_what_is_no_token_is_refused(ours) -> None:
    for call in (
        lambda: ours.convert_ids_to_tokens([-1]),
        lambda: ours.convert_ids_to_tokens("a"),
        lambda: ours.convert_tokens_to_ids([5]),
    ):
        with pytest.raises(UserError, match="expected"):
            call()
