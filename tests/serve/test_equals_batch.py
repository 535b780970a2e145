"""Every task's answer over HTTP is what a batch job writes for the same document, alone and among 64 others."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.serve.server import HEADS, Running
from tests.steps_here import here
from tests.tasks.texts import languages

ARTICLES = list(languages().values())
TEXTS = [articles[0] for articles in ARTICLES][:20] + [" ".join(articles)[:3000] for articles in ARTICLES][:4]
DOCUMENTS = [
    {
        "text": text,
        "text_pair": other,
        "question": other[:60],
        "context": text,
        "choices": [other, text, f"{text[:50]} {other[:50]}"],
        "masked": f"{text[:40]} <mask> {text[40:80]}",
    }
    for text, other in zip(TEXTS, reversed(TEXTS), strict=True)
]
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A task of a job and its counterpart over HTTP: the body for a document, and the answer that a row stands for."""

    task: str
    model: str
    options: Row
    body: Callable[[Row], Row]
    wanted: Callable[[Row], Any]


def text(parameters: Row | None = None, **more: Any) -> Callable[[Row], Row]:
    def body(document: Row) -> Row:
        return {"inputs": document["text"], **more} | ({"parameters": parameters} if parameters else {})

    return body


def masked(parameters: Row | None = None) -> Callable[[Row], Row]:
    def body(document: Row) -> Row:
        return {"inputs": document["masked"]} | ({"parameters": parameters} if parameters else {})

    return body


def parts(*names: str) -> Callable[[Row], Row]:
    return lambda document: {"inputs": {name: document[name] for name in names}}


def entities(row: Row) -> list[Row]:
    names = {"label": "entity_group", "score": "score", "word": "word", "start": "start", "end": "end"}
    return [{new: entity[old] for old, new in names.items()} for entity in row["entities"]]


def only(*names: str) -> Callable[[Row], Row]:
    return lambda row: {name: row[name] for name in names}


CAUSAL = "causal"
LABELS = ["law", "food", "war"]
ON_TEXTS = [
    Case("embedding", "mini", {}, text(truncate=True), lambda row: [row["embedding"]]),
    Case(
        "feature-extraction",
        "mini",
        {"layers": [1]},
        text({"layers": [1]}, truncate=True),
        lambda row: [row["features"]],
    ),
    # A job whose input has pairs reads pairs, if nothing else is said.
    Case("text-classification", "mini", {"top_k": None, "pairs": False}, text(), lambda row: [row["labels"]]),
    Case(
        "text-classification",
        "script",
        {"top_k": 2, "pairs": False},
        text({"top_k": 2}),
        lambda row: [row["labels"]],
    ),
    Case(
        "text-classification",
        "entailment",
        {"top_k": None},
        parts("text", "text_pair"),
        lambda row: [row["labels"]],
    ),
    Case(
        "token-classification",
        "entities",
        {"aggregation_strategy": "simple"},
        text({"aggregation_strategy": "simple"}),
        entities,
    ),
    Case(
        "question-answering",
        "answers",
        {},
        parts("question", "context"),
        only("answer", "score", "start", "end"),
    ),
    Case(
        "zero-shot-classification",
        "entailment",
        {"candidate_labels": LABELS},
        text({"candidate_labels": LABELS}),
        lambda row: row["labels"],
    ),
    Case("rerank", "relevance", {}, parts("text", "text_pair"), lambda row: row["score"]),
    Case(
        "sentence-similarity",
        "mini",
        {},
        lambda document: {
            "inputs": {"source_sentence": document["text"], "sentences": [document["text_pair"]]},
            "parameters": {"truncate": True},
        },
        lambda row: [row["score"]],
    ),
    Case("multiple-choice", "choice", {}, parts("text", "choices"), only("choice", "score", "scores")),
]
LIKELIHOOD = only("perplexity", "log_likelihood", "tokens")
ON_MASKED = [
    Case(
        "fill-mask",
        "masked",
        {"top_k": 3},
        masked({"top_k": 3}),
        lambda row: [{"score": one["score"], "token": one["token"]} for one in row["fills"][0]],
    ),
    Case("pseudo-perplexity", "masked", {"passes": 3}, masked({"passes": 3}), LIKELIHOOD),
    Case("perplexity", CAUSAL, {}, masked(), LIKELIHOOD),
    Case(
        "text-generation",
        CAUSAL,
        {"max_new_tokens": 4, "do_sample": True, "seed": 7},
        masked({"max_new_tokens": 4, "do_sample": True, "seed": 7}),
        lambda row: [{"generated_text": row["generated_text"]}],
    ),
]


