"""Delta tables, by delta-rs. The one file that imports deltalake.

Format: github.com/delta-io/delta, PROTOCOL.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from xlmr_ray.batch.lake.table import PublishedRows, TableFile, TableFormat, TableSink, TableVersion, unfit
from xlmr_ray.batch.lake.target import TableTarget
from xlmr_ray.batch.ledger.snapshot import DATA
from xlmr_ray.batch.store.base import Store
from xlmr_ray.batch.store.filesystem import local_path, scheme_of
from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.text.first_line import first_line
from xlmr_ray.text.redact import redacted

if TYPE_CHECKING:
    from deltalake import DeltaTable, Schema

LOG = "_delta_log"
# Features of a table that change nothing for one who reads its files by name; deletion vectors are looked at.
READ = {"deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "invariants", "appendOnly"}


class Delta(TableFormat, TableSink):
    name = "Delta"
    extra = "delta"

    def is_table(self, fs: Any, where: str) -> bool:
        return bool(fs.exists(f"{where.rstrip('/')}/{LOG}"))

    def read(
        self, url: str, version: int | None, wanted: Sequence[str], options: Mapping[str, object] | None
    ) -> TableVersion:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        try:
            table = DeltaTable(table_uri(url), version=version, storage_options=delta_settings(url, options))
            _check_features(url, table)
            actions = pa.table(table.get_add_actions(flatten=False))
            schema = pa.schema(table.schema().to_arrow())
        except (DeltaError, OSError, ValueError) as error:
            at = "" if version is None else f" at version {version}"
            reason = redacted(first_line(error))
            raise UserError(f"{url}: the Delta table cannot be read{at}: {reason}") from None
        return TableVersion(table.version(), schema, _delta_files(located(url).rstrip("/"), actions))

    def names_files(self, store: Store) -> bool:
        return LOG in store.folders(f"{DATA}/")

    def check(self, store: Store, target: TableTarget, schemas: Iterable[pa.Schema]) -> None:
        import deltalake  # noqa: F401

        if "%" in (url := store.url(DATA)):
            raise UserError(
                f"output.table: {url}: delta-rs finds no table where a name has a %; give another output.path"
            )
        for field in chain.from_iterable(schemas):
            if (type := unfit(field.type)) is not None:
                raise UserError(
                    f"output.table: column {field.name!r} has the type {type}, which Delta tables do not have; choose "
                    "another, or leave the column or output.table out"
                )

    def commit(self, store: Store, target: TableTarget, published: Callable[[], PublishedRows]) -> str | None:
        from deltalake.exceptions import CommitFailedError, DeltaError

        url = store.url(DATA)
        try:
            return _commit_version(url, delta_settings(url, None), lambda: self._checked(store, target, published()))
        except CommitFailedError:
            return None
        except (UserError, JobFailed):
            raise
        except (DeltaError, OSError, ValueError, pa.ArrowException) as error:
            reason = redacted(first_line(error))
            raise JobFailed(
                f"{url}: the Delta table cannot be committed to: {reason}; the run itself is finished, and the same "
                "command tries again"
            ) from None

    def _checked(self, store: Store, target: TableTarget, rows: PublishedRows) -> PublishedRows:
        if rows.schema is not None:
            self.check(store, target, [rows.schema])
        return rows


def _commit_version(url: str, store: dict[str, str], published: Callable[[], PublishedRows]) -> str | None:
    """Upon the version that was read: where another comes first, delta-rs is not to try again upon that one."""
    from deltalake import CommitProperties, DeltaTable, Schema, Transaction
    from deltalake._internal import RemoveAction
    from deltalake.exceptions import DeltaError, TableNotFoundError
    from deltalake.transaction import AddAction, create_table_with_add_actions

    where = table_uri(url)
    try:
        table = DeltaTable(where, storage_options=store)
    except TableNotFoundError:
        table = None
    rows = published()
    files = {key.removeprefix(f"{DATA}/"): file for key, file in rows.files.items()}
    ours = None if rows.schema is None else Schema.from_arrow(rows.schema)
    named = CommitProperties(
        custom_metadata={"xlmr_ray.run": rows.run_id},
        app_transactions=[Transaction(f"xlmr-ray/{rows.run_id}", 1)],
        max_commit_retries=0,
    )
    now = int(time.time() * 1000)

    def adds(names: Iterable[str]) -> list[AddAction]:
        return [
            AddAction(name, files[name].bytes, {}, now, True, json.dumps({"numRecords": files[name].rows}))
            for name in names
        ]

    if table is None:
        if ours is None:
            return rows.run_id
        try:
            create_table_with_add_actions(
                where, ours, adds(files), mode="error", storage_options=store, commit_properties=named
            )
        except DeltaError:
            if DeltaTable.is_deltatable(where, storage_options=store):
                return None
            raise
        return rows.run_id
    actions = pa.table(table.get_add_actions())
    there = dict(zip(map(unquote, actions["path"].to_pylist()), actions["size_bytes"].to_pylist(), strict=True))
    if there.keys() == files.keys():
        return rows.run_id
    if ours is None or table.schema() == ours:
        removed = [RemoveAction(name, True, now, size) for name, size in there.items() if name not in files]
        added = adds(name for name in files if name not in there)
        table.create_write_transaction([*added, *removed], "append", table.schema(), commit_properties=named)
    else:
        _check_kept_types(url, table.schema(), ours)
        table.create_write_transaction([*adds(files)], "overwrite", ours, commit_properties=named)
    return rows.run_id


def _check_kept_types(url: str, there: Schema, ours: Schema) -> None:
    """Raises JobFailed where a column of the table has another type now."""
    types = {field.name: field.type for field in there.fields}
    for field in ours.fields:
        if types.get(field.name, field.type) != field.type:
            raise JobFailed(
                f"{url}: column {field.name!r} of the Delta table has another type than that of the published run: "
                f"{_type(types[field.name])}, now {_type(field.type)}; give another output.path, or leave the column "
                "or output.table out"
            )


def _type(type: Any) -> str:
    return json.dumps(json.loads(type.to_json())).strip('"')


def located(url: str) -> str:
    """A table's path on this machine, or its URL."""
    return local_path(url) if scheme_of(url) == "file" else url


