"""Launches of an incremental job without Ray and model: the rows that it writes are the texts that it reads. A launch
is a generator that stops at every step, so that two can be mixed, and one can be left where a crash would.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.incremental import plan_next, publish_found
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.file import InputChanged
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.ledger.commit import commit_shard
from xlmr_ray.batch.ledger.manifest import finish, read_manifest
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.record import committed_shards, new_attempt
from xlmr_ray.batch.ledger.snapshot import DATA, table_files
from xlmr_ray.batch.score import commit_dead
from xlmr_ray.batch.stages.rows import error_table, good_rows
from xlmr_ray.errors import UserError

COLUMNS = Columns(text={"text": "text"}, id="id", keep=("lang",))
IDENTITY = {"model": "first"}


def write(folder, name, texts):
    """A file of the corpus, replaced if it is there: another object, as a store would have it."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.unlink(missing_ok=True)
    lines = [json.dumps({"id": f"{name}-{i}", "lang": "xx", "text": text}) + "\n" for i, text in enumerate(texts)]
    other = path.with_suffix(".new")
    other.write_text("".join(lines), "utf-8")
    other.rename(path)


def commit_one(store, run, shard):
    rows = read_shard(shard, COLUMNS)
    good = rows.take(good_rows(rows))
    columns = {
        "source": pa.repeat(pa.scalar(shard.input.key), good.num_rows),
        "row": good["_row"],
        "id": good["id"],
        "lang": good["lang"],
        "text": good["text"],
    }
    return commit_shard(
        store,
        run,
        shard.id,
        attempt=new_attempt(),
        rows=pa.table(columns),
        errors=error_table(rows, shard.input.key),
        rows_in=shard.rows,
        source_key=shard.input.key,
        source_etag=shard.input.etag,
    )


def launch(
    store, folder, *, started=0.0, drop=False, identity=IDENTITY, told=None, strict=False, merge=lambda run_id: None
):
    """Yields what it has just done. `told` collects what was found; `strict` raises what ends a real one; `merge`: see
    `publish_found`.
    """
    while True:
        try:
            inputs = find_inputs(str(folder), columns=COLUMNS).inputs
        except UserError:
            return
        yield "listed"
        try:
            found = plan_next(store, identity, "test", COLUMNS, inputs, drop=drop, shard_rows=2)
        except (InputChanged, UserError):  # such as that nothing of what is new can be read
            if strict:
                raise
            return
        if told is not None:
            told.append(found)
        yield "planned"
        if found.plan is not None and read_manifest(store, found.plan.run_id) is None:
            run = found.plan.run_id
            done = set(committed_shards(store, run))
            try:
                for file in found.plan.dead:
                    if file.id not in done:
                        commit_dead(store, run, file)
                        yield "committed"
                for shard in found.plan.shards:
                    if shard.id not in done:
                        commit_one(store, run, shard)
                        yield "committed"
            except InputChanged:
                return  # what the real one says is "start the job again"
            finish(store, run, found.plan.ids())
            yield "finished"
        _, settled = publish_found(store, found, started=started, merge=merge)
        if settled:
            return
        yield "published"


def whole(store, folder, **options):
    """A launch to its end; what it found, step by step."""
    told = []
    for _ in launch(store, folder, told=told, **options):
        pass
    return told


def seen(store, kind=DATA):
    """What a reader sees: {(file name, row): text or code}, each row once."""
    published = current(store)
    rows = {}
    for file in table_files(store, published.run_id, kind) if published else ():
        table = pq.read_table(pa.BufferReader(store.get(file.key)[0]))
        assert table.num_rows == file.rows
        for row in table.to_pylist():
            key = (Path(row["source"]).name, row["row"])
            assert key not in rows, "a row twice"
            rows[key] = row["text" if kind == DATA else "code"]
    return rows


def truth(folder):
    """What the files say now."""
    rows = {}
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        for i, line in enumerate(path.read_text("utf-8").splitlines()):
            rows[path.name, i] = json.loads(line)["text"]
    return rows
