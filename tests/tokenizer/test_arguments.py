"""Calls that scripts make of a tokenizer, of transformers' and of ours."""

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
import transformers

import xlmr_ray
from xlmr_ray.errors import UserError

TEXTS = ["All human beings are born FREE and equal.", "Alle Menschen sind frei."]


def made(library: ModuleType, folder: Path, **arguments: Any) -> Any:
    return library.XLMRobertaTokenizer.from_pretrained(pretrained_model_name_or_path=folder, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_fast": True, "from_slow": False, "legacy": True, "trust_remote_code": False, "token": None},
        {"do_lower_case": True, "cache_dir": None, "force_download": False, "revision": "main", "subfolder": ""},
        {"model_max_length": 7, "padding_side": "left", "proxies": None, "local_files_only": True},
    ],
)
def test_arguments_of_from_pretrained(mini: Path, arguments: dict[str, Any]) -> None:
    theirs, ours = (made(library, mini, **arguments) for library in (transformers, xlmr_ray))
    for how in ({"truncation": True, "padding": True}, {}):
        assert dict(ours(TEXTS, **how)) == dict(theirs(TEXTS, **how))


def test_arguments_by_position(mini: Path) -> None:
    theirs, ours = (made(library, mini) for library in (transformers, xlmr_ray))
    for positional in ((None, None, None, False), (None, None, None, True, "max_length", True, 6), (TEXTS[::-1],)):
        assert dict(ours(TEXTS, *positional)) == dict(theirs(TEXTS, *positional))
    for positional in ((None, False), (TEXTS[1], True, "max_length", "only_first", 40, 0, "left")):
        assert ours.encode(TEXTS[0], *positional) == theirs.encode(TEXTS[0], *positional)


def test_unknown_keywords_are_warned_of(mini: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs, ours = (made(library, mini, colour="red") for library in (transformers, xlmr_ray))
    assert "from_pretrained: no use for colour: ignored" in caplog.text
    assert ours.init_kwargs["colour"] == theirs.init_kwargs["colour"] == "red"
    assert ours.init_kwargs["model_max_length"] == theirs.init_kwargs["model_max_length"]
    with caplog.at_level(logging.WARNING):
        for call in (lambda t: t(TEXTS, size=3)["input_ids"], lambda t: t.decode([9, 8], spaces=1)):
            caplog.clear()
            assert call(ours) == call(theirs)
            assert "no use for" in caplog.text
    assert ours.tokenize(TEXTS[0], size=3) == theirs.tokenize(TEXTS[0])
    with pytest.raises(UserError, match="'model_max_lenght' is no argument of a tokenizer, did you mean 'model_max_l"):
        made(xlmr_ray, mini, model_max_lenght=3)
    with pytest.raises(UserError, match="use_auth_token is not supported: it is called token now"):
        made(xlmr_ray, mini, use_auth_token="x")


def test_a_list_of_extra_tokens_is_a_copy(mini: Path) -> None:
    for replace in (True, False):
        pair = [made(library, mini) for library in (transformers, xlmr_ray)]
        for tokenizer in pair:
            tokenizer.add_special_tokens({"extra_special_tokens": ["<a>"]})
            more = tokenizer.extra_special_tokens
            more.append("<b>")
            assert tokenizer.extra_special_tokens == ["<a>"]
            tokenizer.add_special_tokens({"extra_special_tokens": more}, replace_extra_special_tokens=replace)
        theirs, ours = pair
        assert ours.extra_special_tokens == theirs.extra_special_tokens == ["<a>", "<b>"]
        assert ours("one <a> two <b>")["input_ids"] == theirs("one <a> two <b>")["input_ids"]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"new_special_tokens": ["<new>"], "length": 40},
        {"special_tokens_map": {"<s>": "[B]", "<unk>": "[U]", "<mask>": "[M]"}},
    ],
)
def test_a_vocabulary_learned_from_texts(mini: Path, udhr: Path, how: dict[str, Any], tmp_path: Path) -> None:
    table = pq.read_table(sorted(udhr.glob("*.parquet")), columns=["lang", "text"])
    lines = [row["text"] for row in table.to_pylist() if row["lang"] in ("de", "fr")][:200]
    batches = [lines[i : i + 10] for i in range(0, len(lines), 10)]
    theirs, ours = (
        made(library, mini).train_new_from_iterator(iter(batches), 300, **how) for library in (transformers, xlmr_ray)
    )
    # Transformers adds the old names of special tokens behind the vocabulary, too.
    left_over = {token for token in how.get("special_tokens_map", {}) if token in theirs.get_vocab()}
    # Pieces that are equally good come in another order each time.
    assert ours.get_vocab().keys() == theirs.get_vocab().keys() - left_over
    assert len(ours) > 100
    texts = [*TEXTS, "a <new> b", f"x {ours.mask_token} y", ""]
    for text in texts:
        assert ours(text, text).tokens() == theirs(text, text).tokens()
    assert sorted(ours.all_special_ids) == list(range(len(ours.all_special_ids)))
    ours.save_pretrained(tmp_path / "new", legacy_format=False, safe_serialization=True)
    for library in (transformers, xlmr_ray):
        assert made(library, tmp_path / "new")(texts)["input_ids"] == ours(texts)["input_ids"]
