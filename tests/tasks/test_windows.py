"""Windows against the `tokenizers` library's own, and what joins their results."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlmr_ray import UserError
from xlmr_ray.tasks.encoded import documents
from xlmr_ray.tasks.windows import averaged, check_stride, document_splits, document_tokens, window_spans, windows
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

TEXTS = [
    "Hello World!",
    "",
    "人人生而自由,在尊严和权利上一律平等。" * 9,
    "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق. " * 5,
    "many words " * 60,
    "</s>",
    "👩‍👩‍👧 🇫🇷 é e\u0301 " * 12,
]


@pytest.fixture(scope="module", params=["right", "left"])
def tokenizer(mini, request):
    return XLMRobertaTokenizer.from_pretrained(mini, truncation_side=request.param)


@pytest.mark.parametrize(("max_length", "stride"), [(16, 0), (16, 5), (16, 13), (40, 8), (512, 64)])
def test_the_librarys_windows(tokenizer, max_length, stride):
    table = windows(pa.chunked_array([TEXTS]), tokenizer, max_length=max_length, stride=stride, offsets=True)
    wanted = tokenizer.encode_ragged(TEXTS, max_length=max_length, stride=stride, overflow=True, offsets=True)
    bounds = list(zip(wanted.row_splits[:-1], wanted.row_splits[1:], strict=True))
    rows = []
    for owner, (begin, end) in zip(wanted.owner.tolist(), bounds, strict=True):
        special = wanted.sequence_ids[begin:end] < 0
        places = np.where(special[:, None], -1, wanted.offsets[begin:end])
        rows.append((owner, wanted.input_ids[begin:end].tolist(), places[:, 0].tolist(), places[:, 1].tolist()))
    got = table.select(["document", "input_ids", "start", "end"]).to_pylist()
    # Counted from the end, the library gives a text's last window first.
    assert sorted(tuple(row.values()) for row in got) == sorted(rows)
    assert table["document"].to_pylist() == sorted(table["document"].to_pylist())
    assert not any(table["truncated"].to_pylist())
    whole = tokenizer.encode_ragged(TEXTS, max_length=10**6)
    assert document_tokens(table).tolist() == whole.lengths.tolist()


def test_one_sequence_a_text_cut_and_flagged(tokenizer):
    table = windows(pa.chunked_array([TEXTS]), tokenizer, max_length=16, stride=None)
    wanted = tokenizer.encode_ragged(TEXTS, max_length=16)
    assert table["document"].to_pylist() == list(range(len(TEXTS)))
    assert table["input_ids"].combine_chunks().flatten().to_pylist() == wanted.input_ids.tolist()
    assert table["truncated"].to_pylist() == wanted.truncated.tolist()
    assert document_tokens(table).tolist() == wanted.lengths.tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=6), st.integers(1, 20), st.data(), st.booleans())
def test_every_token_is_in_a_window(lengths, room, data, left):
    stride = data.draw(st.integers(0, room - 1))
    document, first, last = window_spans(np.array(lengths, np.int64), room, stride, left=left)
    assert sorted(set(document.tolist())) == list(range(len(lengths)))
    for one, length in enumerate(lengths):
        mine = document == one
        spans = list(zip(first[mine].tolist(), last[mine].tolist(), strict=True))
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert all(end - begin <= room for begin, end in spans)
        if len(spans) > 1:
            assert all(end - begin == room for begin, end in (spans[1:] if left else spans[:-1]))
            assert all(end - begin == stride for (_, end), (begin, _) in pairwise(spans))


def test_means_weigh_windows_by_their_own_tokens():
    encoded = pa.table({"document": pa.array([0, 0, 2], pa.int32()), "own": pa.array([6, 2, 3], pa.int32())})
    assert documents(encoded).tolist() == [0, 0, 2]
    assert document_splits(encoded).tolist() == [0, 2, 3]
    mean = averaged(np.array([[1.0, 0.0], [5.0, 4.0], [7.0, 8.0]]), encoded)
    assert mean.tolist() == [[2.0, 1.0], [7.0, 8.0]]
    none = averaged(np.zeros((0, 2)), encoded.slice(0, 0))
    assert none.shape == (0, 2)


@pytest.mark.parametrize("stride", [-1, 14, 2.5, True, "8"])
def test_a_stride_that_does_not_fit(stride):
    with pytest.raises(UserError, match="stride must be a whole number from 0 to 13"):
        check_stride("any", "stride", stride, 14)
