"""Iceberg tables that a job reads, whose metadata lie in the table's folder.

Format: iceberg.apache.org/spec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from xlmr_ray.batch.lake.table import TableFile, TableFormat, TableVersion
from xlmr_ray.batch.store.filesystem import filesystem, local_path, scheme_of
from xlmr_ray.errors import UserError
from xlmr_ray.text.first_line import first_line
from xlmr_ray.text.redact import redacted

if TYPE_CHECKING:
    import pyiceberg.table
    from pyiceberg.schema import Schema

ENDING = ".metadata.json"
HINT = "version-hint.text"


class Iceberg(TableFormat):
    """A folder is read at the version that its hint names, as Hadoop's tables have one. Of a table without, its catalog
    knows the version, and the path is that of its metadata file.
    """

    name = "Iceberg"
    extra = "iceberg"

    def is_table(self, fs: Any, where: str) -> bool:
        if where.endswith(ENDING):
            return True
        try:
            return any(name.endswith(ENDING) for name in fs.ls(f"{where.rstrip('/')}/metadata", detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def read(
        self, url: str, version: int | None, wanted: Sequence[str], options: Mapping[str, object] | None
    ) -> TableVersion:
        from pyiceberg.exceptions import NoSuchTableError, ValidationError
        from pyiceberg.io.pyarrow import schema_to_pyarrow
        from pyiceberg.table import StaticTable

        try:
            table = StaticTable.from_metadata(metadata_file(url, options), iceberg_settings(url, options))
        except (OSError, ValueError, NoSuchTableError, ValidationError) as error:
            reason = redacted(first_line(error))
            raise UserError(f"{url}: the Iceberg table cannot be read: {reason}") from None
        snapshot = table.current_snapshot() if version is None else table.snapshot_by_id(version)
        if snapshot is None and version is not None:
            there = ", ".join(str(one.snapshot_id) for one in table.metadata.snapshots[-5:])
            raise UserError(f"input.version: {url} is an Iceberg table without snapshot {version}; it has: {there}")
        schema = table.schema()
        if version is not None and snapshot is not None and snapshot.schema_id is not None:
            schema = table.schemas()[snapshot.schema_id]
        for name in wanted:
            _check_names(url, table, schema, name)
        number = -1 if snapshot is None else snapshot.snapshot_id
        files = iter(()) if snapshot is None else _iceberg_files(url, table, number, schema, wanted)
        return TableVersion(number, schema_to_pyarrow(schema, include_field_ids=False), files)


def metadata_file(url: str, options: Mapping[str, object] | None) -> str:
    """Of the version that a table's folder says; a metadata file is itself. Raises UserError where it says none."""
    if url.endswith(ENDING):
        return local_path(url) if scheme_of(url) == "file" else url
    fs, where = filesystem(url, options=options)
    folder = f"{where.rstrip('/')}/metadata"
    names = [name.rpartition("/")[2] for name in fs.ls(folder, detail=False) if name.endswith(ENDING)]
    try:
        hint = fs.cat_file(f"{folder}/{HINT}").decode().strip()
    except FileNotFoundError:
        newest = max(names, key=lambda name: (_number(name), name))
        raise UserError(
            f"{url}: the version of this Iceberg table is known to its catalog only; name the metadata file that the "
            f"catalog has, such as {url.rstrip('/')}/metadata/{newest}"
        ) from None
    name = next((name for name in (f"v{hint}{ENDING}", hint, f"{hint}{ENDING}") if name in names), None)
    if name is None:
        raise UserError(f"{url}: {HINT} of this Iceberg table names version {hint}, of which there is no metadata file")
    return f"{folder}/{name}" if scheme_of(url) == "file" else f"{url.rstrip('/')}/metadata/{name}"


def iceberg_settings(url: str, options: Mapping[str, object] | None) -> dict[str, str]:
    """The store's, in pyiceberg's names; the usual AWS variables and files hold."""
    if scheme_of(url) != "s3":
        return {}
    from xlmr_ray.batch.store.s3 import access

    found = access(options)
    named = {
        "s3.access-key-id": found.key,
        "s3.secret-access-key": found.secret,
        "s3.session-token": found.token,
        "s3.region": found.region,
        "s3.endpoint": found.endpoint,
        "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO",
    }
    return {name: value for name, value in named.items() if value}


def _number(name: str) -> int:
    digits = name.removeprefix("v").split("-")[0].split(".")[0]
    return int(digits) if digits.isdecimal() else -1


def _check_names(url: str, table: pyiceberg.table.Table, schema: Schema, name: str) -> None:
    """Columns of Iceberg are known by number, and files of older schemas may have others under a name."""
    number = _field(schema, name)
    if number is None:
        return  # said of all formats alike
    for other in table.schemas().values():
        there = _field(other, name)
        if there not in (None, number) or other.find_column_name(number) not in (None, name):
            raise UserError(
                f"{url}: column {name!r} of the Iceberg table was renamed, or made anew, so older files have other "
                "values under that name; write them anew (rewrite_data_files), and drop the older schemas"
            )
    if schema.find_field(number).initial_default is not None:
        raise UserError(
            f"{url}: column {name!r} of the Iceberg table has a default value in files that were written before it, "
            "which is not read; write them anew (rewrite_data_files)"
        )


def _field(schema: Schema, name: str) -> int | None:
    try:
        return schema.find_field(name).field_id
    except ValueError:
        return None


def _iceberg_files(
    url: str, table: pyiceberg.table.Table, snapshot: int, schema: Schema, wanted: Sequence[str]
) -> Iterator[TableFile]:
    for task in table.scan(snapshot_id=snapshot).plan_files():
        if task.delete_files:
            raise UserError(
                f"{url}: snapshot {snapshot} of the Iceberg table has delete files, which mark rows of its files as "
                "removed; write those files anew first (rewrite_data_files)"
            )
        if task.file.file_format.name != "PARQUET":
            raise UserError(f"{url}: the Iceberg table has files of {task.file.file_format.name}; only Parquet is read")
        yield TableFile(_place(task.file.file_path), _partition(table, task.file, schema, wanted))


def _place(location: str) -> str:
    """A file's location, which is no URL: a percent sign in it is one."""
    return "/" + location.removeprefix("file:").lstrip("/") if location.startswith("file:") else location


def _partition(
    table: pyiceberg.table.Table, file: Any, schema: Schema, wanted: Sequence[str]
) -> Mapping[str, pa.Scalar]:
    """The values of columns by which the table is partitioned as they are: their own column need not be in the file."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow
    from pyiceberg.transforms import IdentityTransform

    found = {}
    for index, one in enumerate(table.specs()[file.spec_id].fields):
        name = schema.find_column_name(one.source_id)
        if name is not None and name in wanted and isinstance(one.transform, IdentityTransform):
            type = schema_to_pyarrow(schema.find_type(one.source_id))
            found[name] = pa.scalar(file.partition[index], type)
    return found
