"""What a job file says of the table that its output is, too: `output.table`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator

from xlmr_ray.errors import UserError
from xlmr_ray.validation import Section


class TableTarget(Section):
    """`name`: that of the table in a catalog of Iceberg, with its namespace (`web.labels`); `catalog`: which one, by
    its name in pyiceberg's own settings (`.pyiceberg.yaml`, `PYICEBERG_CATALOG__…`), None for the one that they name.
    Without a name, the table is a folder of the output.
    """

    format: Literal["delta", "iceberg"]
    name: str | None = None
    catalog: str | None = None

    @model_validator(mode="after")
    def names_are_icebergs(self) -> Self:
        if self.format != "iceberg" and (self.name or self.catalog):
            raise UserError("output.table: a Delta table is a folder of the output; leave name and catalog out")
        if self.catalog is not None and self.name is None:
            raise UserError("output.table: which table of the catalog? give its name, such as {name: web.labels}")
        if self.name is not None and (not all(self.name.split(".")) or "." not in self.name):
            raise UserError(f"output.table.name: expected namespace.table, got {self.name!r}")
        return self


def table_target(value: Any) -> Any:
    """Only a format's name counts as a table of that format in the output."""
    format = value.get("format") if isinstance(value, dict) else value
    if format == "lance":
        raise UserError(
            "output.table: a Lance table keeps copies of rows, so each would be written twice; take delta or iceberg, "
            "or make one of a finished run: lance.write_dataset(pyarrow.dataset.dataset(xlmr_ray.result_files(OUT)), …)"
        )
    return {"format": value} if isinstance(value, str) else value
