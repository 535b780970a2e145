"""Pipelines and engines in other processes: forked, pickled and copied, as Spark, joblib and gunicorn do."""

import copy
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import cloudpickle
import pytest

from xlmr_ray import UserError, XLMRobertaForSequenceClassification, XLMRobertaTokenizer, pipeline
from xlmr_ray.engine.pipeline import Pipeline

TEXTS = ["Der Bericht lag drei Tage auf dem Tisch.", "Wer sie heißt <mask>, das weiß Ines aus Łódź.", "一、二"]
CASES = {
    "embedding": ("", TEXTS, {}),
    "feature-extraction": ("", TEXTS, {}),
    "text-classification": ("script", TEXTS, {"top_k": None}),
    "zero-shot-classification": ("entailment", TEXTS, {"candidate_labels": ["news", "poem"]}),
    "token-classification": ("entities", TEXTS, {}),
    "question-answering": ("answers", [{"question": "Wer?", "context": text} for text in TEXTS], {}),
    "multiple-choice": ("choice", [{"text": TEXTS[0], "choices": TEXTS[1:]}], {}),
    "rerank": ("relevance", [{"text": TEXTS[0], "text_pair": text} for text in TEXTS], {}),
    "fill-mask": ("masked", TEXTS[1:2], {}),
    "pseudo-perplexity": ("masked", TEXTS, {}),
    "text-generation": ("masked", TEXTS[:1], {"max_new_tokens": 4}),
}
COPIES = {
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),
    "cloudpickle": lambda one: pickle.loads(cloudpickle.dumps(one)),
    "deepcopy": copy.deepcopy,
}


def same(one: object, other: object) -> bool:
    return pickle.dumps(one) == pickle.dumps(other)  # to the last bit, whatever the task answers


@pytest.mark.filterwarnings("ignore:XLMRobertaForCausalLM sees later tokens")
@pytest.mark.parametrize("task", CASES)
def test_every_task(mini, task):
    head, given, options = CASES[task]
    made: Pipeline = pipeline(task, mini / "heads" / head if head else mini, **options)
    first = made(given)
    copied = pickle.loads(pickle.dumps(made))  # after a call, with all that one leaves behind
    assert same(copied(given), first)
    assert same(made(given), first)


@pytest.mark.parametrize("how", COPIES)
def test_every_way(mini, how):
    made = pipeline("text-classification", mini / "heads" / "script", top_k=None)
    assert same(COPIES[how](made)(TEXTS), made(TEXTS))


@pytest.mark.parametrize(
    "given",
    [
        {"dtype": "bfloat16"},
        {"quantization": "int8"},
        {"dtype": "bfloat16", "quantization": "int8"},
        {"quantization": "nf4"},
        {"quantization": "int8-weights"},
    ],
)
def test_every_precision(mini, given):
    if "weights" in str(given) or "nf4" in str(given):
        pytest.importorskip("bitsandbytes")
    folder = mini / "heads" / "script"
    try:
        made = pipeline("text-classification", folder, top_k=None, device="cpu", **given)
    except UserError as error:
        pytest.skip(str(error))  # a CPU without these instructions
    first = made(TEXTS)
    copied = pickle.loads(pickle.dumps(made))
    assert same(copied(TEXTS), first)
    assert same(pickle.loads(pickle.dumps(copied))(TEXTS), first)  # and a copy's copy


def test_a_model_in_memory(mini):
    model = XLMRobertaForSequenceClassification.from_pretrained(mini / "heads" / "script")
    made = pipeline("text-classification", model, tokenizer=XLMRobertaTokenizer.from_pretrained(mini))
    assert same(pickle.loads(pickle.dumps(made))(TEXTS), made(TEXTS))


def test_another_process(mini):
    made = pipeline("text-classification", mini / "heads" / "script", top_k=None)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert same(pool.submit(made, TEXTS).result(), made(TEXTS))


def test_a_forked_process(mini):
    """As gunicorn's preload, Celery and PySpark do: torch's threads do not come along, and were waited for for ever."""
    script = f"""
import os, pickle, torch
from xlmr_ray import pipeline
torch.set_num_threads(2)
made = pipeline("text-classification", {str(mini / "heads" / "script")!r}, top_k=None)
texts = {TEXTS!r} * 20
first = made(texts)
child = os.fork()
if child == 0:
    os._exit(made(texts) != first)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=240, check=False).returncode == 0


def test_fewer_bits_are_for_a_checkpoint(mini):
    model = XLMRobertaForSequenceClassification.from_pretrained(mini / "heads" / "script")
    with pytest.raises(UserError, match=r"quantization= goes with a checkpoint, not with a model in memory"):
        pipeline("text-classification", model, tokenizer=XLMRobertaTokenizer.from_pretrained(mini), quantization="int8")
