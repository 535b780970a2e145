"""The process's streams: there whatever the shell has closed, and one line on standard error as its last word."""

import os
import sys
from typing import NoReturn

from rich.console import Console

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