def table_uri(url: str) -> str:
    """As delta-rs is to be told of it: of a plain path, what is after a question mark would be left off."""
    return Path(located(url)).as_uri() if scheme_of(url) == "file" else url


def delta_settings(url: str, options: Mapping[str, object] | None) -> dict[str, str]:
    """The store's, in delta-rs's names; the usual AWS variables and files hold."""
    if scheme_of(url) != "s3":
        return {}
    from xlmr_ray.batch.store.s3 import access

    found = access(options)
    named = {
        "AWS_ACCESS_KEY_ID": found.key,
        "AWS_SECRET_ACCESS_KEY": found.secret,
        "AWS_SESSION_TOKEN": found.token,
        "AWS_REGION": found.region,
        "AWS_ENDPOINT_URL": found.endpoint,
        "AWS_ALLOW_HTTP": "true" if (found.endpoint or "").startswith("http:") else None,
    }
    return {name: value for name, value in named.items() if value}


def _check_features(url: str, table: DeltaTable) -> None:
    protocol = table.protocol()
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    if mapping != "none":
        raise UserError(
            f"{url}: the Delta table has column mapping ({mapping}), so its files have other names than its columns; "
            "write it anew without, or name the files of an export"
        )
    if unknown := sorted(set(protocol.reader_features or ()) - READ - {"columnMapping"}):
        raise UserError(
            f"{url}: the Delta table has features that are not read: {', '.join(unknown)}; write it anew without them, "
            "or name the files of an export"
        )
    deleted = protocol.reader_features and "deletionVectors" in protocol.reader_features
    if deleted and any(batch.num_rows for batch in pa.RecordBatchReader.from_stream(table.deletion_vectors())):
        raise UserError(
            f"{url}: version {table.version()} of the Delta table has deletion vectors, which mark rows of its files "
            "as removed; write those files anew first (REORG TABLE … APPLY (PURGE))"
        )


def _delta_files(root: str, actions: pa.Table) -> Iterator[TableFile]:
    """Paths in the log are those of URLs: `%25` for a percent sign in a name."""
    partitions = actions["partition"] if "partition" in actions.column_names else [{}] * actions.num_rows
    for path, partition in zip(actions["path"].to_pylist(), partitions, strict=True):
        name = unquote(path)
        whole = name if "://" in name or PurePosixPath(name).is_absolute() else f"{root}/{name}"
        whole = whole.removeprefix("file://")  # nothing else in the path is to be read as a URL
        yield TableFile(whole, dict(partition.items()))
