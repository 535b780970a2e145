import json
import os
import random
import re
import signal
import subprocess
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.batch.duplicates.copies import jaccard, pairs_in, shingles, with_copies
from xlmr_ray.batch.duplicates import vectors as vectors_module
from xlmr_ray.batch.duplicates.run import Search, deduplicate, followed
from xlmr_ray.batch.duplicates.steps import Steps, in_one_line, in_turn, on_ray
from xlmr_ray.batch.duplicates.texts import Texts, corpus_of, texts_of_table
from xlmr_ray.batch.duplicates.vectors import embeddings_of, near_duplicates
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import JobFailed, UserError

BOTH = Search(("exact", "minhash"))


def given_texts(rows: pa.Table, cuts: list[int]) -> Texts:
    """Parts of a table that is cut before these rows, read last to first."""
    bounds = [0, *cuts, len(rows)]
    parts = {f"{n}": rows.slice(a, b - a) for n, (a, b) in enumerate(pairwise(bounds))}
    return Texts(parts, {"of": "test"}, lambda part: part)


def backwards(function, items) -> None:
    in_turn(function, reversed(list(items)))


def run(folder: Path, texts: Texts, wanted: Search = BOTH, each=in_turn) -> tuple[bytes, dict]:
    store = open_store(str(folder))
    name, report = deduplicate(store, wanted, texts=texts, by="lang", each=each)
    assert report == json.loads((folder / name / "report.json").read_bytes())
    assert not list(Steps(store, f"{name}/steps/").there())
    return (folder / name / "duplicates.parquet").read_bytes(), report


def rows_of(texts: list[str | None], languages: list[str], drawn: random.Random) -> pa.Table:
    """Rows of three files, shuffled."""
    numbers = list(range(len(texts)))
    drawn.shuffle(numbers)
    return pa.table(
        {
            "source": [f"s3://b/{number % 3}.parquet" for number in numbers],
            "row": pa.array([number // 3 for number in numbers], pa.int64()),
            "language": [languages[number] for number in numbers],
            "text": pa.array([texts[number] for number in numbers], pa.string()),
        }
    )


@pytest.fixture(scope="module")
def articles(udhr) -> pa.Table:
    table = pq.read_table(udhr / "part-0.parquet")
    long = [place for place, text in enumerate(table["text"].to_pylist()) if len(text) > 150]
    return table.take(long[::4])


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), places=st.lists(st.integers(0, 60), max_size=4))
def test_groups_do_not_depend_on_order(tmp_path_factory, articles, seed, places):
    """Bytes of the table and the report: of rows in another order, cut into other parts, worked on in another order."""
    copied = with_copies(articles["text"].to_pylist()[:24], articles["lang"].to_pylist()[:24], seed=1)
    folder, drawn = tmp_path_factory.mktemp("order"), random.Random(seed)
    texts: list[str | None] = [*copied.texts, None, "", " \n"]
    languages = [*copied.languages, "de", "de", "de"]
    first = run(folder / "one", given_texts(rows_of(texts, languages, random.Random(0)), []))
    cuts = sorted({min(place, len(texts)) for place in places})
    assert run(folder / "two", given_texts(rows_of(texts, languages, drawn), cuts), each=backwards) == first


