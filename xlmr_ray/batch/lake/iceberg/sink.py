"""A finished run as one snapshot of an Iceberg table, whose data files are those that the shards wrote.

Whole files come and go, in one snapshot: rows of replaced inputs are files of older runs, so nothing is rewritten, and
no delete files are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from xlmr_ray.batch.lake.iceberg.source import iceberg_settings
from xlmr_ray.batch.lake.table import PublishedRows, TableSink, unfit
from xlmr_ray.batch.lake.target import TableTarget
from xlmr_ray.batch.ledger.in_order import in_order
from xlmr_ray.batch.store.base import Store
from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.text.first_line import first_line
from xlmr_ray.text.redact import redacted

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table, Transaction

OUTPUT = "xlmr_ray.output"
RUN = "xlmr_ray.run"


class IcebergSink(TableSink):
    extra: ClassVar[str] = "iceberg"

    def names_files(self, store: Store) -> bool:
        return "metadata" in store.folders("iceberg/")

    def check(self, store: Store, target: TableTarget, schemas: Iterable[pa.Schema]) -> None:
        import pyiceberg  # noqa: F401

        for schema in schemas:
            _check_iceberg_types(schema)
        try:
            _own_table(_catalog(store, target), store, target)
        except (ImportError, UserError, JobFailed):
            raise
        except Exception as error:  # each catalog has others
            raise UserError(
                f"output.table: {_named(store, target)} cannot be reached: {redacted(first_line(error))}"
            ) from None

    def commit(self, store: Store, target: TableTarget, published: Callable[[], PublishedRows]) -> str | None:
        from pyiceberg.exceptions import (
            CommitFailedException,
            CommitStateUnknownException,
            NamespaceAlreadyExistsError,
            TableAlreadyExistsError,
        )

        taken = (
            CommitFailedException,
            CommitStateUnknownException,
            NamespaceAlreadyExistsError,
            TableAlreadyExistsError,
        )
        try:
            return _commit_snapshot(store, target, published)
        except taken:
            return None
        except (ImportError, UserError, JobFailed):
            raise
        except Exception as error:  # each catalog has others
            raise JobFailed(
                f"{_named(store, target)}: cannot be committed to: {redacted(first_line(error))}; the run itself is "
                "finished, and the same command tries again"
            ) from None


def _commit_snapshot(store: Store, target: TableTarget, published: Callable[[], PublishedRows]) -> str | None:
    """Upon the snapshot that was read."""
    from xlmr_ray.batch.lake.iceberg.folder import FolderCatalog

    catalog = _catalog(store, target)
    table = _own_table(catalog, store, target)
    rows = published()
    if rows.schema is not None:
        _check_iceberg_types(rows.schema)
    files = {store.url(key) for key in rows.files}
    there = {} if table is None else _files(table, _named(store, target))
    if there.keys() != files:
        changes = partial(
            _change,
            rows=rows,
            added=sorted(files - there.keys()),
            removed=[file for name, file in there.items() if name not in files],
        )
        if table is not None:
            with table.transaction() as transaction:
                _evolve(transaction, rows, _named(store, target))
                changes(transaction)
        else:
            if target.name is not None:
                _make_namespace(catalog, target.name.rpartition(".")[0])
            with catalog.create_table_transaction(
                _identifier(target), rows.schema, location=store.url("iceberg"), properties=_properties(store)
            ) as transaction:
                mapping = transaction.table_metadata.schema().name_mapping.model_dump_json()
                transaction.set_properties({"schema.name-mapping.default": mapping})
                changes(transaction)
    elif table is not None and isinstance(catalog, FolderCatalog):
        catalog.tell()  # a driver that ended after its commit may not have done so
    return rows.run_id


def _make_namespace(catalog: Catalog, name: str) -> None:
    try:
        catalog.create_namespace_if_not_exists(name)
    except Exception:  # of two at once, a catalog in SQL raises its database's
        if not catalog.namespace_exists(name):
            raise


def _change(transaction: Transaction, rows: PublishedRows, added: list[str], removed: list[DataFile]) -> None:
    """One snapshot, which reads the footer of each file that comes."""
    from pyiceberg.io.pyarrow import parquet_file_to_data_file

    snapshot = transaction.update_snapshot(snapshot_properties={RUN: rows.run_id})
    with snapshot.overwrite() if removed else snapshot.merge_append() as files:
        for gone in removed:
            files.delete_data_file(gone)
        read = partial(parquet_file_to_data_file, transaction._table.io, transaction.table_metadata)
        for file in in_order(read, added):
            files.append_data_file(file)


def _evolve(transaction: Transaction, rows: PublishedRows, place: str) -> None:
    """New columns, and types that Iceberg widens. Raises JobFailed for one that is another now."""
    from pyiceberg.exceptions import ValidationError

    if rows.schema is None:
        return
    try:
        with transaction.update_schema() as update:
            update.union_by_name(rows.schema)
    except (ValidationError, ValueError, TypeError) as error:
        raise JobFailed(
            f"{place}: has a column of another type than that of the published run: {redacted(first_line(error))}; "
            "give another output.path, or leave the column or output.table out"
        ) from None


def _files(table: Table, place: str) -> dict[str, DataFile]:
    """The table's files by their names. Raises JobFailed where others have marked rows of them as removed."""
    found = {}
    for task in table.scan().plan_files():
        if task.delete_files:
            raise JobFailed(
                f"{place}: has delete files that another program wrote; the table is that of the output: roll it back "
                f"to a snapshot with the property {RUN}, or drop it and run the same command again"
            )
        found[task.file.file_path] = task.file
    return found


