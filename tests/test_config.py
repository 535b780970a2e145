"""The configuration is open as transformers' is: what a script sets and reads, and what a file then holds."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError

THEIRS = transformers.XLMRobertaConfig
LABELS = {0: "de", 1: "fr", 2: "ja"}
VALUES: list[dict[str, Any]] = [
    {},
    {"num_labels": 3},
    {"num_labels": 2},
    {"id2label": LABELS, "label2id": {"de": 0, "fr": 1, "ja": 2}},
    {"id2label": {"0": "x"}, "label2id": {"x": 0}, "problem_type": "regression", "output_hidden_states": True},
    {"finetuning_task": "mrpc", "layers": [1, 2], "nested": {"a": {"b": 1}}},
    {"torch_dtype": "float16"},
    {"dtype": torch.bfloat16, "classifier_dropout": 0.5, "return_dict": False},
]


def plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("transformers_version", "_name_or_path")}


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_dictionaries_and_files_are_transformers(values: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = XLMRobertaConfig(**values), THEIRS(**values)
    assert plain(theirs.to_diff_dict()) == ours.to_diff_dict()
    assert plain(theirs.to_dict()) == ours.to_dict()
    for use_diff in (True, False):
        got = json.loads(ours.to_json_string(use_diff=use_diff))
        assert plain(json.loads(theirs.to_json_string(use_diff=use_diff))) == got
    ours.save_pretrained(tmp_path)
    assert plain(THEIRS.from_pretrained(tmp_path).to_dict()) == ours.to_dict()
    theirs.save_pretrained(tmp_path)
    assert XLMRobertaConfig.from_pretrained(tmp_path).dtype == theirs.dtype
    for again in (
        XLMRobertaConfig.from_dict(ours.to_dict()),
        XLMRobertaConfig.from_json_file(tmp_path / "config.json"),
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
    ):
        assert plain(again.to_dict()) == ours.to_dict()


def test_every_parameter_is_set_read_and_found_as_in_transformers() -> None:
    ours, theirs = XLMRobertaConfig(), THEIRS()
    for config in (ours, theirs):
        config.update({"hidden_size": 96, "foo": 1, "torch_dtype": torch.float16})
        config.bar = [2]
        config.num_labels = 4
        config._name_or_path = "somewhere"
        config.name_or_path += "/else"
        config.update_from_string("num_hidden_layers=3,hidden_dropout_prob=0.3,is_decoder=true,hidden_act=relu,foo=7")
        with pytest.raises(AttributeError):
            config.nothing  # noqa: B018
        with pytest.raises(ValueError, match="perhaps"):
            config.update_from_string("is_decoder=perhaps")
        assert not hasattr(config, "baz")
        assert getattr(config, "baz", 3) == 3
        assert config.get_text_config(decoder=True) is config
    for name in [*plain(theirs.to_dict()), "num_labels", "torch_dtype", "use_return_dict", "name_or_path"]:
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in {*plain(theirs.to_dict()), "absent"} - {"model_type", "output_attentions"}:
        assert (name in ours) == (name in theirs), name
    del ours.bar
    assert "bar" not in ours


def test_labels_stay_consistent() -> None:
    config = XLMRobertaConfig()
    config.num_labels = 3
    assert config.id2label == THEIRS(num_labels=3).id2label
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    config.id2label = {"0": "no", "1": "yes"}
    assert (config.num_labels, config.label2id, config.labels) == (2, {"no": 0, "yes": 1}, ["no", "yes"])
    config.num_labels = 2
    assert config.labels == ["no", "yes"]
    for first, second in (("id2label", "label2id"), ("label2id", "id2label")):
        config = XLMRobertaConfig(num_labels=3)
        for name in (first, second):
            setattr(config, name, LABELS if name == "id2label" else {v: k for k, v in LABELS.items()})
        assert config.label2id == {"de": 0, "fr": 1, "ja": 2}
        assert config.id2label == LABELS
    # transformers keeps LABEL_0 here, so that its two mappings disagree.
    assert XLMRobertaConfig(num_labels=3, label2id={"de": 0, "fr": 1, "ja": 2}).labels == ["de", "fr", "ja"]


def test_a_number_that_contradicts_the_names_replaces_them(caplog: pytest.LogCaptureFixture) -> None:
    assert XLMRobertaConfig(id2label=LABELS, num_labels=2).id2label == THEIRS(id2label=LABELS, num_labels=2).id2label
    assert "num_labels=2 for 3 names" in caplog.text


def test_the_attention_of_a_configuration_is_not_in_its_file() -> None:
    config = XLMRobertaConfig(attn_implementation="eager")
    assert config._attn_implementation == "eager"
    config._attn_implementation = "sdpa"
    assert config.attn_implementation == "sdpa"
    assert "attn" not in config.to_json_string(use_diff=False)


def test_arguments_that_are_no_parameters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    THEIRS(num_labels=3, own="kept").save_pretrained(tmp_path)
    source = {"pretrained_model_name_or_path": tmp_path, "num_labels": 5, "own": "changed"}
    assert XLMRobertaConfig.from_pretrained(**source).own == THEIRS.from_pretrained(**source).own == "changed"
    assert not [record for record in caplog.records if record.name.startswith("xlmr_ray")]
    unused = {"return_unused_kwargs": True, "foo": 3}
    assert XLMRobertaConfig.from_pretrained(**source, **unused)[1] == THEIRS.from_pretrained(**source, **unused)[1]
    assert XLMRobertaConfig.from_pretrained(tmp_path, finetuning_task="mrpc").finetuning_task == "mrpc"
    assert "finetuning_task is no parameter" in caplog.text
    with pytest.raises(UserError, match=r"'num_label' is no parameter .* did you mean 'num_labels'"):
        XLMRobertaConfig.from_pretrained(tmp_path, num_label=3)
    assert XLMRobertaConfig.from_pretrained(tmp_path).name_or_path == str(tmp_path)
