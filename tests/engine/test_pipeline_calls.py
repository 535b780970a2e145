"""The same calls of transformers' `pipeline` and of ours, and what comes back."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import xlmr_ray
from tests.engine.pipeline_calls import CALLS
from tests.models import add_tokenizer, make_config

HEADS = {
    "text-classification": ("ForSequenceClassification", {"num_labels": 3}),
    "token-classification": ("ForTokenClassification", {"id2label": {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}}),
    "fill-mask": ("ForMaskedLM", {}),
    "feature-extraction": ("Model", {}),
    "zero-shot-classification": (
        "ForSequenceClassification",
        {
            "id2label": {0: "contradiction", 1: "neutral", 2: "entailment"},
            "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2},
        },
    ),
    "text-generation": ("ForCausalLM", {"is_decoder": True, "max_position_embeddings": 130}),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for task, (name, values) in HEADS.items():
        torch.manual_seed(7)
        found[task] = tmp_path_factory.mktemp(task)
        getattr(transformers, f"XLMRoberta{name}")(make_config(**values)).save_pretrained(found[task])
        add_tokenizer(found[task])
    return found


def plain(value: Any) -> Any:
    """Answers as lists and dictionaries of Python's own."""
    if isinstance(value, Iterator):
        value = list(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def equal(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(got, dict) and got.keys() == wanted.keys() and all(equal(got[k], wanted[k]) for k in wanted)
    if isinstance(wanted, list):
        return isinstance(got, list) and len(got) == len(wanted) and all(map(equal, got, wanted))
    return bool(got == pytest.approx(wanted, abs=1e-5))


PIPES: dict[str, Any] = {}


def answer(library: Any, task: str, folder: Path, making: dict[str, Any], call: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        key = f"{library.__name__} {folder} {making}"
        if key not in PIPES:
            PIPES[key] = library.pipeline(task, model=str(folder), **making)
        inputs, options = call() if callable(call) else call
        return plain(PIPES[key](*inputs, **options))


@pytest.mark.parametrize(("task", "number"), [(task, i) for task, calls in CALLS.items() for i in range(len(calls))])
def test_calls(task: str, number: int, checkpoints: dict[str, Path]) -> None:
    making, call = CALLS[task][number]
    wanted = answer(transformers, task, checkpoints[task], making, call)
    got = answer(xlmr_ray, task, checkpoints[task], making, call)
    assert equal(got, wanted), f"{making} {call}\n{str(got)[:600]}\n{str(wanted)[:600]}"


@pytest.mark.parametrize(
    ("task", "making", "call", "message"),
    [
        ("text-classification", {"model_kwargs": {"hidden_dropout_prob": 0.1}}, {}, "model_kwargs: no use for hidden"),
        (
            "text-classification",
            {"device_map": {"": 0}, "device": None},
            {},
            "device_map: expected a device, got a map",
        ),
        ("text-classification", {"device_map": 0}, {}, "device is given twice, as 0 and as device=cpu"),
        ("text-classification", {"config": "x"}, {}, "config is not supported: the checkpoint's own is read"),
        ("text-classification", {"tokenize_kwargs": {"stride": 3}}, {}, "tokenize_kwargs: no use for stride"),
        ("text-classification", {}, {"truncation": "only_first"}, "truncation='only_first' is not supported"),
        ("text-classification", {}, {"return_tensors": True}, "return_tensors is not supported here"),
        ("text-classification", {}, {"top": 2}, "no option 'top', did you mean 'top_k'"),
        ("feature-extraction", {}, {"padding": "max_length"}, "padding is not supported"),
        ("token-classification", {}, {"is_split_into_words": True, "delimiter": "-"}, "delimiter='-' is not supported"),
        ("text-generation", {}, {"return_text": True}, "return_text is not supported: text is always returned"),
        ("fill-mask", {"tokenizer_kwargs": {"max_length": 9}, "max_length": 8}, {}, "max_length is given twice"),
    ],
)
def test_what_is_refused(
    task: str, making: dict[str, Any], call: dict[str, Any], message: str, checkpoints: dict[str, Path]
) -> None:
    with pytest.raises(xlmr_ray.UserError, match=message):
        xlmr_ray.pipeline(task, checkpoints[task], **{"device": "cpu", **making})("All human beings", **call)


def test_a_stream_is_read_as_it_is_asked_for(checkpoints: dict[str, Path]) -> None:
    read = []

    def texts() -> Iterator[str]:
        for i in range(600):
            read.append(i)
            yield f"text {i}"

    answers = xlmr_ray.pipeline("text-classification", checkpoints["text-classification"], device="cpu")(texts())
    assert read == []
    next(answers)
    assert 0 < len(read) < 600
    assert len(list(answers)) == 599
