"""The table formats of lakehouses. A format is one file here, with its `TableFormat`, and one line of
`TABLES`.
"""

from xlmr_ray.batch.lake.delta import Delta
from xlmr_ray.batch.lake.iceberg.sink import IcebergSink
from xlmr_ray.batch.lake.iceberg.source import Iceberg
from xlmr_ray.batch.lake.table import TableFormat, TableSink

TABLES: tuple[TableFormat, ...] = (Delta(), Iceberg())
# By what `output.table` calls them: formats that a finished run can be committed to.
SINKS: dict[str, TableSink] = {"delta": Delta(), "iceberg": IcebergSink()}
