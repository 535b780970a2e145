"""What a call returns: the inputs by name, and where each token came from."""

import pickle

import pytest
import torch

from xlmr_ray.errors import UserError


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
