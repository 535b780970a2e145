"""Saving, loading, and what the files beside a vocabulary say."""

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from transformers import XLMRobertaTokenizer as Reference

from tests.tokenizer.cases import SPECIAL, TEXTS, same
from xlmr_ray.checkpoint import fetch
from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer


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


MASK = {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": True, "single_word": False}
ONE = MASK | {"content": "<one>", "special": True}
PLAIN = {"content": "plain", "lstrip": False, "rstrip": False, "normalized": True, "single_word": False}


@pytest.mark.parametrize(
    ("files", "overrides"),
    [
        ({}, {}),
        ({}, {"mask_token": "<one>", "padding_side": "left", "model_max_length": 9, "add_prefix_space": False}),
        ({"special_tokens_map": {"mask_token": MASK}, "tokenizer_config": {"mask_token": "<mask>"}}, {}),
        ({"tokenizer_config": {"model_max_length": 77, "truncation_side": "left", "add_prefix_space": False}}, {}),
        ({"added_tokens": {"plain": 20000, "<one>": 20001}, "tokenizer_config": {"pad_token": "<one>"}}, {}),
        ({"tokenizer_config": {"model_input_names": ["input_ids", "token_type_ids"]}}, {}),
        (
            {
                "tokenizer_config": {
                    "mask_token": "<mask>",
                    "added_tokens_decoder": {"20001": PLAIN, "20000": ONE, "19999": MASK | {"special": True}},
                    "extra_special_tokens": ["<one>"],
                },
                "special_tokens_map": {"mask_token": "<pad>"},
            },
            {"truncation_side": "left"},
        ),
        (
            {"tokenizer_config": {"extra_special_tokens": ["<one>"]}},
            {"extra_special_tokens": ["<two>"], "cls_token": "</s>"},
        ),
    ],
)
def test_what_stands_beside_a_vocabulary(sentencepiece_folder, tmp_path, files, overrides) -> None:
    """A folder without tokenizer.json, as the reference reads it."""
    shutil.copytree(sentencepiece_folder, tmp_path, dirs_exist_ok=True)
    for name, values in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    ours = XLMRobertaTokenizer.from_pretrained(tmp_path, **overrides)
    theirs = Reference.from_pretrained(str(tmp_path), **overrides)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    for name in ("model_max_length", "padding_side", "truncation_side", "model_input_names", "add_prefix_space"):
        assert getattr(ours, name) == getattr(theirs, name), name
    texts = ["Hello  <mask> world", "x <one> <two> plain plainly", "no <pad> </s>"]
    same(ours, theirs, texts, padding=True, truncation=True, return_offsets_mapping=True)
    # The reference counts sentencepiece's own <s> and </s> as extra where the files name no extra tokens.
    assert ours.all_special_tokens == theirs.all_special_tokens


@pytest.fixture(scope="session")
def sentencepiece_folder(small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    XLMRobertaTokenizer.from_pretrained(small).save_vocabulary(folder)
    return folder


def test_extra_tokens_of_old_files_are_kept(sentencepiece_folder, tmp_path) -> None:
    """The reference loses them where there is no tokenizer.json, since it finds <s> and </s> extra."""
    shutil.copytree(sentencepiece_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<one>", ONE]}))
    ours = XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert ours.extra_special_tokens == ["<one>", "<one>"]
    assert ours.convert_tokens_to_ids("<one>") == len(ours) - 1 == 20_000
    assert ours.tokenize("a<one>b") == ["▁a", "<one>", "▁b"]


def test_arguments_go_before_the_files(small) -> None:
    with_all = {"model_max_length": 9, "padding_side": "left", "truncation_side": "left"}
    ours = XLMRobertaTokenizer.from_pretrained(small, **with_all, pad_token="</s>", extra_special_tokens=["<new>"])
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(small / "tokenizer.json"),
        **with_all,
        **(SPECIAL | {"pad_token": "</s>"}),
        extra_special_tokens=["<new>"],
        model_input_names=["input_ids", "attention_mask"],
    )
    same(ours, theirs, ["a", "b <new> c d e f g h i j k"], padding=True, truncation=True)
    bare = XLMRobertaTokenizer.from_pretrained(small, add_prefix_space=False)
    assert (bare.add_prefix_space, ours.add_prefix_space) == (False, True)
    assert bare.tokenize("Hello world")[0] == "H"
    assert bare.decode(bare.encode("Hello", add_special_tokens=False)) == "Hello"
    assert pickle.loads(pickle.dumps(bare)).tokenize("Hello")[0] == "H"
    assert ours.name_or_path == str(small)
    assert XLMRobertaTokenizer.from_pretrained(small, no_such_argument=1).init_kwargs["no_such_argument"] == 1


def test_in_a_folder_of_a_hub_s_repository(small, tmp_path, monkeypatch) -> None:
    from huggingface_hub.utils import filter_repo_objects

    files = {f"inner/{file.name}": file for file in small.glob("*.json")}

    def download(model: str, **options: Any) -> str:
        for path in filter_repo_objects(files, allow_patterns=options["allow_patterns"]):
            (tmp_path / "hub" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(files[path], tmp_path / "hub" / path)
        return str(tmp_path / "hub")

    monkeypatch.setattr(fetch, "snapshot_download", download)
    inner = XLMRobertaTokenizer.from_pretrained("team/model", subfolder="inner")
    assert inner.fingerprint == XLMRobertaTokenizer.from_pretrained(small).fingerprint


def test_other_names_and_places(small, tmp_path) -> None:
    from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizerFast

    (tmp_path / "inner").mkdir()
    for file in small.glob("*token*.json"):
        shutil.copy(file, tmp_path / "inner")
    expected = XLMRobertaTokenizer.from_pretrained(small)
    inner = XLMRobertaTokenizerFast.from_pretrained(tmp_path, subfolder="inner", use_fast=True, trust_remote_code=False)
    assert inner.fingerprint == expected.fingerprint
    assert XLMRobertaTokenizer(str(small / "tokenizer.json"), merges_file="merges.txt")("a b").data == inner("a b").data
    written = inner.save_pretrained(tmp_path / "saved", filename_prefix="x")
    assert [Path(name).name for name in written] == [
        "x-tokenizer.json",
        "x-tokenizer_config.json",
        "x-special_tokens_map.json",
    ]
    with pytest.raises(UserError, match="expected a folder, got a file"):
        inner.save_pretrained(tmp_path / "inner" / "tokenizer.json")
