"""What a call returns: the inputs by name, and where each token came from."""

import pickle

import numpy as np
import pytest
import torch
from transformers import BatchEncoding as Theirs

from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.batch_encoding import BatchEncoding


def test_batch_encoding(ours, theirs) -> None:
    text, pair = "Hello wide world", "again and again"
    actual = ours([text], [pair], return_tensors="pt")
    expected = theirs([text], [pair], return_tensors="pt")
    assert dict(**actual).keys() == {"input_ids", "attention_mask"}
    assert actual.to("cpu")["input_ids"] is not None
    assert (actual.n_sequences, actual.is_fast) == (2, True)
    for char in range(len(text)):
        assert actual.char_to_token(0, char) == expected.char_to_token(0, char)
        assert actual.char_to_token(char, sequence_index=1) == expected.char_to_token(char, sequence_index=1)
        assert actual.char_to_word(char) == expected.char_to_word(char)
    for token in range(actual.input_ids.shape[1]):
        assert actual.token_to_chars(token) == expected.token_to_chars(token)
        assert actual.token_to_word(0, token) == expected.token_to_word(0, token)
        assert actual.token_to_sequence(token) == expected.token_to_sequence(token)
    assert actual.word_to_tokens(1) == expected.word_to_tokens(1)
    assert actual.word_to_chars(0, 1, 1) == expected.word_to_chars(0, 1, 1)
    assert actual[0].ids == expected[0].ids
    actual["labels"] = torch.tensor([1])
    assert actual.labels.item() == 1
    with pytest.raises(AttributeError, match="nothing"):
        _ = actual.nothing
    with pytest.raises(UserError, match="padding=True"):
        ours(["a", "a b c d"], return_tensors="pt")
    assert pickle.loads(pickle.dumps(actual)).input_ids.tolist() == actual.input_ids.tolist()


@pytest.mark.parametrize("words", [False, True])
def test_places_of_tokens_words_and_characters(ours, theirs, words) -> None:
    if words:
        text, pair = [["Straßburg", "is", "ﬁne", ""]], [["自由", "x"]]
    else:
        text, pair = ["Hello ﬁne e\u0301 world 👩‍👩‍👧"], ["again, 自由"]
    options = {"is_split_into_words": words, "padding": "max_length", "max_length": 40}
    ours, theirs = ours(text, pair, **options), theirs(text, pair, **options)
    for place in range(40):
        for method in ("char_to_token", "char_to_word", "word_to_tokens", "word_to_chars"):
            for sequence in (0, 1):
                assert outcome(ours, method, 0, place, sequence) == outcome(theirs, method, 0, place, sequence), method
        for method in ("token_to_sequence", "token_to_word", "token_to_chars"):
            assert outcome(ours, method, place) == outcome(theirs, method, place), method
            # From the end, at which the reference raises AttributeError.
            assert outcome(ours, method, place - 40) == outcome(ours, method, place), method
    assert (ours.tokens(), ours.word_ids(), ours.sequence_ids()) == (
        theirs.tokens(),
        theirs.word_ids(),
        theirs.sequence_ids(),
    )


def outcome(encoding, method: str, *place: int):
    """The answer, None where there is none: there the reference's CharSpan fails to be made, or the library raises."""
    try:
        return getattr(encoding, method)(*place)
    except (IndexError, OverflowError, TypeError):
        return None


def test_made_by_hand_as_the_reference_is(ours) -> None:
    for data, options in (
        ({"input_ids": [0, 5, 2], "length": [3]}, {"tensor_type": "pt", "prepend_batch_axis": True}),
        ({"input_ids": [[0, 5], [2, 3]]}, {"tensor_type": "np"}),
        ({"input_ids": [[0, 5], [2]]}, {"tensor_type": "np"}),
        ({"input_ids": []}, {"tensor_type": "pt"}),
        ({"input_ids": [[1, 2]], "labels": torch.tensor([1])}, {"tensor_type": "pt", "n_sequences": 1}),
        ({"pixels": [np.zeros((2, 2)), np.ones((2, 2))]}, {"tensor_type": "pt"}),
    ):
        actual, expected = BatchEncoding(dict(data), **options), Theirs(dict(data), **options)
        assert actual.n_sequences == expected.n_sequences
        for name, value in expected.items():
            assert type(actual[name]) is type(value)
            assert actual[name].shape == value.shape
            assert actual[name].dtype == value.dtype
            assert str(actual[name].tolist()) == str(value.tolist())
    encodings = ours.backend_tokenizer.encode("a b")
    made = BatchEncoding({"input_ids": [encodings.ids]}, encodings)
    assert made.tokens() == encodings.tokens
    assert dict(made) == {"input_ids": [encodings.ids]}
    assert made[0:1][0].ids == encodings.ids
    assert BatchEncoding({"input_ids": [[1], [2]]})[1:] == {"input_ids": [[2]]}
    with pytest.raises(KeyError, match="not an input's name"):
        BatchEncoding({"input_ids": [[1]]})[0]
    with pytest.raises(UserError, match="no encodings"):
        BatchEncoding({"input_ids": [[1]]}).tokens()
    with pytest.raises(UserError, match="cannot be cast"):
        made.to(torch.float16)
    with pytest.raises(UserError, match="return_tensors='tf'"):
        BatchEncoding({"input_ids": [[1]]}, tensor_type="tf")
