"""The table that a reader sees: which committed files are in it, of which run, for which input.

A full run is its own table, by its manifest. Incremental runs make one table together; each adds its inputs to the
table of the run that it was planned upon, and takes out those that were replaced or dropped:

    _runs/<run_id>/table.parquet          a row for each input and committed file of it; `Head` in its metadata

Where its small files were merged (merged.py), `merged.parquet` is the same table with the merged files in it. A merged
file may have rows of several inputs; where a later run replaces or drops one of them, it writes what is left anew.

So a reader needs two small requests and one large one however many runs there were, and what a night adds to the store
is one object as long as the table has files (some 100 bytes each). It follows from the plan, the manifest and the table
before, and nothing else, so that two drivers write the same one, and it can be checked (`table_problems`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xlmr_ray.batch.input.file import InputFile
from xlmr_ray.batch.ledger.commit import ROW_GROUP
from xlmr_ray.batch.ledger.json_by_line import Damaged, items_of
from xlmr_ray.batch.ledger.manifest import manifest_key
from xlmr_ray.batch.ledger.merged import group_name, merge_files, merged_key, merged_table_key, read_merged
from xlmr_ray.batch.ledger.record import File, plan_head, plan_key
from xlmr_ray.batch.store.base import Exists, Store
from xlmr_ray.errors import JobFailed

DATA, ERRORS = "data", "errors"
MERGED = "merged/"  # where files of `DATA` lie that others were merged into
# An input without rows has one row here without a file: it is known, and need not be read again.
NONE = "none"
SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "size": pa.int64(),
        "etag": pa.string(),
        "run_id": pa.string(),
        "kind": pa.string(),
        "file": pa.string(),
        "bytes": pa.int64(),
        "rows": pa.int64(),
    }
)
HEAD = "xlmr_ray"


@dataclass(frozen=True, slots=True)
class Step:
    """What the plan of an incremental run says of the table before, which is that of the run `after` (None: the job has
    none yet): `job` is the identity of all runs of the chain; keys of inputs whose rows are `replaced` by new ones, and
    of those that are `dropped`, since they are `gone`; how many are gone and keep their rows.
    """

    job: str
    after: str | None
    replaced: tuple[str, ...]
    dropped: tuple[str, ...]
    gone: int


@dataclass(frozen=True, slots=True)
class Head:
    """A table in sum. `runs` is the whole chain, the first one first, `after` the one before; what the run did to the
    table before: inputs that it `added`, `replaced` and `dropped`, and those `withdrawn`, which it had planned and did
    not score because they changed. `gone` inputs were not there any more when it was planned; their rows are.
    """

    run_id: str
    job: str
    after: str | None
    runs: tuple[str, ...]
    inputs: int
    files: int
    rows_ok: int
    rows_error: int
    added: int
    replaced: int
    dropped: int
    gone: int
    withdrawn: int


def table_key(run_id: str) -> str:
    return f"_runs/{run_id}/table.parquet"


def read_step(store: Store, run_id: str) -> Step | None:
    """What the run's plan says of the table before; None for a full run. Raises FileNotFoundError, `Damaged`."""
    content = plan_head(store, run_id).get("step")
    try:
        return None if content is None else step_from_dict(content)
    except TypeError:
        raise Damaged(f"{store.url(plan_key(run_id))}: is damaged: a step of another form") from None


def planned_inputs(store: Store, run_id: str) -> Iterator[InputFile]:
    """What a run reads, in the order of its plan. Raises FileNotFoundError, `Damaged`."""
    key = plan_key(run_id)
    for line in items_of(store, key, "inputs"):
        try:
            yield InputFile(**line)
        except TypeError:
            raise Damaged(f"{store.url(key)}: is damaged: an input of another form") from None


def step_from_dict(content: Mapping[str, Any]) -> Step:
    """A step out of a plan."""
    return Step(**{**content, "replaced": tuple(content["replaced"]), "dropped": tuple(content["dropped"])})


def write_table(store: Store, run_id: str) -> Head | None:
    """Writes the table of a finished run; None, and nothing written, where the run is none of a chain. Writing it twice
    changes nothing.
    """
    if read_step(store, run_id) is None:
        return None
    for file, sources in torn(store, run_id).items():
        merge_files(store, run_id, [file], sources)
    head, data = build_table(store, run_id)
    try:
        store.create(table_key(run_id), data)
    except Exists:
        # Not compared by bytes: another version of the Parquet library spells the same table differently.
        if problems := table_problems(store, run_id):
            raise Damaged(problems[0]) from None
    return head


def read_head(store: Store, run_id: str) -> Head | None:
    """The sums of a run's table, None where none was written for it. Raises `Damaged`."""
    try:
        with store.open(table_key(run_id)) as file:
            return _head(pq.read_metadata(file).metadata)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError):
        raise Damaged(f"{store.url(table_key(run_id))}: is damaged: cannot be read as a table") from None


