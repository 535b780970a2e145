"""The process's streams: there whatever the shell has closed, and one line on standard error as its last word."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

from rich.console import Console

from xlmr_ray.errors import Interrupted, JobFailed, UserError
from xlmr_ray.text.printable import printable
from xlmr_ray.text.redact import redacted

INTERRUPTED = 130  # as shells have it for ^C


def open_standard_streams() -> None:
    """What a shell has closed (`2>&-`) is open, to nowhere: else the first file that is opened takes its number, and
    messages end up in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def fail(error: Exception, code: int) -> NoReturn:
    text = redacted(" ".join(printable(str(error)).split()))
    Console(stderr=True).print(f"xlmr-ray: {text}", style="red", highlight=False, markup=False, soft_wrap=True)
    if code == INTERRUPTED:
        # Threads of Ray that were stopped in the middle can abort the interpreter at its end, and hide the exit code.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def ends_in_one_line() -> Iterator[None]:
    """For a program's entry point: what it raises for its user is its last line, and decides its exit code."""
    try:
        yield
    except UserError as error:
        fail(error, 2)
    except JobFailed as error:
        fail(error, INTERRUPTED if isinstance(error, Interrupted) else 1)
    except KeyboardInterrupt:
        fail(JobFailed("stopped"), INTERRUPTED)
