"""Tiny checkpoints and labelled rows, and a call of the training on them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from rich.console import Console

from tests.models import add_tokenizer, make_config
from xlmr_ray.batch.input.whole import read_whole
from xlmr_ray.text.progress_line import ProgressLine
from xlmr_ray.train.finetune import TrainOutcome, finetune
from xlmr_ray.train.job import check_finetune_job

TEXTS = [
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "All human beings are born free.",
    "Jeder hat das Recht auf Leben, Freiheit und Sicherheit der Person.",
    "Tout individu a droit à la vie, à la liberté et à la sûreté de sa personne.",
    "Everyone has the right to life, liberty and security of person.",
    "Niemand darf in Sklaverei gehalten werden.",
    "Nul ne sera tenu en esclavage ni en servitude; l'esclavage et la traite des esclaves sont interdits.",
    "No one shall be held in slavery or servitude.",
    "Niemand darf der Folter unterworfen werden.",
    "Nul ne sera soumis à la torture.",
    "No one shall be subjected to torture or to cruel, inhuman or degrading treatment or punishment.",
]
LANGUAGES = ["de", "fr", "en"] * 4


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory):
    """A checkpoint of one of transformers' classes, without dropout unless it is asked for."""

    def make(kind: str = "XLMRobertaModel", **values: object) -> Path:
        torch.manual_seed(11)
        plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        folder = tmp_path_factory.mktemp("checkpoint")
        getattr(transformers, kind)(make_config(**{**plain, **values})).save_pretrained(folder)
        return add_tokenizer(folder)

    return make


@pytest.fixture
def train(tmp_path):
    """Trains on rows: the outcome, with the record of what was done."""

    def call(
        rows: dict[str, list], model: Path, *, output: str = "out", quiet: bool = True, **job: object
    ) -> TrainOutcome:
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.table(rows), path)
        columns, on_workers = job.pop("train", {}), job.pop("on_workers", None)
        content = {"model": str(model), "output": {"path": str(tmp_path / output)}, **job}
        checked = check_finetune_job({**content, "train": {"path": str(path), **columns}}, "job")
        with ProgressLine(Console(stderr=True), "steps", quiet=quiet) as display:
            return finetune(checked, read_whole, display, on_workers)

    return call


def record(outcome: TrainOutcome) -> dict:
    return json.loads((outcome.folder / "training.json").read_text("utf-8"))