def _catalog(store: Store, target: TableTarget) -> Catalog:
    if target.name is not None:
        from pyiceberg.catalog import load_catalog

        return load_catalog(target.catalog)
    from xlmr_ray.batch.lake.iceberg.folder import FolderCatalog

    return FolderCatalog(store, iceberg_settings(store.url(""), None))


def _own_table(catalog: Catalog, store: Store, target: TableTarget) -> Table | None:
    """The table, None where there is none yet. Raises UserError for one that is not this output's."""
    from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

    try:
        table = catalog.load_table(_identifier(target))
    except (NoSuchTableError, NoSuchNamespaceError):
        return None
    of = table.properties.get(OUTPUT)
    if of != _properties(store)[OUTPUT]:
        if target.name is None:
            raise UserError(
                f"output.table: {_named(store, target)}: names the files where they were, in {of}; remove it, and the "
                "same command makes the table anew"
            )
        whose = "another program made it" if of is None else f"it is that of the output {of}"
        raise UserError(f"output.table: {_named(store, target)}: {whose}, and would lose its rows; give another name")
    return table


def _identifier(target: TableTarget) -> Any:
    return target.name if target.name is not None else ("output", "table")


def _properties(store: Store) -> dict[str, str]:
    """Of a new table: whose it is; no other program is to remove files that the output has, too; and pyiceberg is not
    to try a commit again upon another version than was read.
    """
    return {OUTPUT: store.url("").rstrip("/"), "gc.enabled": "false", "commit.retry.num-retries": "0"}


def _check_iceberg_types(schema: pa.Schema) -> None:
    from pyiceberg.catalog import Catalog

    for field in schema:
        type = unfit(field.type)
        if type is None:
            try:
                Catalog._convert_schema_if_needed(pa.schema([field]))
                continue
            except (TypeError, ValueError):
                type = field.type
        raise UserError(
            f"output.table: column {field.name!r} has the type {type}, which Iceberg tables do not have; choose "
            "another, or leave the column or output.table out"
        )


def _named(store: Store, target: TableTarget) -> str:
    named = target.name and f"{target.catalog}:{target.name}" if target.catalog else target.name
    return f"the Iceberg table {named or store.url('iceberg')}"
