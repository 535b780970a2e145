"""A new input format is one file and one line of the registry: this one is this file's `Paragraphs`, from the job file
to the published rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

import pyarrow as pa
import pytest
from pydantic import Field

from tests.models import save_classifier
from xlmr_ray import UserError, pipeline
from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns, Problem, Rows
from xlmr_ray.batch.input.planning import DeadLetter, plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.readers import READERS, csv
from xlmr_ray.batch.input.readers.line_shards import checked_content, cut
from xlmr_ray.batch.input.readers.raw import Source, chunks, lines
from xlmr_ray.batch.input.readers.reader import Cut, Reader
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.job import Job, check_job
from xlmr_ray.batch.ledger.results import iter_files
from xlmr_ray.batch.run import prepare, run_job
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.checkpoint.files import resolve


class Paragraphs(Reader):
    """Documents of several lines, each ended by a line of `end`."""

    name: ClassVar[str] = "paragraphs"
    endings: ClassVar[tuple[str, ...]] = (".par",)
    compressed: ClassVar[bool] = True

    end: Annotated[str, Field(min_length=1)] = "--"

    def plan(self, source: Source, columns: Columns, *, shard_rows: int, shard_bytes: int) -> Cut:
        pieces = cut(
            self.records(checked_content(source)),
            shard_rows=shard_rows,
            shard_bytes=shard_bytes,
            is_blank=lambda record, size: not record.strip(),
        )
        return Cut(("string",) * len(columns.extra), pieces)

    def read(self, source: Source, shard: Shard, columns: Columns, max_row_bytes: int) -> pa.Table:
        rows = Rows(columns, lambda row: f"paragraph {row + 1}")
        for number, (record, size) in enumerate(self.records(chunks(source, shard.start, shard.stop)), shard.first_row):
            if not record.strip():
                continue
            if size > max_row_bytes:
                rows.bad(number, Problem(codes.ROW_TOO_LARGE, f"{size} bytes, the limit is {max_row_bytes}"))
            else:
                rows.good(number, "", [record])
        return rows.table()

    def records(self, content: Iterator[bytes]) -> Iterator[tuple[bytes, int]]:
        held: list[bytes] = []
        size = 0
        for line, length in lines(content):
            size += length
            if line.decode() == self.end:
                yield b"\n".join(held), size
                held, size = [], 0
            else:
                held.append(line)
        if size:
            yield b"\n".join(held), size


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "paragraphs", Paragraphs())  # the registry's line


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
    whole = prepare(job(model, tmp_path), store).plan
    assert whole.rows == 1
    cut_up = prepare(job(model, tmp_path, paragraphs={"end": "=="}), store).plan
    assert cut_up.rows == 10
    assert cut_up.run_id != whole.run_id
    assert prepare(job(model, tmp_path, paragraphs={"end": "--"}), store).plan.run_id == whole.run_id
    with pytest.raises(UserError, match=r"^test: input\.paragraphs: unknown key 'ende', did you mean 'end'\?$"):
        job(model, tmp_path, paragraphs={"ende": "=="})


def test_without_its_line_in_the_registry_there_is_no_such_format(tmp_path: Path, model: Path) -> None:
    write(tmp_path / "in" / "a.par")
    with pytest.raises(
        UserError, match=r"format: expected one of auto, parquet, jsonl, csv, tsv, text, got 'paragraphs'"
    ):
        job(model, tmp_path, format="paragraphs")


@pytest.mark.usefixtures("ray_session", "registered")
def test_a_job_scores_it(tmp_path: Path, model: Path) -> None:
    write(tmp_path / "in" / "a.par", end="==")
    run_job(job(model, tmp_path, paragraphs={"end": "=="}), quiet=True)
    (rows,) = [pa.concat_tables(pa.parquet.read_table(file) for file in iter_files(str(tmp_path / "out")))]
    expected = pipeline("text-classification", model=str(resolve(str(model))))(TEXTS)
    got = {row["row"]: (row["label"], row["score"]) for row in rows.to_pylist()}
    assert sorted(got) == list(range(10))
    for number, answer in enumerate(expected):
        assert got[number][0] == answer["label"]
        assert got[number][1] == pytest.approx(answer["score"], abs=1e-6)


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