def test_against_all_pairs(tmp_path, articles):
    """Exact: each pair of equal texts, and no other. MinHash: what the Jaccard similarity of all pairs says, but for
    pairs within four standard errors of the threshold.
    """
    copied = with_copies(articles["text"].to_pylist(), articles["lang"].to_pylist())
    rows = rows_of(list(copied.texts), copied.languages, random.Random(4)).sort_by(
        [("source", "ascending"), ("row", "ascending")]
    )
    texts = rows["text"].to_pylist()
    data, report = run(tmp_path, given_texts(rows, [17, 40]))
    found = pq.read_table(pa.BufferReader(data))
    key = {(one["source"], one["row"]): place for place, one in enumerate(rows.to_pylist())}
    first = list(range(len(texts)))
    method = [""] * len(texts)
    for one in found.to_pylist():
        place = key[one["source"], one["row"]]
        first[place] = key[one["duplicate_of_source"], one["duplicate_of_row"]]
        method[place] = one["method"]
        assert first[place] < place
        assert first[first[place]] == first[place], "repeats one that stays"
    sets = [shingles(text) for text in texts]
    normal = [" ".join(unicodedata.normalize("NFC", text).split()) for text in texts]
    seen: dict[str, int] = {}
    exact = [seen.setdefault(text, place) != place for place, text in enumerate(normal)]
    assert [name == "exact" for name in method] == exact
    groups = pairs_in(first)
    margin = 4 * (0.8 * 0.2 / 256) ** 0.5
    sure = wrong = 0
    for one in range(len(texts)):
        for other in range(one):
            true = jaccard(sets[one], sets[other])
            if true >= 0.8 + margin:
                sure += 1
                assert (other, one) in groups
            wrong += true < 0.8 - margin and (other, one) in groups
    assert sure > 20
    assert wrong == 0
    numbers = report["methods"]
    assert report["documents"] == numbers["exact"]["documents"] == len(texts)
    assert numbers["exact"]["removed"] == sum(exact)
    assert numbers["minhash"]["documents"] == len(texts) - sum(exact)
    assert report["removed"] == len(found) == numbers["exact"]["removed"] + numbers["minhash"]["removed"]
    for name, part in numbers.items():
        by_language = part["by_language"]
        assert sum(one["removed"] for one in by_language.values()) == part["removed"], name
        assert sum(part["groups_by_size"].values()) == part["groups"]
        for example in part["examples"]:
            assert set(example) == {"source", "row", "similarity", "duplicate_of_source", "duplicate_of_row"}
    gone = [place for place, name in enumerate(method) if name]
    counted = dict.fromkeys(sorted(set(copied.languages)), 0)
    for place in gone:
        counted[rows["language"][place].as_py()] += 1
    of_all = {
        language: sum(part["by_language"].get(language, {"removed": 0})["removed"] for part in numbers.values())
        for language in counted
    }
    assert of_all == counted
    assert not any(text[:40] in json.dumps(report, ensure_ascii=False) for text in texts)


def test_rows_without_text_stay_and_are_counted(tmp_path):
    rows = rows_of([None, None, "", " ", "ein Text", "ein  Text"], ["de"] * 6, random.Random(0))
    data, report = run(tmp_path, given_texts(rows, [2]))
    assert (report["documents"], report["without_text"], report["removed"]) == (6, 4, 1)
    assert pq.read_table(pa.BufferReader(data)).num_rows == 1
    empty = rows.slice(0, 0)
    assert run(tmp_path / "none", given_texts(empty, []))[1]["removed"] == 0


def job_of(folder: Path, out: Path, **section: object) -> object:
    content = {"input": {"path": str(folder), **section}, "tasks": ["embedding"], "output": {"path": str(out)}}
    return check_job(content, "job")


KILLED = """
import os, signal, sys
from tests.batch.duplicates.test_run import BOTH, job_of
from xlmr_ray.batch.duplicates.run import deduplicate
from xlmr_ray.batch.duplicates.texts import corpus_of
from xlmr_ray.batch.store.open import open_store
from pathlib import Path

def killed(function, items):
    for number, item in enumerate(items):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        function(item)

corpus, out = map(Path, sys.argv[1:])
texts = corpus_of(job_of(corpus, out / "job"), "lang")
deduplicate(open_store(str(out)), BOTH, texts=texts, by="lang", each=killed)
"""


