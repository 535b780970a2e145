"""Saving, loading, and what the files beside a vocabulary say."""

import json
import pickle
import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.tokenizer.cases import TEXTS
from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer import XLMRobertaTokenizer


def test_saved_and_loaded_again(ours, small, tmp_path) -> None:
    files = ours.save_pretrained(tmp_path)
    assert {Path(name).name for name in files} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    again = XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS).data == ours(TEXTS).data
    assert again.fingerprint == ours.fingerprint
    assert again.model_max_length == ours.model_max_length
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert theirs(TEXTS).input_ids == ours(TEXTS).input_ids
    copy = pickle.loads(pickle.dumps(ours))
    assert (copy.fingerprint, copy(TEXTS).data) == (ours.fingerprint, ours(TEXTS).data)


def test_fingerprint_tells_tokenizers_apart(small, tmp_path) -> None:
    one = XLMRobertaTokenizer.from_pretrained(small)
    assert re.fullmatch(r"[0-9a-f]{16}", one.fingerprint)
    assert XLMRobertaTokenizer.from_pretrained(small).fingerprint == one.fingerprint
    assert XLMRobertaTokenizer.from_pretrained(small, truncation_side="left").fingerprint != one.fingerprint
    spec = json.loads((small / "tokenizer.json").read_text())
    spec["model"]["vocab"][10][1] -= 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert XLMRobertaTokenizer.from_pretrained(tmp_path).fingerprint != one.fingerprint


def test_settings_stored_in_the_file_do_not_act(small, tmp_path) -> None:
    spec = json.loads((small / "tokenizer.json").read_text())
    spec["truncation"] = {"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    special = {"mask_token": {"content": "<mask>", "lstrip": True}, "pad_token": {"content": "<pad>"}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    tokenizer = XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer("a b c d e f g h").input_ids) > 5
    assert tokenizer.truncation_side == "left"
    assert (tokenizer.mask_token, tokenizer.pad_token) == ("<mask>", "<pad>")


def test_missing_and_broken_files_are_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"tokenizer.json and sentencepiece.bpe.model") as caught:
        XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json"):
        XLMRobertaTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1")
    with pytest.raises(UserError, match=r"tokenizer_config.json"):
        XLMRobertaTokenizer.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        XLMRobertaTokenizer(vocab_file=tmp_path / "none")
    with pytest.raises(UserError, match="no such folder"):
        XLMRobertaTokenizer().save_vocabulary(tmp_path / "none")
