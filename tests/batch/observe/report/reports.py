"""Runs with a report to make, committed without Ray and without a model."""

import pyarrow as pa

from tests.batch.runs import create_plan
from xlmr_ray.batch.ledger.commit import commit_shard
from xlmr_ray.batch.ledger.json_by_line import canonical
from xlmr_ray.batch.ledger.manifest import finish
from xlmr_ray.batch.ledger.published import publish
from xlmr_ray.batch.ledger.record import ERROR_SCHEMA, Stats, new_attempt
from xlmr_ray.batch.observe.launches import launches_key
from xlmr_ray.batch.observe.report.counts import summarize

RUN = "0123456789abcdef"
# What somebody who does not like us calls his labels, files, columns and jobs.
HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</title></svg></style><script>document.title='owned'</script>",
    "javascript:alert(1) $\\frac{$ --> ]]> &lt;",
)


def rows(labels, langs, *, tokens=None, source="in/a"):
    count = len(labels)
    return pa.table(
        {
            "source": [source] * count,
            "row": pa.array(range(count), pa.int64()),
            "id": [""] * count,
            "lang": pa.array(langs, pa.string()),
            "label": pa.array(labels, pa.string()),
            "score": pa.array([0.5 + i / (2 * max(1, count)) for i in range(count)], pa.float32()),
            "tokens": pa.array(tokens or [10 + i for i in range(count)], pa.int32()),
            "truncated": [i == 0 for i in range(count)],
        }
    )


def error_rows(codes, source="in/a"):
    return pa.table(
        [[source] * len(codes), list(range(500, 500 + len(codes))), [""] * len(codes), codes, ["wrong"] * len(codes)],
        schema=ERROR_SCHEMA,
    )


def plan(store, shards, *, name="labels", run=RUN):
    task = {"task": "text-classification", "prefix": "", "options": {}, "weights": "ab" * 32, "tokenizer": "cd" * 8}
    head = {"run_id": run, "job": name, "identity": {"tasks": [task]}}
    create_plan(store, run, {**head, "shards": [{"id": shard} for shard in shards]})


def launch(store, *, started=0.0, run=RUN, **job):
    content = {
        "started": started,
        "code": "0.1.0",
        "python": "3.11",
        "ray": "2.60.0",
        "torch": "2.13",
        "job": {"name": "labels", "model": "embedded:mini", "tasks": [{"task": "text-classification"}], **job},
        "nodes": [{"host": "a", "cpus": 4.0, "gpus": 0.0, "memory": 1e9}],
        "tokenizers": 1,
        "encoders": 2,
        "writers": 1,
    }
    store.put(f"{launches_key(run)}{started:.3f}.json", canonical(content))


def shard(store, name, table, *, codes=(), groups=("lang",), source="in/a", run=RUN, device="H100", seconds=2.0):
    stats = Stats(
        seconds=seconds,
        tokens=sum(table["tokens"].to_pylist()),
        padded=1,
        engine_seconds=1.0,
        operations=1e14,
        host="a",
        device=device,
        summary=summarize(table, [""], list(groups)).to_json(),
    )
    record, _ = commit_shard(
        store,
        run,
        name,
        attempt=new_attempt(),
        rows=table,
        errors=error_rows(list(codes), source),
        rows_in=table.num_rows + len(codes),
        source_key=source,
        source_etag="e",
        stats=stats,
    )
    return record


def finished(store, names, *, run=RUN):
    finish(store, run, names)
    publish(store, run)


def hostile_run(store):
    """A run in which every text that its report shows is hostile."""
    langs = [HOSTILE[0][:38], HOSTILE[3][:38], "en", "en"] * 3
    # Another column's name, too.
    table = rows([HOSTILE[i % 4] for i in range(12)], langs, source=HOSTILE[1])
    table = table.rename_columns([HOSTILE[2] if name == "lang" else name for name in table.column_names])
    plan(store, ["00000"], name=HOSTILE[2])
    launch(store, name=HOSTILE[0], model=HOSTILE[1])
    shard(
        store,
        "00000",
        table,
        codes=[HOSTILE[0], "empty_text"],
        groups=[HOSTILE[2]],
        source=HOSTILE[1],
        device=HOSTILE[0],
    )
    finished(store, ["00000"])


def plain_run(store, *, shards=6, rows_each=40):
    """A run of a few languages and labels, like most."""
    names = [f"{i:05}" for i in range(shards)]
    plan(store, names)
    launch(store, report={"price_per_hour": 3.6, "currency": "EUR"})
    for i, name in enumerate(names):
        langs = [("de", "en", "日本語")[(i + j) % 3] for j in range(rows_each)]
        labels = [("good", "bad", "none of these")[(i * j) % 3] for j in range(rows_each)]
        tokens = [2 ** (j % 9) + j for j in range(rows_each)]
        codes = ["empty_text"] * i + (["malformed_json"] if i == 3 else [])
        shard(store, name, rows(labels, langs, tokens=tokens, source=f"in/{i}"), codes=codes, source=f"in/{i}")
    finished(store, names)
