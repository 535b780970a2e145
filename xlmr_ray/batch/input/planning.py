"""Cuts inputs into shards: the fixed pieces that are read, scored, written and committed whole.

Every shard's rows are counted in the plan, so progress, commit records and `verify` know them. For Parquet the footer
says them. Line formats are read through once, compressed ones too: a whole compressed file as one shard would have no
bound in memory (a 300 MB .json.gz of a web corpus holds over 1 GB), while a shard of it costs its reader only the
inflating up to its start. A file is planned by itself (`plan_input`), so planning spreads over threads or machines.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.readers import csv, parquet
from xlmr_ray.batch.input.readers.jsonl import is_blank
from xlmr_ray.batch.input.readers.raw import (
    BOM,
    MAX_ROW_BYTES,
    Damaged,
    Source,
    check_names,
    chunks,
    lines,
    without_return,
)
from xlmr_ray.batch.input.source import Format, Input

SHARD_BYTES = 32 << 20  # Ray Data may split a block over 128 MiB, and a shard is one block
_OTHERS = {
    b"PAR1": "Parquet",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "a zip archive",
    b"\xff\xfe": "UTF-16; wanted UTF-8",
    b"\xfe\xff": "UTF-16; wanted UTF-8",
}
BOMB_BYTES, BOMB_RATIO = 1 << 30, 200


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of one input. `id` depends on the input's place in the list and the place in the input alone.

    `first_row` is the position of the first row in the file (a line or record number from 0; blank lines count), `rows`
    how many rows there are. Line formats: bytes [start, stop) of the (inflated) content. Parquet: rows [start, stop).
    """

    id: str
    input: Input
    first_row: int
    rows: int
    start: int
    stop: int
    header: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A file, or the rest of it after its readable rows, that is not read, and why. `code`: a file code of `codes`."""

    key: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Planned:
    """One input's shards in order, the dead letter if it has one, and the Arrow types of its kept columns."""

    shards: tuple[Shard, ...]
    dead: DeadLetter | None
    kept: tuple[str, ...]


def plan_shards(
    inputs: Iterable[Input],
    *,
    shard_rows: int,
    columns: Columns,
    shard_bytes: int = SHARD_BYTES,
    workers: int = 8,
    options: Mapping[str, object] | None = None,
    kept: tuple[str, tuple[str, ...]] | None = None,
) -> Iterator[Shard | DeadLetter]:
    """Plan all inputs in order, `workers` at a time; no more than that many plans are held.

    A file whose kept columns have other types than the first readable file's becomes a dead letter: the output is one
    table. `kept` says which types they must have where that is settled: the file that they are from, and the types.
    Raises InputChanged where an object is not the listed one; errors of the store propagate.
    """
    if shard_rows < 1:
        raise ValueError(f"shard_rows is {shard_rows}; wanted at least 1")
    with ThreadPoolExecutor(workers) as pool:
        numbered = enumerate(inputs)
        running: deque[tuple[Input, Future[Planned]]] = deque()
        try:
            while True:
                for index, one in itertools.islice(numbered, 2 * workers - len(running)):
                    job = pool.submit(
                        plan_input,
                        one,
                        index,
                        shard_rows=shard_rows,
                        columns=columns,
                        shard_bytes=shard_bytes,
                        options=options,
                    )
                    running.append((one, job))
                if not running:
                    return
                one, job = running.popleft()
                planned = job.result()
                if planned.kept:
                    kept = kept or (one.key, planned.kept)
                    if drift := _drift(one.key, planned.kept, *kept, columns):
                        yield drift
                        continue
                yield from planned.shards
                if planned.dead:
                    yield planned.dead
        finally:
            for _, job in running:
                job.cancel()


def plan_input(
    one: Input,
    index: int,
    *,
    shard_rows: int,
    columns: Columns,
    shard_bytes: int = SHARD_BYTES,
    options: Mapping[str, object] | None = None,
) -> Planned:
    """Plan the input at `index` of the sorted list. Shards hold at most `shard_rows` rows and about `shard_bytes`."""
    source = Source(one, options)
    shards: list[Shard] = []
    dead: DeadLetter | None = None
    kept: tuple[str, ...] = ()
    try:
        if source.info() is None:
            raise Damaged(codes.FILE_GONE, "deleted after it was listed, or a link to nothing")
        if one.size == 0:
            raise Damaged(codes.EMPTY_FILE, "zero bytes")
        source.check()
        if one.format == "parquet":
            opened = parquet.open_file(source, columns)
            kept = tuple(map(str, opened.kept))
            for start, stop in _row_ranges(opened, shard_rows, shard_bytes):
                shards.append(Shard(_id(index, len(shards)), one, start, stop - start, start, stop))
        else:
            kept = ("string",) * len(columns.extra)
            for shard in _line_shards(source, index, shard_rows, shard_bytes, columns):
                shards.append(shard)  # noqa: PERF402 -- those before a damage are kept
    except FileNotFoundError:
        return Planned((), DeadLetter(one.key, codes.FILE_GONE, f"{one.key}: deleted while it was planned"), ())
    except Damaged as error:
        if error.code == codes.DECOMPRESSION_BOMB:
            shards = []
        rows = sum(shard.rows for shard in shards)
        partly = f" (the {rows} rows before it are read)" if rows else ""
        dead = DeadLetter(one.key, error.code, f"{one.key}: {error.message}{partly}")
    return Planned(tuple(shards), dead, kept)


