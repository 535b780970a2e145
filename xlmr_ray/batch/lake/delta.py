"""Delta tables, by delta-rs. The one file that imports deltalake.

Format: github.com/delta-io/delta, PROTOCOL.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from xlmr_ray.batch.lake.table import Table, TableFile, TableFormat
from xlmr_ray.batch.store.filesystem import local_path, scheme_of
from xlmr_ray.errors import UserError
from xlmr_ray.text.redact import redacted

if TYPE_CHECKING:
    from deltalake import DeltaTable

LOG = "_delta_log"
# Features of a table that change nothing for one who reads its files by name; deletion vectors are looked at.
READ = {"deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "invariants", "appendOnly"}


class Delta(TableFormat):
    name = "Delta"
    extra = "delta"

    def is_table(self, fs: Any, where: str) -> bool:
        return bool(fs.exists(f"{where.rstrip('/')}/{LOG}"))

    def read(self, url: str, version: int | None, wanted: Sequence[str], options: Mapping[str, object] | None) -> Table:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        try:
            table = DeltaTable(located(url), version=version, storage_options=settings(url, options))
            _check_features(url, table)
            actions = pa.table(table.get_add_actions(flatten=False))
            schema = pa.schema(table.schema().to_arrow())
        except (DeltaError, OSError, ValueError) as error:
            at = "" if version is None else f" at version {version}"
            reason = redacted(str(error).strip().splitlines()[0])
            raise UserError(f"{url}: the Delta table cannot be read{at}: {reason}") from None
        return Table(table.version(), schema, _files(located(url).rstrip("/"), actions))


def located(url: str) -> str:
    """As delta-rs names a table."""
    return local_path(url) if scheme_of(url) == "file" else url


def settings(url: str, options: Mapping[str, object] | None) -> dict[str, str]:
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


def _files(root: str, actions: pa.Table) -> Iterator[TableFile]:
    """Paths in the log are those of URLs: `%25` for a percent sign in a name."""
    partitions = actions["partition"] if "partition" in actions.column_names else [{}] * actions.num_rows
    for path, partition in zip(actions["path"].to_pylist(), partitions, strict=True):
        name = unquote(path)
        whole = name if "://" in name or PurePosixPath(name).is_absolute() else f"{root}/{name}"
        whole = whole.removeprefix("file://")  # nothing else in the path is to be read as a URL
        yield TableFile(whole, dict(partition.items()))
