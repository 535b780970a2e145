"""Labelled rows: read, checked, and cut into a training and a validation part."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xlmr_ray.errors import UserError
from xlmr_ray.text.plural import plural
from xlmr_ray.train.job import DataSection


class WholeReader(Protocol):
    """What reads whole inputs: see `batch/input/whole.py`, which stands to the right of this room."""

    def __call__(self, path: Sequence[str], *, format: str, text: dict[str, str], keep: Sequence[str]) -> pa.Table: ...


def read_rows(
    read: WholeReader,
    section: DataSection,
    roles: Sequence[str],
    *,
    label: bool,
    where: str = "train",
    by: Sequence[str] = (),
) -> tuple[pa.Table, int]:
    """The rows that can be used, and how many were skipped. Columns: the roles, `label`, `language` and `document` as
    far as they are named, a column "by NAME" for each of `by`, `_source`, `_row`.

    Raises UserError where the section names no column for a role, and, unless `bad_rows` is `skip`, for the first row
    that cannot be used.
    """
    text: dict[str, str] = {}
    for role in roles:
        column = section.column(role)
        if column is None:
            raise UserError(f"{where}.{role}: the task reads it; name its column")
        text[role] = column
    named = {"label": section.label if label else None, "language": section.language, "document": section.document}
    wanted = {name: column for name, column in named.items() if column is not None}
    wanted |= {f"by {column}": column for column in by}
    for name, column in wanted.items():
        if column in text and text[column] != column:
            raise UserError(
                f"{where}.{name}: column {column!r} has the name of a text that is another column; rename it"
            )
    rows = read(section.path, format=section.format, text=text, keep=tuple(wanted.values()))
    columns = {role: rows[role] for role in roles}
    columns |= {name: rows[column] for name, column in wanted.items()}
    columns |= {name: rows[name] for name in ("_source", "_row", "_code", "_message")}
    table = pa.table(columns)
    bad = pc.not_equal(table["_code"], "")
    if label:
        bad = pc.or_(bad, pc.is_null(table["label"]))
    bad = bad.to_numpy()
    count = int(bad.sum())
    if count and section.bad_rows == "error":
        first = table.slice(int(bad.argmax()), 1).to_pylist()[0]
        why = first["_message"] or f"column {section.label!r} is null"
        raise UserError(
            f"{row_location(first)}: {why}; {plural(count, 'row')} of {len(table)} cannot be used: mend them, or say "
            f"{where}.bad_rows: skip"
        )
    kept = table.filter(pa.array(~bad)).drop_columns(["_code", "_message"]).combine_chunks()
    if not len(kept):
        raise UserError(f"{', '.join(section.path)}: no row that can be used")
    return kept, count


def row_location(row: dict[str, object]) -> str:
    """Where a row is, for messages."""
    return f"{row['_source']} row {row['_row']}"


def split_rows(rows: pa.Table, share: float, seed: int) -> tuple[pa.Table, pa.Table]:
    """Rows for training and about a `share` of them for validation, of each language the same share; rows of one
    document are on one side. Where no column says the document, rows of equal texts are one.
    """
    held = held_out(groups_of(rows), languages_of(rows), share, seed)
    if held.all() or not held.any():
        raise UserError(
            f"validation.share: {share} of {plural(len(rows), 'row')} leaves a side empty; give another share or a path"
        )
    return rows.filter(pa.array(~held)), rows.filter(pa.array(held))


def groups_of(rows: pa.Table) -> NDArray[np.int64]:
    """The number of each row's document `(N)`."""
    if "document" in rows.column_names:
        keys = rows["document"].cast(pa.string())
    else:
        texts = [name for name in rows.column_names if pa.types.is_string(rows[name].type) and is_text_role(name)]
        keys = pc.binary_join_element_wise(*(rows[name] for name in texts), "\x00")
    codes: NDArray[np.int64] = keys.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return codes.astype(np.int64)


def is_text_role(name: str) -> bool:
    return name not in ("label", "language", "document") and not name.startswith(("_", "by "))


def languages_of(rows: pa.Table) -> NDArray[np.int64]:
    """The number of each row's language `(N)`; zeros where no column says it."""
    if "language" not in rows.column_names:
        return np.zeros(len(rows), np.int64)
    coded = pc.coalesce(rows["language"].cast(pa.string()), "").combine_chunks().dictionary_encode()
    codes: NDArray[np.int64] = coded.indices.to_numpy().astype(np.int64)
    return codes


def held_out(groups: NDArray[np.int64], languages: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Which rows `(N)` are held out: whole documents, drawn within the language of a document's first row."""
    numbers, first, where = np.unique(groups, return_index=True, return_inverse=True)
    sizes = np.bincount(where)
    of_group = languages[first]
    random = np.random.default_rng([seed, 7])
    chosen = np.zeros(len(numbers), np.bool_)
    for language in np.unique(of_group):
        own = random.permutation(np.flatnonzero(of_group == language))
        wanted = share * sizes[own].sum()
        # As many documents as bring the rows nearest to the share.
        chosen[own[: int(np.abs(np.append(0, np.cumsum(sizes[own])) - wanted).argmin())]] = True
    held: NDArray[np.bool_] = chosen[where]
    return held
