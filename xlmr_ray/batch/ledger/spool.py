"""Objects that grow with a run, on their way into the store: on this machine's disk and not in its memory."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from xlmr_ray.errors import JobFailed

MOST = 32 << 20  # bytes that stay in memory


@contextlib.contextmanager
def spooled(pieces: Iterable[bytes]) -> Iterator[BinaryIO]:
    """The pieces as a file, at its start. Raises JobFailed where the disk for temporary files is full."""
    file: BinaryIO = io.BytesIO()
    with contextlib.ExitStack() as stack:
        for piece in pieces:
            try:
                file.write(piece)
                if isinstance(file, io.BytesIO) and file.tell() > MOST:
                    disk = stack.enter_context(tempfile.TemporaryFile())
                    disk.write(file.getbuffer())
                    file = disk
            except OSError as error:
                folder, reason = tempfile.gettempdir(), os.strerror(error.errno or 0)
                raise JobFailed(
                    f"{folder}: cannot be written: {reason}; free some space, or set TMPDIR, and run the job again"
                ) from None
        file.seek(0)
        yield file
