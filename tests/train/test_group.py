"""Several workers make the steps that one makes: the same losses and weights at the same global batch."""

import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import LANGUAGES, TEXTS, record
from xlmr_ray import JobFailed, UserError
from xlmr_ray.train.finetune import run_loop
from xlmr_ray.train.group import add_gradients, agreed, dealt_out
from xlmr_ray.train.loop import Loop
from xlmr_ray.train.state import Progress

SPANS = [[{"start": 0, "end": len(text.split()[0]), "label": "X"}] for text in TEXTS]
ANSWERS = [
    {"text": [text.split()[-1]], "answer_start": [len(text) - len(text.split()[-1])]} if i % 3 else
    {"text": [], "answer_start": []}
    for i, text in enumerate(TEXTS)
]  # fmt: skip
CHOICES = [TEXTS[i : i + 2] for i in range(11)] + [TEXTS[:3]]
CASES = {
    "single": ("text-classification", {"label": LANGUAGES}, {"class_weights": "balanced"}),
    "multi": ("text-classification", {"label": [[], ["de"], ["de", "fr"], ["en"]] * 3}, {}),
    "regression": ("text-classification", {"label": [0.5, -1.25, 2.0, 0.125] * 3}, {}),
    "rerank": ("rerank", {"text_pair": TEXTS[::-1], "label": [0, 1] * 6}, {}),
    "entities": ("token-classification", {"label": SPANS}, {}),
    "answers": ("question-answering", {"question": ["What?"] * 12, "context": TEXTS, "label": ANSWERS}, {}),
    "choices": ("multiple-choice", {"choices": CHOICES, "label": [1] * 12}, {}),
    "hidden": ("fill-mask", {}, {}),
    "pairs": ("embedding", {"text_pair": [*TEXTS[:0:-1], TEXTS[1]]}, {}),  # one partner is there twice
    "lora": ("text-classification", {"label": LANGUAGES}, {"method": "lora"}),
}


class Threads:
    """Workers that are threads of this process."""

    def __init__(self, size: int) -> None:
        self.slots: list = [None] * size
        self.barrier = threading.Barrier(size)

    def all(self, rank: int, value: object) -> list:
        self.slots[rank] = value
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found

    def member(self, number: int):
        threads = self

        class Member:
            rank, size = number, len(threads.slots)

            def add(self, tensor):
                tensor.copy_(sum(threads.all(number, tensor.clone())))

            def gather(self, value):
                return threads.all(number, value)

        return Member()


def in_threads(size: int):
    """As `train_on_workers`, without Ray."""

    def on_workers(loop: Loop) -> None:
        threads = Threads(size)
        raised: list[BaseException] = []

        def work(rank: int) -> None:
            own = replace(loop, trained=copy.deepcopy(loop.trained), progress=Progress(), group=threads.member(rank))
            try:
                own.resume()
                run_loop(own)
                own.keep()
            except BaseException as error:
                raised.append(error)
                threads.barrier.abort()

        running = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
        for one in running:
            one.start()
        for one in running:
            one.join()
        if raised:
            raise next((one for one in raised if not isinstance(one, threading.BrokenBarrierError)), raised[0])

    return on_workers


# Steps of 5 of 9 examples and of 4: a step's last worker has fewer, or other tokens.
JOB = {"epochs": 3, "batch_size": 5, "learning_rate": 0.01, "max_tokens": 60, "validation": {"share": 0.25}}


