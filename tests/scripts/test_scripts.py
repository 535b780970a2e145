"""Scripts of six tasks, with the calls of transformers' examples, run as they are and with one import changed."""

import json
import re
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.models import add_tokenizer, make_config

SCRIPTS = sorted(Path(__file__).parent.glob("run_*.py"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model without dropout, and heads' weights, which both libraries would make anew by chance."""
    folder = tmp_path_factory.mktemp("checkpoint")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(5)
    transformers.XLMRobertaForMaskedLM(make_config(**still)).save_pretrained(folder)
    return add_tokenizer(folder)


HEADS = {
    "run_glue": ("XLMRobertaForSequenceClassification", {"num_labels": 2}),
    "run_ner": ("XLMRobertaForTokenClassification", {"num_labels": 3}),
    "run_qa": ("XLMRobertaForQuestionAnswering", {}),
    "run_swag": ("XLMRobertaForMultipleChoice", {}),
}


def equal(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(equal(got[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(equal, got, wanted))
    return bool(got == pytest.approx(wanted, abs=1e-5, nan_ok=True))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts(script: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint
    if script.stem in HEADS:
        name, values = HEADS[script.stem]
        path = tmp_path / "with a head"
        torch.manual_seed(6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(transformers, name).from_pretrained(checkpoint, **values).save_pretrained(path)
        add_tokenizer(path)
    ours = script.read_text("utf-8")
    theirs, count = re.subn(r"^from xlmr_ray import", "from transformers import", ours, flags=re.M)
    assert count == 1
    results = []
    for side, source in (("theirs", theirs), ("ours", ours)):
        file, out = tmp_path / f"{side}.py", tmp_path / side
        file.write_text(source, "utf-8")
        monkeypatch.setattr(sys, "argv", [str(file), str(path), str(out)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_path(str(file), run_name="__main__")
        results.append(json.loads((out / "results.json").read_text()))
    wanted, got = results
    assert equal(got, wanted), f"{str(got)[:400]}\n{str(wanted)[:400]}"
    files = [{path.name for path in (tmp_path / side).iterdir()} for side in ("theirs", "ours")]
    assert files[0] <= files[1]