def read_table(store: Store, run_id: str, *, merged: bool = True) -> Iterator[pa.Table]:
    """The table of a finished run, in parts; with `merged` files where there are any, else as the run left it. Raises
    `Damaged`, JobFailed where the run is not finished.
    """
    if merged:
        try:
            yield from _stored_tables(store, merged_table_key(run_id))
            return
        except FileNotFoundError:
            pass
    try:
        yield from _stored_tables(store, table_key(run_id))
        return
    except FileNotFoundError:
        key = table_key(run_id)
        # The inputs of an incremental run are not the whole table: better none than a wrong one.
        if read_step(store, run_id) is not None:
            raise JobFailed(f"{store.url(key)}: is missing, so what run {run_id} adds to is not known") from None
        inputs = {one.key: one for one in planned_inputs(store, run_id)}
        yield from _own_inputs(_committed(store, run_id), inputs, run_id)


def _stored_tables(store: Store, key: str) -> Iterator[pa.Table]:
    """A table out of the store. Raises FileNotFoundError, `Damaged`."""
    data = store.get(key)[0]
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        for batch in file.iter_batches(ROW_GROUP):
            yield pa.Table.from_batches([batch]).select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, KeyError, ValueError, OSError):
        raise Damaged(f"{store.url(key)}: is damaged: cannot be read as a table") from None


def table_files(store: Store, run_id: str, kind: str) -> Iterator[File]:
    """The committed files of a kind, `DATA` or `ERRORS`, that a reader of the table sees; `sha256` is not in it."""
    last: File | None = None
    for part in read_table(store, run_id):
        for row in part.filter(pc.equal(part["kind"], kind)).select(["file", "bytes", "rows"]).to_pylist():
            if last is not None and last.key == row["file"]:  # which has rows of several inputs
                last = File(last.key, last.bytes, "", last.rows + row["rows"])
                continue
            if last is not None:
                yield last
            last = File(row["file"], row["bytes"], "", row["rows"])
    if last is not None:
        yield last


def table_inputs(store: Store, run_id: str) -> dict[str, tuple[int, str]]:
    """Size and etag of each input in the table, by its key."""
    known: dict[str, tuple[int, str]] = {}
    for part in read_table(store, run_id):
        for row in part.group_by(["source", "size", "etag"], use_threads=False).aggregate([]).to_pylist():
            known[row["source"]] = (row["size"], row["etag"])
    return known


def table_problems(store: Store, run_id: str) -> list[str]:
    """What is wrong with a finished run's table, a line each: it must be what its parts make it."""
    where = store.url(table_key(run_id))
    try:
        if read_step(store, run_id) is None:
            return []
        found = read_head(store, run_id)
        if found is None:
            return [f"{where}: is missing"]
        got = pa.concat_tables([SCHEMA.empty_table(), *read_table(store, run_id, merged=False)])
        # The table before may have been merged since this one was built upon it.
        problems = _differences(store, run_id, found, got, merged=True)
        return problems and _differences(store, run_id, found, got, merged=False)
    except (Damaged, JobFailed) as error:
        return [str(error)]
    except FileNotFoundError as error:
        return [f"{error}: is missing"]


def _differences(store: Store, run_id: str, found: Head, got: pa.Table, *, merged: bool) -> list[str]:
    where = store.url(table_key(run_id))
    expected, data = build_table(store, run_id, merged=merged)
    if found != expected:
        return [f"{where}: its sums are not those of the plan, the manifest and the table before"]
    if not got.equals(pq.read_table(pa.BufferReader(data)).cast(SCHEMA)):
        return [f"{where}: does not agree with the plan, the manifest and the table before"]
    return []


def _out(store: Store, run_id: str, step: Step) -> tuple[dict[str, InputFile], set[str], pa.Array]:
    """Of a run of a chain: the inputs that it has rows of, those that it has withdrawn, and what goes from the table
    before: what the run has, or has dropped. What it has withdrawn stays there as it was.
    """
    withdrawn = _withdrawn(store, run_id)
    inputs = {one.key: one for one in planned_inputs(store, run_id)}
    own = {key: one for key, one in inputs.items() if key not in withdrawn}
    return own, withdrawn, pa.array(sorted({*own, *step.dropped}), pa.string())


def torn(store: Store, run_id: str, *, merged: bool = True) -> dict[str, tuple[str, ...]]:
    """The merged files of the table before of which only a part of the inputs go, and which go of each."""
    step = read_step(store, run_id)
    if step is None or step.after is None:
        return {}
    _, _, out = _out(store, run_id, step)
    going: dict[str, set[str]] = {}
    staying: set[str] = set()
    for part in read_table(store, step.after, merged=merged):
        of_files = part.filter(pc.and_(pc.equal(part["kind"], DATA), pc.starts_with(part["file"], MERGED)))
        for row in of_files.append_column("goes", pc.is_in(of_files["source"], out)).to_pylist():
            if row["goes"]:
                going.setdefault(row["file"], set()).add(row["source"])
            else:
                staying.add(row["file"])
    return {file: tuple(sorted(sources)) for file, sources in going.items() if file in staying}


