"""A service in a separate session, so that signals to the process group reach only the one that waits for it."""

import os
import signal
import sys
import threading
from typing import NoReturn

# What is handed on: end, and read the settings again.
HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def in_own_session() -> None:
    """Forks: the child returns, in a session without the terminal; the parent hands signals on and ends as it does.

    `timeout`, `kill %1` and process managers signal a whole group. Ray's processes and HAProxy would end with it at
    once, in the middle of requests, and Ray's driver then waits for them. When the parent is killed, the child ends as
    at SIGTERM.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        os.setsid()
        threading.Thread(target=end_with_parent, args=(reader,), daemon=True).start()
        return
    os.close(reader)
    for number in HANDED_ON:
        signal.signal(number, lambda number, _: os.kill(child, number))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(code if code >= 0 else 128 - code)


def end_with_parent(reader: int) -> None:
    os.read(reader, 1)  # returns when the parent's end is closed
    os.kill(os.getpid(), signal.SIGTERM)


def ended() -> NoReturn:
    """The child's end, without what the interpreter and Ray would still do: they wait seconds for what is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
