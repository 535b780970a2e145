"""Folders of tables of Delta, Iceberg, Hudi or Lance that would be read as plain ones: their files are not all of them
rows of the table, since those of older versions, and removed ones, lie beside those that count. And folders of Hugging
Face's datasets in Arrow files, of which only what is said about the rows would be read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from typing import Any

from xlmr_ray.errors import UserError

_ITSELF = "name the table itself in input.path"
_MARKS = {
    "_delta_log": ("Delta", _ITSELF),
    ".hoodie": ("Hudi", "name the files of the version to read, as a query of Hudi's gives them"),
}
# Of Lance, whose files are no Parquet; `_versions` by itself may be anybody's.
_LANCE = {"_versions", "_transactions"}
_EXPORT = (
    "write a version of it as Parquet: pyarrow.dataset.write_dataset(lance.dataset(TABLE, version=N).scanner()"
    '.to_reader(), FOLDER, format="parquet")'
)
# In a folder with Arrow files: datasets writes the first always, the second by `save_to_disk`, which may have left out
# some of the rows.
_INFO, _STATE = "dataset_info.json", "state.json"
METADATA = ".metadata.json"  # of Iceberg, in its folder `metadata`


def check_no_table(folder: str, names: Iterable[str]) -> None:
    """Raises UserError where the folder, with these names in it, is a table. `folder/metadata` tells of its parent."""
    names = list(names)
    if set(names) >= _LANCE:
        raise _is_table(folder, "Lance", _EXPORT)
    if _INFO in names and any(name.endswith(".arrow") for name in names):
        raise _is_dataset(folder, _STATE in names)
    for name in names:
        if name in _MARKS:
            raise _is_table(folder, *_MARKS[name])
        if name.endswith(METADATA) and folder.rstrip("/").endswith("/metadata"):
            raise _is_table(folder.rstrip("/").removesuffix("/metadata"), "Iceberg", _ITSELF)


def check_no_tables(paths: Collection[str]) -> None:
    """The same, of the paths of all files below a folder."""
    for path in paths:
        folder, _, name = path.rpartition("/")
        if name.endswith(".arrow") and f"{folder}/{_INFO}" in paths:
            raise _is_dataset(folder, f"{folder}/{_STATE}" in paths)
        if name.endswith(METADATA):
            check_no_table(folder, [name])
        above, found, _ = path.partition("/_versions/")
        if found and name.endswith(".manifest"):
            check_no_table(above, _LANCE)
        for mark in _MARKS:
            above, found, _ = path.partition(f"/{mark}/")
            if found:
                check_no_table(above, [mark])


def check_not_inside(fs: Any, folder: str) -> None:
    """The same of a folder that is a part of a table: one of its partitions (`key=value`), or Iceberg's `data`."""
    above, _, name = folder.rstrip("/").rpartition("/")
    if "=" not in name and name != "data":
        return
    check_no_table(above, [mark for mark in _MARKS if fs.exists(f"{above}/{mark}")])
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = fs.ls(f"{above}/metadata", detail=False)
        check_no_table(f"{above}/metadata", [one.rpartition("/")[2] for one in names])
    check_not_inside(fs, above)


def _is_table(folder: str, format: str, way: str) -> UserError:
    return UserError(
        f"{folder}: is a {format} table, whose folder holds files of older versions, too, and removed rows; {way}"
    )


def _is_dataset(folder: str, saved: bool) -> UserError:
    way = f'load_from_disk("{folder}")' if saved else "Dataset.from_file(ARROW_FILE)"
    return UserError(
        f"{folder}: is a dataset in Arrow files, which are not read; write it as Parquet: "
        f"datasets.{way}.to_parquet(FILE)"
    )