def test_killed_and_started_again(tmp_path, articles):
    """SIGKILL in the middle: what was read is not read again, and the bytes are those of a run that nothing happened
    to. A run that ended before its report goes on, one that has it does nothing.
    """
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    copied = with_copies(articles["text"].to_pylist(), articles["lang"].to_pylist())
    table = pa.table({"text": copied.texts, "lang": copied.languages})
    for number in range(6):
        pq.write_table(table.slice(number * 20, 20), corpus / f"{number}.parquet")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(corpus), str(out)]
    done = subprocess.run(command, env=os.environ, cwd=Path(__file__).parents[3], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    texts = corpus_of(job_of(corpus, out / "job"), "lang")
    (name,) = (path.name for path in out.iterdir() if path.is_dir() and len(path.name) == 16)
    there = Steps(open_store(str(out)), f"{name}/steps/").there()
    assert len(there) == 3
    read: list[str] = []

    def counting(function, items):
        items = list(items)
        read.extend(item[0] for item in items)
        in_turn(function, items)

    found = run(out, texts, each=counting)
    assert len(read) == len(texts.parts) - 3 > 0
    assert not set(read) & there
    assert found == run(tmp_path / "quiet", texts)
    (out / name / "report.json").unlink()  # as one that was killed between the table and the report
    assert run(out, texts) == found
    assert run(out, texts, each=lambda function, items: pytest.fail("a finished run reads nothing")) == found
    assert deduplicate(open_store(str(out)), Search(("exact",)), texts=texts, by="lang", each=in_turn)[0] != name
    pq.write_table(table.slice(0, 19), corpus / "0.parquet")
    other = corpus_of(job_of(corpus, out / "job"), "lang")
    assert deduplicate(open_store(str(out)), BOTH, texts=other, by="lang", each=in_turn)[0] != name


def test_on_a_folder_and_a_bucket(store, tmp_path, articles):
    rows = rows_of([*articles["text"].to_pylist()[:9]] * 2, ["de"] * 18, random.Random(1))
    name, report = deduplicate(store, BOTH, texts=given_texts(rows, [9]), by="lang", each=in_turn)
    assert (store.get(f"{name}/duplicates.parquet")[0], report) == run(tmp_path, given_texts(rows, []))
    assert report["methods"]["exact"]["removed"] == 9
    assert sorted(entry.key for entry in store.list(f"{name}/")) == [
        f"{name}/{file}" for file in ("duplicates.parquet", "made_from.json", "report.json")
    ]


def test_two_at_once(tmp_path, articles):
    """The other one finishes while this one reads: its report is taken."""
    texts = given_texts(rows_of(articles["text"].to_pylist(), articles["lang"].to_pylist(), random.Random(1)), [9])
    first: list[tuple[bytes, dict]] = []

    def slow(function, items):
        in_turn(function, items)
        first.append(run(tmp_path, texts))

    assert run(tmp_path, texts, each=slow) == first[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("exact", "near"),), "--methods: 'near' is no method; expected some of exact, minhash, embedding"),
        (((),), "--methods: expected some of exact, minhash, embedding, each once"),
        ((("exact", "exact"),), "--methods: expected some of exact, minhash, embedding, each once"),
        ((("minhash",), 0.0), "--jaccard: 0.0; expected more than 0, and at most 1"),
        ((("minhash",), 1.5), "--jaccard: 1.5; expected more than 0, and at most 1"),
        ((("embedding",),), "--methods: embedding needs --cosine, .* differs by checkpoint, so try one, .*"),
        ((("embedding",), 0.8, float("nan")), "--cosine: nan; expected more than 0, and at most 1"),
    ],
)
def test_what_is_wanted_wrongly(arguments, message):
    with pytest.raises(UserError) as caught:
        Search(*arguments)
    assert re.fullmatch(message, str(caught.value))


def test_columns_that_are_not_there(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    pq.write_table(pa.table({"body": ["a b c"]}), corpus / "0.parquet")
    for section, by in (({}, "none"), ({"text": "body"}, "lang")):
        with pytest.raises(UserError, match=r"0\.parquet") as caught:
            corpus_of(job_of(corpus, tmp_path / "out", **section), by)
        assert ("'text'" if by == "none" else "'lang'") in str(caught.value)
        assert str(caught.value).endswith("--by none compares all documents") == (by == "lang")
    with pytest.raises(UserError, match="nothing is published there"):
        texts_of_table(str(tmp_path / "out"), "text", "lang")


@pytest.fixture
def table_of(monkeypatch, tmp_path):
    """A published table of one file."""

    def make(table: pa.Table) -> str:
        pq.write_table(table, tmp_path / "data.parquet")
        for where in ("xlmr_ray.batch.duplicates.texts", "xlmr_ray.batch.duplicates.vectors"):
            monkeypatch.setattr(f"{where}.result_files", lambda output: [str(tmp_path / "data.parquet")])
        return "OUT"

    return make


VECTORS = pa.array([[1.0, 0.0], [1.0, 0.01]], pa.list_(pa.float16(), 2))


def test_a_published_table(table_of, tmp_path):
    rows = {"source": ["f", "f"], "row": pa.array([0, 1], pa.int64()), "body": ["a b", "a  b"], "n": [1, 2]}
    output = table_of(pa.table({**rows, "embedding": VECTORS}))
    assert run(tmp_path / "found", texts_of_table(output, "body", "n"))[1]["removed"] == 1
    assert embeddings_of(output, "embedding", "none").column == "embedding"
    there = "there are source (string), row (int64), body (string), n (int64), embedding (fixed_size_list<"
    there += "element: halffloat>[2])"
    for call, message in (
        (
            lambda: texts_of_table(output, "text", "none"),
            f"OUT: --text text: no such column; {there}; keep it in the job",
        ),
        (lambda: texts_of_table(output, "n", "none"), "OUT: --text n: is int64; expected strings"),
        (
            lambda: texts_of_table(output, "body", "lang"),
            f"OUT: --by lang: no such column; {there}; keep it in the job",
        ),
        (
            lambda: embeddings_of(output, "dense", "none"),
            f"OUT: --vectors dense: no such column; {there}; a job with the task",
        ),
        (
            lambda: embeddings_of(output, "body", "none"),
            "OUT: --vectors body: is string; expected vectors of floats of one length;",
        ),
        (
            lambda: embeddings_of(output, "embedding", "lang"),
            f"OUT: --by lang: no such column; {there}; keep it in the job",
        ),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value).startswith(message)


def test_what_repeats_a_document_that_goes_repeats_the_one_that_stays():
    names = ["source", "row", "language", "method", "similarity", "duplicate_of_source", "duplicate_of_row"]
    rows = [("f", 3, "de", "exact", 1.0, "f", 2), ("f", 5, "de", "minhash", 0.9, "f", 4)]
    near = [("f", 2, "de", "embedding", 0.99, "f", 0)]
    tables = [pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in part]) for part in (rows, near)]
    schema = vectors_module.PAIRS
    found = followed(*(table.cast(schema) for table in tables)).sort_by("row")
    assert found.select(["row", "duplicate_of_row"]).to_pydict() == {"row": [2, 3, 5], "duplicate_of_row": [0, 0, 4]}


