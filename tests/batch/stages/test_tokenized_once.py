"""Tasks that share a tokenizer have a text tokenized once, and the same ids as alone."""

import numpy as np
import pyarrow as pa

from xlmr_ray import XLMRobertaTokenizer
from xlmr_ray.batch.stages.tokenized_once import TokenizedOnce


def test_the_same_texts_once_and_others_anew(mini, monkeypatch):
    real, calls = XLMRobertaTokenizer.encode_ragged, []
    monkeypatch.setattr(
        XLMRobertaTokenizer, "encode_ragged", lambda *a, **k: calls.append(k) or real(*a, **k), raising=True
    )
    once = TokenizedOnce.from_pretrained(mini)
    once.forget()
    texts = ["all human beings", "人人生而自由"]
    first = once.encode_ragged(pa.array(texts), max_length=64)
    again = once.encode_ragged(pa.array(texts), max_length=64)
    assert again is first
    assert len(calls) == 1
    shorter = once.encode_ragged(pa.array(texts), max_length=4)
    assert shorter.lengths.max() == 4
    paired = once.encode_ragged(pa.array(texts), pa.array(texts), max_length=64)
    assert paired.lengths.sum() > first.lengths.sum()
    once.forget()
    assert once.encode_ragged(pa.array(texts), max_length=64) is not first
    assert len(calls) == 4
    plain = XLMRobertaTokenizer.from_pretrained(mini).encode_ragged(pa.array(texts), max_length=64)
    assert np.array_equal(plain.input_ids, first.input_ids)