def _mended(store: Store, run_id: str, part: pa.Table, place: Mapping[str, tuple[str, ...]]) -> pa.Table:
    """The part of a table with what is left of torn files in their place."""
    if not place or not pc.any(pc.is_in(part["file"], pa.array(list(place), pa.string()))).as_py():
        return part
    rows = part.to_pylist()
    for row in rows:
        if row["file"] in place:
            group = group_name([row["file"]], place[row["file"]])
            left = read_merged(store, run_id, group)
            if left is None:
                raise Damaged(f"{store.url(merged_key(run_id, group))}: is missing")
            row["file"], row["bytes"] = left.file.key, left.file.bytes
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def build_table(store: Store, run_id: str, *, merged: bool = True) -> tuple[Head, bytes]:
    """The table that belongs to a finished run of a chain, by its plan, its manifest and the table before, `merged`
    where it was, or as that run left it.
    """
    step = read_step(store, run_id)
    if step is None:
        raise ValueError(f"run {run_id}: is a full run, its table is its manifest")
    own, withdrawn, out = _out(store, run_id, step)
    place = torn(store, run_id, merged=merged)
    replaced = [key for key in step.replaced if key not in withdrawn]
    runs: tuple[str, ...] = ()
    known, left, files = 0, set[str](), 0
    rows = {DATA: 0, ERRORS: 0}
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:

        def write(part: pa.Table) -> None:
            nonlocal files
            for kind in rows:
                of_kind = part.filter(pc.equal(part["kind"], kind))
                files += pc.count_distinct(of_kind["file"]).as_py()
                rows[kind] += pc.sum(of_kind["rows"]).as_py() or 0
            writer.write_table(part)

        if step.after is not None:
            before = read_head(store, step.after)
            runs = before.runs if before else (step.after,)
            known = before.inputs if before else sum(1 for _ in planned_inputs(store, step.after))
            for part in read_table(store, step.after, merged=merged):
                goes = pc.is_in(part["source"], out)
                left.update(pc.unique(part["source"].filter(goes)).to_pylist())
                write(_mended(store, run_id, part.filter(pc.invert(goes)), place))
        for part in _own_inputs(_committed(store, run_id), own, run_id):
            write(part)
        head = Head(
            run_id=run_id,
            job=step.job,
            after=step.after,
            runs=(*runs, run_id),
            inputs=known - len(left) + len(own),
            files=files,
            rows_ok=rows[DATA],
            rows_error=rows[ERRORS],
            added=len(own) - len(replaced),
            replaced=len(replaced),
            dropped=len(step.dropped),
            gone=step.gone,
            withdrawn=len(withdrawn),
        )
        writer.add_key_value_metadata({HEAD: json.dumps(asdict(head))})
    return head, sink.getvalue()


def _head(metadata: Mapping[bytes, bytes]) -> Head:
    content = json.loads(metadata[HEAD.encode()])
    return Head(**{**content, "runs": tuple(content["runs"])})


def _committed(store: Store, run_id: str) -> Iterator[dict[str, Any]]:
    key = manifest_key(run_id)
    try:
        yield from items_of(store, key, "committed")
    except FileNotFoundError:
        raise JobFailed(f"{store.url(key)}: is missing: the run is not finished") from None


def _withdrawn(store: Store, run_id: str) -> set[str]:
    """The inputs of which a shard was given up (`incremental.withdraw`): its record names no version of the input."""
    return {line["source_key"] for line in _committed(store, run_id) if not line["source_etag"]}


def _own_inputs(lines: Iterable[dict[str, Any]], inputs: Mapping[str, InputFile], run_id: str) -> Iterator[pa.Table]:
    """What a finished run itself has of its inputs, in the order of its shards; then the inputs that have no rows."""
    rows = _file_rows(lines, inputs, run_id)
    while part := list(islice(rows, ROW_GROUP)):
        yield pa.Table.from_pylist(part, schema=SCHEMA)


def _file_rows(
    lines: Iterable[dict[str, Any]], inputs: Mapping[str, InputFile], run_id: str
) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for line in lines:
        one = inputs.get(line["source_key"])
        if one is None:
            continue
        seen.add(one.key)
        for file in line["files"]:
            yield {
                "source": one.key,
                "size": one.size,
                "etag": one.etag,
                "run_id": run_id,
                "kind": file["key"].partition("/")[0],
                "file": file["key"],
                "bytes": file["bytes"],
                "rows": file["rows"],
            }
    for one in inputs.values():
        if one.key not in seen:
            yield {
                "source": one.key,
                "size": one.size,
                "etag": one.etag,
                "run_id": run_id,
                "kind": NONE,
                "file": None,
                "bytes": 0,
                "rows": 0,
            }