class InMemory:
    """`VectorColumn` without a table."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def rows(self, removed) -> ray.data.Dataset:
        named = self.table.rename_columns(["source", "row", "lang", "vector"])
        rows = ray.data.from_arrow([named.slice(0, 50), named.slice(50)])
        return rows.map_batches(vectors_module.left_of, fn_args=(removed, "vector", "lang"), batch_format="pyarrow")


def test_embeddings_by_blocks_on_ray(ray_session, tmp_path, monkeypatch):
    """A language that is cut, and two that are not, less what others have removed; blocks that are done stay."""
    monkeypatch.setattr(vectors_module, "BLOCK_ROWS", 60)
    drawn = np.random.default_rng(0)
    of = drawn.integers(0, 40, 150)
    rows = drawn.normal(size=(40, 16))[of] + drawn.normal(size=(150, 16)) * 0.01
    flat = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel(), pa.float32()), 16)
    language = ["de" if number < 120 else "fr" if number < 148 else "" for number in range(150)]
    table = pa.table({"source": ["f"] * 150, "row": list(range(150)), "language": language, "vector": flat})
    removed = {"f": np.array([7, 9, 130])}
    steps = Steps(open_store(str(tmp_path)), "run/steps/")
    found, counted = near_duplicates(InMemory(table), steps, 0.95, removed)
    assert counted.to_pydict() == {"language": ["", "de", "fr"], "documents": [2, 118, 27]}
    assert {"block_00000000", "block_00000001", "block_00000002", "block_00000003"} == steps.there("block_")
    seen: dict[tuple[str, int], int] = {}
    wanted = {}
    for number in range(150):
        if number not in (7, 9, 130):
            first = seen.setdefault((language[number], int(of[number])), number)
            if first != number:
                wanted[number] = first
    got = dict(zip(found["row"].to_pylist(), found["duplicate_of_row"].to_pylist(), strict=True))
    assert got == wanted
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "steps").glob("*.parquet")}
    whole = (tmp_path / "run" / "steps" / "near.parquet").read_bytes()
    for name in ("near", "block_00000001"):
        (tmp_path / "run" / "steps" / f"{name}.parquet").unlink()
    again, _ = near_duplicates(InMemory(table), steps, 0.95, removed)
    assert again.equals(found)
    assert (tmp_path / "run" / "steps" / "near.parquet").read_bytes() == whole
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "steps").glob("*.parquet")}
    assert {name for name in files if files[name] != now[name]} == {"near.parquet", "block_00000001.parquet"}


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (UserError("in.jsonl: no"), "in.jsonl: no"),
        (ValueError("first\nsecond"), "a part of the search failed: first"),
    ],
)
def test_an_error_on_another_machine_is_one_line(ray_session, raised, message):
    def fail(item: int) -> None:
        raise raised

    with pytest.raises((UserError, JobFailed)) as caught, in_one_line():
        on_ray(fail, range(3))
    assert str(caught.value) == message
    assert isinstance(caught.value, UserError) == isinstance(raised, UserError)