@pytest.mark.parametrize(
    ("case", "size"), [*((case, 2) for case in CASES), *((case, 6) for case in ("single", "hidden", "pairs"))]
)
def test_the_losses_of_one_worker(make_checkpoint, train, case, size):
    """Also where a step has fewer examples than there are workers."""
    task, labels, more = CASES[case]
    folder = make_checkpoint()
    rows = {"text": TEXTS, **labels}
    job = {"task": task, "train": {name: name for name in labels if name != "label"}, **JOB, **more}
    alone = train(rows, folder, output="one", **job)
    together = train(rows, folder, output="many", cluster={"workers": size}, on_workers=in_threads(size), **job)
    assert len(record(alone)["losses"]) == 6
    np.testing.assert_allclose(record(together)["losses"], record(alone)["losses"], rtol=0, atol=1e-5)
    for mine, theirs in zip(record(together)["history"], record(alone)["history"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    file = "adapter_model.safetensors" if case == "lora" else "model.safetensors"
    weights = [load_file(one.folder / file) for one in (together, alone)]
    assert weights[0].keys() == weights[1].keys()


def test_early_stopping_and_resume(make_checkpoint, train, monkeypatch):
    """All workers stop at the same step, and go on at the same."""
    folder = make_checkpoint()
    rows = {"text": TEXTS, "label": LANGUAGES}
    job = {"task": "text-classification", **JOB, "epochs": 20, "early_stopping": {"patience": 1}}
    job = {**job, "cluster": {"workers": 2}, "on_workers": in_threads(2)}
    whole = train(rows, folder, output="whole", **job)
    steps = len(record(whole)["losses"])
    assert 4 <= steps < 40
    step = Loop.step

    def cut(self, number):
        if number == 3:
            raise ZeroDivisionError
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", cut)
        with pytest.raises(ZeroDivisionError):
            train(rows, folder, output="cut", checkpoint_every=0, **job)
    again = train(rows, folder, output="cut", checkpoint_every=0, **job)
    assert record(again)["losses"] == record(whole)["losses"]
    assert record(again)["history"] == record(whole)["history"]
    weights = [load_file(one.folder / "model.safetensors") for one in (again, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_no_number(make_checkpoint, train, tmp_path):
    """What one worker's examples give ends the step of all, with what was done before kept once."""
    job = {"task": "text-classification", "cluster": {"workers": 2}, "on_workers": in_threads(2), **JOB}
    with pytest.raises(JobFailed, match=r"step \d of 6: the (loss|gradients' norm) is (nan|inf)"):
        train({"text": TEXTS, "label": LANGUAGES}, make_checkpoint(), **{**job, "learning_rate": 1e30, "clip": None})
    assert len(list(tmp_path.glob(".out.*/state.pt"))) == 1


def test_each_worker_drops_other_units(make_checkpoint, train, monkeypatch):
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append((threading.get_ident(), seed)))
    rows = {"text": TEXTS, "label": LANGUAGES}
    job = {"task": "text-classification", "cluster": {"workers": 2}, "on_workers": in_threads(2), **JOB}
    train(rows, make_checkpoint(), **job)
    main = threading.get_ident()
    own = [seed for thread, seed in seeds if thread != main]
    assert len(own) == len(set(own)) == 12


def test_other_workers_are_another_training(make_checkpoint, train):
    folder = make_checkpoint()
    job = {"task": "text-classification", "cluster": {"workers": 2}, "on_workers": in_threads(2), **JOB}
    rows = {"text": TEXTS, "label": LANGUAGES}
    train(rows, folder, **job)
    assert train(rows, folder, **job).progress is None
    with pytest.raises(UserError, match="made by another training"):
        train(rows, folder, **{**job, "cluster": {}})
    with pytest.raises(UserError, match=r"cluster\.workers: method: head needs none"):
        train(rows, folder, **{**job, "method": "head"})


def test_examples_are_dealt_out():
    tokens = np.array([5, 30, 7, 100, 12, 1])
    found = dealt_out(np.array([0, 1, 2, 3, 5]), tokens, 2)
    assert [part.tolist() for part in found] == [[3, 2, 5], [1, 0]]
    assert [part.tolist() for part in dealt_out(np.array([4]), tokens, 3)] == [[4], [], []]
    assert dealt_out(np.array([2, 0]), tokens, 1)[0].tolist() == [2, 0]


def test_a_gradient_that_one_worker_has():
    threads = Threads(2)
    parameters = [[torch.nn.Parameter(torch.zeros(2)) for _ in range(3)] for _ in range(2)]
    parameters[0][0].grad = torch.tensor([1.0, 2.0])
    parameters[1][0].grad = torch.tensor([4.0, 8.0])
    parameters[1][1].grad = torch.tensor([3.0, 3.0])
    votes: list = [None, None]

    def work(rank: int) -> None:
        add_gradients(threads.member(rank), parameters[rank])
        votes[rank] = agreed(threads.member(rank), rank == 1, False)

    running = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    for own in parameters:
        assert own[0].grad.tolist() == [5, 10]
        assert own[1].grad.tolist() == [3, 3]
        assert own[2].grad is None  # AdamW decays what has a gradient of zeros
    assert votes == [[True, False]] * 2