def _row_ranges(opened: parquet.Opened, shard_rows: int, shard_bytes: int) -> Iterator[tuple[int, int]]:
    """Row ranges of whole row groups while they fit together; a row group that is too large is cut by itself."""
    start = stop = size = 0
    for rows, bytes_ in zip(opened.row_groups, opened.row_group_bytes, strict=True):
        most = max(1, min(shard_rows, rows * shard_bytes // max(1, bytes_)))
        if stop > start and (stop + rows - start > shard_rows or size + bytes_ > shard_bytes):
            yield start, stop
            start, size = stop, 0
        if rows > most:
            pieces = -(-rows // most)
            cuts = [stop + rows * piece // pieces for piece in range(pieces + 1)]
            yield from itertools.pairwise(cuts)
            start = stop = stop + rows
        else:
            stop, size = stop + rows, size + bytes_
    if stop > start:
        yield start, stop


def _line_shards(source: Source, index: int, shard_rows: int, shard_bytes: int, columns: Columns) -> Iterator[Shard]:
    """Read a line format through, cut it at line (record) ends. Gives what is before a damage, then raises Damaged."""
    one = source.input
    content = _guarded(chunks(source), one)
    stream = lines(content)
    if one.format in csv.DELIMITERS:
        stream = csv.records(stream, csv.DELIMITERS[one.format])
    elif one.format == "text":
        # a line has no columns: it is the text, whatever the job calls it
        check_names(list(columns.text.values())[:1], columns.wanted)
    header: tuple[str, ...] = ()
    wants_header = one.format in csv.DELIMITERS
    start = position = first_row = number = rows = parts = 0
    try:
        for line, size in stream:
            position += size
            blank = _is_blank(line, size, one.format)
            if wants_header:
                start = position
                if not blank:
                    header, wants_header = _header(line, size, one, columns), False
                continue
            number += 1
            rows += not blank
            if rows == shard_rows or (rows and position - start >= shard_bytes):
                yield Shard(_id(index, parts), one, first_row, rows, start, position, header)
                start, first_row, rows, parts = position, number, 0, parts + 1
    except Damaged:
        if rows:
            yield Shard(_id(index, parts), one, first_row, rows, start, position, header)
        raise
    if rows:
        yield Shard(_id(index, parts), one, first_row, rows, start, position, header)


def _is_blank(line: bytes, size: int, format: Format) -> bool:
    if format == "text":
        return False
    return is_blank(line) if format == "jsonl" else not without_return(line, size)


def _guarded(content: Iterator[bytes], one: Input) -> Iterator[bytes]:
    """The content, with a look at its start and, while it inflates, at its size."""
    size = 0
    for block in content:
        if size == 0:
            _check_start(block, one)
        size += len(block)
        if one.compression and size > BOMB_BYTES and size > BOMB_RATIO * one.size:
            raise Damaged(codes.DECOMPRESSION_BOMB, f"{one.size} bytes inflate to more than {size}")
        yield block


def _check_start(head: bytes, one: Input) -> None:
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise Damaged(codes.WRONG_FORMAT, f"read as {one.format}, but the content is {name}")
    first, newline, _ = head.partition(b"\n")
    if one.format == "jsonl" and newline and first.removeprefix(BOM).strip() in (b"[", b"{"):
        raise Damaged(codes.WRONG_FORMAT, "one JSON document over many lines; wanted JSON Lines, an object a line")


def _header(line: bytes, size: int, one: Input, columns: Columns) -> tuple[str, ...]:
    names: list[str] | None = None
    if size <= MAX_ROW_BYTES:
        try:
            values = csv.fields(without_return(line, size).removeprefix(BOM), csv.DELIMITERS[one.format])
            names = None if values is None else [value.decode() for value in values]
        except UnicodeDecodeError:
            raise Damaged(codes.WRONG_FORMAT, "the header is not UTF-8") from None
    if names is None:
        raise Damaged(codes.WRONG_FORMAT, "the header is too long, or a quote in it is never closed")
    check_names(names, columns.wanted)
    return tuple(names)


def _drift(
    key: str, kept: tuple[str, ...], first_key: str, first: tuple[str, ...], columns: Columns
) -> DeadLetter | None:
    for name, got, wanted in zip(columns.extra, kept, first, strict=True):
        if got != wanted:
            message = f"{key}: kept column {name!r} is {got}, in {first_key} it is {wanted}"
            return DeadLetter(key, codes.SCHEMA_DRIFT, message)
    return None


def _id(index: int, part: int) -> str:
    return f"{index:07d}-{part:06d}"
