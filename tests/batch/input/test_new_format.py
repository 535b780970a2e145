"""A new input format is one file and one line of the registry: that of docs/extending.md, from the job file to what
actors read. Its rows in a job: `tests/test_extending.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from tests.extending import SECTIONS, loaded
from tests.models import save_classifier
from xlmr_ray import UserError
from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.planning import DeadLetter, plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.readers import READERS, csv
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.job import Job, check_job
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.store.open import open_store


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    module = loaded(SECTIONS["An input format"][0], tmp_path_factory.mktemp("readers"))
    del sys.modules[module.__name__]
    monkeypatch.setitem(READERS, "paragraphs", module.Paragraphs())  # the registry's line


TEXTS = [f"first line of {number}\nand a second one" for number in range(10)]
TEXT = Columns({"text": "text"})


def write(path: Path, end: str = "--") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{text}\n{end}\n" for text in TEXTS), "utf-8")


def job(model: Path, tmp_path: Path, **more: object) -> Job:
    content = {
        "model": str(model),
        "input": {"path": str(tmp_path / "in"), **more},
        "tasks": ["text-classification"],
        "output": {"path": str(tmp_path / "out")},
        "cluster": {"shard_rows": 4, "encoders": 1, "address": os.environ.get("RAY_ADDRESS", "auto")},
    }
    return check_job(content, "test")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("model"))


@pytest.mark.usefixtures("registered")
def test_its_files_are_found_cut_and_read(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.par")
    (tmp_path / "in" / "b.par.gz").write_bytes(
        pa.compress((tmp_path / "in" / "a.par").read_bytes(), "gzip", asbytes=True)
    )
    (tmp_path / "in" / "c.par").write_bytes(b"PAR1")
    found = find_inputs(str(tmp_path / "in")).inputs
    assert [(Path(one.key).name, one.format, one.compression) for one in found] == [
        ("a.par", "paragraphs", ""),
        ("b.par.gz", "paragraphs", "gzip"),
        ("c.par", "paragraphs", ""),
    ]
    *planned, dead = plan_shards(found, shard_rows=4, columns=TEXT)
    assert isinstance(dead, DeadLetter)
    assert dead.code == codes.WRONG_FORMAT
    shards = [one for one in planned if isinstance(one, Shard)]
    assert [(one.id, one.first_row, one.rows) for one in shards] == [
        (f"{file:07d}-{part:06d}", 4 * part, rows) for file in (0, 1) for part, rows in enumerate((4, 4, 2))
    ]
    rows = [row for shard in shards for row in read_shard(shard, TEXT).to_pylist()]
    assert [row["text"] for row in rows] == TEXTS * 2
    assert [row["_row"] for row in rows] == [*range(10)] * 2


@pytest.mark.usefixtures("registered")
def test_its_options_are_checked_and_decide_the_run(tmp_path: Path, model: Path) -> None:
    write(tmp_path / "in" / "a.par", end="==")
    store = open_store(str(tmp_path / "out"))
    whole = prepare_run(job(model, tmp_path), store).plan
    assert whole.rows == 1
    cut_up = prepare_run(job(model, tmp_path, paragraphs={"end": "=="}), store).plan
    assert cut_up.rows == 10
    assert cut_up.run_id != whole.run_id
    assert prepare_run(job(model, tmp_path, paragraphs={"end": "--"}), store).plan.run_id == whole.run_id
    with pytest.raises(UserError, match=r"^test: input\.paragraphs: unknown key 'ende', did you mean 'end'\?$"):
        job(model, tmp_path, paragraphs={"ende": "=="})


def test_without_its_line_in_the_registry_there_is_no_such_format(tmp_path: Path, model: Path) -> None:
    write(tmp_path / "in" / "a.par")
    with pytest.raises(
        UserError, match=r"format: expected one of auto, parquet, jsonl, csv, tsv, text, warc, got 'paragraphs'"
    ):
        job(model, tmp_path, format="paragraphs")


def test_no_name_of_an_option_is_a_key_of_the_input_section() -> None:
    from xlmr_ray.batch.job import InputSection

    assert (
        not {name for name, reader in READERS.items() if type(reader).model_fields} & InputSection.model_fields.keys()
    )


def test_csv_with_another_delimiter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id;text\n1;"a;b"\n2;c,d\n', "utf-8")
    readers = {**READERS, "csv": csv.Csv(delimiter=";")}
    (shard,) = plan_shards(find_inputs(str(tmp_path)).inputs, shard_rows=9, columns=TEXT, readers=readers)
    assert isinstance(shard, Shard)
    assert read_shard(shard, TEXT, readers=readers)["text"].to_pylist() == ["a;b", "c,d"]
