"""Looks at a Parquet footer before Arrow does: is it there, and does it name extension types that Arrow would load?

Opening a file makes Arrow rebuild the Arrow schema that its writer left in the footer (`ARROW:schema`: an IPC message
in base64), and with it every extension type that is registered in the process. Such types have run code from a crafted
file (CVE-2026-41486), so a file that names one that is not Arrow's own is refused unopened.
Layout: https://parquet.apache.org/docs/file-format/ and Thrift's compact protocol.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pyarrow as pa

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.readers.raw import BadFile, Source

TAIL = 64 << 10  # read at once; most footers are smaller
_KEY = b"\x0cARROW:schema"  # a Thrift string: its length, then its bytes
_HIDDEN = b"\x0cARROW.schema"
_PICKLED = "arrow.py_extension_type"  # of older pyarrow: a pickle, whatever its name says
_NAME, _DISARMED = b"ARROW:extension:name", b"ARROW.extension.name"


def check_footer(source: Source) -> None:
    """Raises BadFile. The footer stays in `source`, so that Arrow's reading of it costs no second request."""
    tail = source.keep_tail(TAIL)
    if tail[-4:] == b"PARE":
        raise BadFile(codes.WRONG_FORMAT, "the Parquet file is encrypted")
    if tail[-4:] != b"PAR1" or len(tail) < 12:
        if source.range(0, 4) == b"PAR1":
            raise BadFile(codes.CORRUPT_FOOTER, "the file starts as Parquet and is cut: it has no footer")
        if source.range(0, 4).startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
            raise BadFile(codes.WRONG_FORMAT, "the whole file is compressed: unpack it, Parquet is compressed inside")
        raise BadFile(codes.WRONG_FORMAT, "the ending says Parquet, the content is not Parquet")
    size = int.from_bytes(tail[-8:-4], "little")
    if size + 12 > source.input.size:
        raise BadFile(codes.CORRUPT_FOOTER, f"the footer should have {size} bytes, the file has {source.input.size}")
    if size + 8 > len(tail):
        tail = source.keep_tail(size + 8)
    try:
        names = list(extension_names(tail[-8 - size : -8]))
    except BadFile:  # its writer's Arrow has types that this one has not
        hide_arrow_schema(source)
        return
    for name in names:
        if not name.startswith("arrow.") or name == _PICKLED:
            raise BadFile(
                codes.EXTENSION_TYPE, f"the file has a column of the extension type {name!r}; it is not loaded"
            )


def hide_arrow_schema(source: Source) -> None:
    """Have Arrow go by the Parquet types only: dictionaries come as what they hold."""
    source.tail = source.tail.replace(_KEY, _HIDDEN)


def extension_names(footer: bytes) -> Iterator[str]:
    """Names of the extension types in the Arrow schema of a footer, none of which is loaded."""
    start = footer.find(_KEY)
    while start >= 0:
        start += len(_KEY)
        try:
            message = base64.b64decode(_thrift_string(footer, start), validate=True)
            schema = pa.ipc.read_schema(pa.py_buffer(message.replace(_NAME, _DISARMED)))
        except (ValueError, IndexError, OSError, pa.ArrowException):
            raise BadFile(codes.CORRUPT_FOOTER, "the Arrow schema in the footer cannot be read") from None
        for field in schema:
            yield from _names_before(field)
        start = footer.find(_KEY, start)


def _thrift_string(data: bytes, position: int) -> bytes:
    """The string field that follows at `position`: a field header (next id, binary), a varint length, the bytes."""
    if data[position] != 0x18:
        raise ValueError("no string follows")
    length = shift = 0
    while True:
        position += 1
        length |= (data[position] & 0x7F) << shift
        shift += 7
        if data[position] < 0x80:
            break
    value = data[position + 1 : position + 1 + length]
    if len(value) != length:
        raise ValueError("the string is cut")
    return value


def _names_before(field: pa.Field) -> Iterator[str]:
    if field.metadata and _DISARMED in field.metadata:
        yield field.metadata[_DISARMED].decode(errors="replace")
    for index in range(field.type.num_fields):
        yield from _names_before(field.type.field(index))
