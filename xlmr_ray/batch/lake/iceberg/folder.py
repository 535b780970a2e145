"""An Iceberg table whose catalog is its folder in the output, with names as Hadoop's tables have them: a version is
`v1.metadata.json`, `v2…`, created only where there is none, and `version-hint.text` says the newest to readers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pyiceberg.catalog import Catalog, MetastoreCatalog
from pyiceberg.catalog.noop import NoopCatalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from pyiceberg.io import FileIO
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.table import CommitTableResponse, CreateTableTransaction, StagedTable, Table
from pyiceberg.table.metadata import TableMetadata, TableMetadataUtil, new_table_metadata
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.table.update import update_table_metadata

from xlmr_ray.batch.store.base import Changed, Exists, Store

FOLDER = "iceberg"  # of an output, where the metadata of its table are
NAME = ("output", "table")
_HINT = f"{FOLDER}/metadata/version-hint.text"
_VERSION = re.compile(rf"{FOLDER}/metadata/v(\d+)\.metadata\.json")


class FolderCatalog(NoopCatalog):
    """The catalog of an output's one table."""

    def __init__(self, store: Store, properties: Mapping[str, str]) -> None:
        super().__init__("xlmr-ray", **properties)
        self.store = store

    def load_table(self, identifier: Any) -> Table:
        number = self.newest()
        if number == 0:
            raise NoSuchTableError(self.store.url(FOLDER))
        data, _ = self.store.get(_version(number))
        metadata = TableMetadataUtil.parse_raw(data.decode())
        return Table(NAME, metadata, *self._place(metadata, number), self)

    def create_table_transaction(
        self,
        identifier: Any,
        schema: Any,
        location: str | None = None,
        partition_spec: Any = UNPARTITIONED_PARTITION_SPEC,
        sort_order: Any = UNSORTED_SORT_ORDER,
        properties: Any = (),
    ) -> CreateTableTransaction:
        known = Catalog._convert_schema_if_needed(schema)
        metadata = new_table_metadata(known, partition_spec, sort_order, str(location), dict(properties))
        return CreateTableTransaction(StagedTable(NAME, metadata, *self._place(metadata, 1), self))

    def commit_table(self, table: Table, requirements: Any, updates: Any) -> CommitTableResponse:
        """The version after the one that is the newest now, as the requirements say of it, or none."""
        number = self.newest()
        base = self.load_table(NAME).metadata if number else None
        for requirement in requirements:
            requirement.validate(base)
        metadata = update_table_metadata(
            base or MetastoreCatalog._empty_table_metadata(),
            updates,
            enforce_validation=base is None,
            metadata_location=self.store.url(_version(number)) if number else None,
        )
        try:
            self.store.create(_version(number + 1), metadata.model_dump_json().encode())
        except Exists:
            raise CommitFailedException("another was faster") from None
        self.tell()
        location = self.store.url(_version(number + 1))
        return CommitTableResponse.model_validate({"metadata": metadata, "metadata-location": location})

    def newest(self) -> int:
        """The newest version, 0 where there is none."""
        found = (_VERSION.fullmatch(entry.key) for entry in self.store.list(f"{FOLDER}/metadata/v"))
        return max((int(one[1]) for one in found if one), default=0)

    def tell(self) -> None:
        """Names the newest version to readers; never an older one than before."""
        number = self.newest()
        while True:
            try:
                told, etag = self.store.get(_HINT)
                if int(told) < number:
                    self.store.replace(_HINT, str(number).encode(), etag)
                return
            except FileNotFoundError:
                pass
            except Changed:
                continue
            try:
                self.store.create(_HINT, str(number).encode())
                return
            except Exists:
                continue

    def _place(self, metadata: TableMetadata, number: int) -> tuple[str, FileIO]:
        location = self.store.url(_version(number))
        return location, self._load_file_io(metadata.properties, location)


def _version(number: int) -> str:
    return f"{FOLDER}/metadata/v{number}.metadata.json"
