"""Folders that are tables of Delta, Iceberg or Hudi: their files are not all of them rows of the table, since those of
older versions, and removed ones, lie beside those that count.
"""

from __future__ import annotations

from collections.abc import Iterable

from xlmr_ray.errors import UserError

_MARKS = {"_delta_log": ("Delta", "deltalake.DeltaTable(…).file_uris()"), ".hoodie": ("Hudi", "a query of its own")}
_METADATA = ".metadata.json"  # of Iceberg, in its folder `metadata`


def check_no_table(folder: str, names: Iterable[str]) -> None:
    """Raises UserError where the folder, with these names in it, is a table. `folder/metadata` tells of its parent."""
    for name in names:
        if name in _MARKS:
            raise _is_table(folder, *_MARKS[name])
        if name.endswith(_METADATA) and folder.rstrip("/").endswith("/metadata"):
            raise _is_table(folder.rstrip("/").removesuffix("/metadata"), "Iceberg", "pyiceberg's scan().plan_files()")


def check_no_tables(paths: Iterable[str]) -> None:
    """The same, of the paths of all files below a folder."""
    for path in paths:
        folder, _, name = path.rpartition("/")
        if name.endswith(_METADATA):
            check_no_table(folder, [name])
        for mark in _MARKS:
            above, found, _ = path.partition(f"/{mark}/")
            if found:
                check_no_table(above, [mark])


def _is_table(folder: str, format: str, way: str) -> UserError:
    return UserError(
        f"{folder}: is a {format} table, whose folder holds files of older versions, too, and removed rows; name the "
        f"files of the version to read in input.path: those that {way} gives"
    )
