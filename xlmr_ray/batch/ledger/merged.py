"""Files of the published table that others were merged into: readers see them in the others' place.

    merged/<run_id>/<group>-<attempt>.parquet   attempt-unique, as a shard's files are
    _runs/<run_id>/merged/<group>.json          its record, created once: which files' rows it has
    _runs/<run_id>/merged.parquet               what puts all of them in place, created once (merge.py)

A group's name follows from what is merged, so two that merge one table write the same groups, and of each one wins.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xlmr_ray.batch.ledger.in_order import in_order
from xlmr_ray.batch.ledger.json_by_line import VERSION, Damaged, canonical, parsed
from xlmr_ray.batch.ledger.record import ATTEMPT_FILE, File, new_attempt
from xlmr_ray.batch.store.base import Exists, Store
from xlmr_ray.errors import JobFailed

GROUP_ROWS, GROUP_BYTES = 100_000, 64 << 20  # of a row group, at most, in memory


@dataclass(frozen=True, slots=True)
class Merged:
    """A file with the rows of the files `of`, in their order, but those of the sources `without`."""

    file: File
    of: tuple[str, ...]
    without: tuple[str, ...]

    def to_bytes(self) -> bytes:
        content = {"version": VERSION, **asdict(self)}
        return canonical({**content, "check": hashlib.sha256(canonical(content)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes, url: str) -> Merged:
        """Raises `Damaged`, naming `url`."""
        content = parsed(data, url)
        check = content.pop("check", None)
        if check != hashlib.sha256(canonical(content)).hexdigest():
            raise Damaged(f"{url}: is damaged: its checksum is wrong")
        return cls(File(**content["file"]), tuple(content["of"]), tuple(content["without"]))


def group_name(of: Sequence[str], without: Collection[str]) -> str:
    return hashlib.sha256(canonical({"of": list(of), "without": sorted(without)})).hexdigest()[:16]


def merged_key(run_id: str, group: str) -> str:
    return f"_runs/{run_id}/merged/{group}.json"


def merged_table_key(run_id: str) -> str:
    return f"_runs/{run_id}/merged.parquet"


def read_merged(store: Store, run_id: str, group: str) -> Merged | None:
    """The record of a group, None where it has none. Raises `Damaged`."""
    key = merged_key(run_id, group)
    try:
        return Merged.from_bytes(store.get(key)[0], store.url(key))
    except FileNotFoundError:
        return None


def all_merged(store: Store, run_id: str) -> Iterator[Merged]:
    """The records of a run's groups. Raises `Damaged`."""
    start = len(merged_key(run_id, "")) - len(".json")
    groups = (entry.key[start : -len(".json")] for entry in store.list(f"_runs/{run_id}/merged/"))
    for found in in_order(lambda group: read_merged(store, run_id, group), groups):
        if found is not None:
            yield found


def record_of(store: Store, key: str) -> Merged | None:
    """The record that names a merged file by its key."""
    _, run_id, name = key.split("/")
    match = ATTEMPT_FILE.fullmatch(name)
    found = None if match is None else read_merged(store, run_id, match["shard"])
    return found if found is not None and found.file.key == key else None


def merge_files(store: Store, run_id: str, of: Sequence[str], without: Collection[str] = ()) -> Merged:
    """Merges files, or finds them merged. Raises JobFailed where one is not as the others."""
    group = group_name(of, without)
    if (found := read_merged(store, run_id, group)) is not None:
        return found
    data, rows = to_one(merged_tables(store, of, without))
    file = File(f"merged/{run_id}/{group}-{new_attempt()}.parquet", len(data), hashlib.sha256(data).hexdigest(), rows)
    etag = store.put(file.key, data)
    entry = store.head(file.key)
    if entry is None or entry.size != file.bytes or entry.etag != etag:
        raise JobFailed(f"{store.url(file.key)}: is not what was written there a moment ago; try again")
    ours = Merged(file, tuple(of), tuple(sorted(without)))
    try:
        store.create(merged_key(run_id, group), ours.to_bytes())
        return ours
    except Exists:
        winner = read_merged(store, run_id, group)
    if winner is None:
        raise JobFailed(f"{store.url(merged_key(run_id, group))}: is gone; try again")
    if winner.file.key != file.key:
        store.delete(file.key)
    return winner


def merged_tables(store: Store, of: Iterable[str], without: Collection[str]) -> Iterator[pa.Table]:
    left_out = pa.array(sorted(without), pa.string())
    schema: pa.Schema | None = None
    for key, data in in_order(lambda key: (key, store.get(key)[0]), of):
        for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches():
            table = pa.Table.from_batches([batch])
            schema = schema or table.schema
            if not table.schema.equals(schema):
                raise JobFailed(f"{store.url(key)}: has other columns than the file before it; not merged")
            yield table.filter(pc.invert(pc.is_in(table["source"], left_out))) if without else table


def to_one(tables: Iterable[pa.Table]) -> tuple[bytes, int]:
    """One Parquet file and its rows, in row groups that readers like, with statistics of all columns and pages."""
    sink = io.BytesIO()
    writer: pq.ParquetWriter | None = None
    held: list[pa.Table] = []
    rows = 0

    def write() -> None:
        if writer is not None and held:
            writer.write_table(pa.concat_tables(held).combine_chunks(), row_group_size=GROUP_ROWS)
        held.clear()

    for table in tables:
        if writer is None:
            texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
            writer = pq.ParquetWriter(
                sink, table.schema, compression="zstd", use_dictionary=texts, write_page_index=True
            )
        while table.num_rows:
            room = GROUP_ROWS - sum(one.num_rows for one in held)
            part, table = table.slice(0, room), table.slice(room)
            held.append(part)
            rows += part.num_rows
            if part.num_rows == room or sum(one.nbytes for one in held) >= GROUP_BYTES:
                write()
    if writer is None:
        raise ValueError("nothing to merge")
    write()
    writer.close()
    return sink.getvalue(), rows