@pytest.fixture(scope="module")
def scored(server: Running, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Case, list[Row]]]:
    """Each case with the rows that a job has for the documents, a job for all tasks that read the same column."""
    folder = tmp_path_factory.mktemp("batch")
    pq.write_table(pa.Table.from_pylist(DOCUMENTS), folder / "documents.parquet")
    with here():
        return [
            *batch(folder, "text", ON_TEXTS, server),
            *batch(folder, "masked", ON_MASKED, server),
        ]


def batch(folder: Path, column: str, cases: list[Case], server: Running) -> list[tuple[Case, list[Row]]]:
    from xlmr_ray.batch.job import check_job
    from xlmr_ray.batch.run import run_job

    models = {"mini": "embedded:mini", CAUSAL: server.source("causal")}
    tasks = [
        {"task": case.task, "name": f"t{place}", "model": models.get(case.model, HEADS + case.model), **case.options}
        for place, case in enumerate(cases)
    ]
    roles = ("text_pair", "question", "context", "choices") if column == "text" else ()
    content = {
        "model": "embedded:mini",
        "input": {"path": str(folder / "documents.parquet"), "text": column} | {role: role for role in roles},
        "tasks": tasks,
        "output": {"path": str(folder / f"out-{column}")},
        "cluster": {"shard_rows": 10},
    }
    outcome = run_job(check_job(content, "test"), quiet=True)
    assert (outcome.manifest.rows_ok, outcome.manifest.rows_error) == (len(DOCUMENTS), 0)
    table = pq.read_table(folder / f"out-{column}" / "data").sort_by("row")
    assert table["row"].to_pylist() == list(range(len(DOCUMENTS)))
    out = []
    for place, case in enumerate(cases):
        own = [name for name in table.column_names if name.startswith(f"t{place}_")]
        assert own
        rows = table.select(own).rename_columns([name.partition("_")[2] for name in own]).to_pylist()
        out.append((case, rows))
    return out


async def asked(client: httpx.AsyncClient, case: Case, document: Row) -> Any:
    answer = await client.post(f"/tasks/{case.task}", json=case.body(document), params={"model": case.model})
    assert answer.status_code == 200, (case.task, answer.text)
    return answer.json()


def test_alone(server: Running, scored: list[tuple[Case, list[Row]]]) -> None:
    async def go() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            for case, rows in scored:
                for document, row in zip(DOCUMENTS, rows, strict=True):
                    same(await asked(client, case, document), case.wanted(row), case.task)

    asyncio.run(go())


def test_among_64_others(server: Running, scored: list[tuple[Case, list[Row]]]) -> None:
    """All tasks and documents, 64 at a time, those of the same document not beside each other."""
    every = [(case, document, row) for case, rows in scored for document, row in zip(DOCUMENTS, rows, strict=True)]
    every = [every[place * 37 % len(every)] for place in range(len(every))]
    assert len({id(row) for _, _, row in every}) == len(every) >= 300
    most = 0

    async def go() -> None:
        async with httpx.AsyncClient(
            base_url=server.url, timeout=120, limits=httpx.Limits(max_connections=64)
        ) as client:
            door = asyncio.Semaphore(64)

            async def one(case: Case, document: Row, row: Row) -> None:
                nonlocal most
                async with door:
                    got = await asked(client, case, document)
                    most = max(most, server.service.in_flight)
                same(got, case.wanted(row), case.task)

            await asyncio.gather(*(one(*each) for each in every))

    asyncio.run(go())
    assert most > 32


def same(got: Any, wanted: Any, where: str) -> None:
    """Equal, numbers within 1e-6 of each other or, above 1, of their size. Of fills the batch has no sequences."""
    if isinstance(wanted, dict):
        assert wanted.keys() <= got.keys(), where
        for name, value in wanted.items():
            same(got[name], value, f"{where}.{name}")
    elif isinstance(wanted, list):
        assert len(got) == len(wanted), where
        for place, (one, other) in enumerate(zip(got, wanted, strict=True)):
            same(one, other, f"{where}.{place}")
    elif isinstance(wanted, float):
        assert math.isclose(got, wanted, rel_tol=1e-6, abs_tol=1e-6), (where, got, wanted)
    else:
        assert got == wanted, where
