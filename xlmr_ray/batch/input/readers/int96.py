"""INT96 times of old Parquet. They are read in microseconds, so that no year is out of range, and those of kept columns
in nanoseconds, too, to find what microseconds do not hold.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xlmr_ray.batch.input.readers.parquet_columns import is_list


def finer(us: pa.Array, ns: pa.Array) -> NDArray[np.bool_]:
    """`(rows,)`: where a time, in a struct or list, too, is finer in `ns` than in `us`, the same column of the two
    readings. Out of the range of nanoseconds, both are cut alike.
    """
    found = np.zeros(len(us), np.bool_)
    if us.type == ns.type:  # not INT96, and nothing in it is
        return found
    if isinstance(us.type, pa.StructType):
        for index in range(us.type.num_fields):
            found |= finer(pc.struct_field(us, index), pc.struct_field(ns, index))
    elif isinstance(us.type, pa.MapType):
        found = finer(*(column.cast(pa.list_(column.type.field(0))) for column in (us, ns)))
    elif is_list(us.type):
        inside = finer(pc.list_flatten(us), pc.list_flatten(ns))
        found[pc.list_parent_indices(us).to_numpy()[inside]] = True
    else:
        differ = pc.not_equal(us.cast(ns.type, safe=False), ns).fill_null(False)
        found = differ.to_numpy(zero_copy_only=False)
    return found
