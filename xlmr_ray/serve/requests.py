"""What a request is while it runs, and how it can end badly: errors that know their HTTP status.

No message holds a user's text: it names the field, its index, and what is expected.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

# Where the front of a cluster of this machine's own says, in each request, which one it is; and the environment's
# variable in which the replicas know it.
FRONT_HEADER = "x-xlmr-ray-front"
FRONT_VARIABLE = "XLMR_RAY_FRONT"


# In an ASGI scope: a request of a batch, for which nobody waits.
BACKGROUND = "xlmr_ray.background"


class ServiceError(Exception):
    """`status` is HTTP's, `kind` the name that metrics count it by."""

    status = 500
    kind = "internal"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message, self.field = message, field

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message

    @property
    def headers(self) -> dict[str, str]:
        return {}


class Invalid(ServiceError):
    """The request is understood and wrong: `field` is the way to it, such as `inputs.3` or `parameters.top_k`."""

    status, kind = 422, "invalid"

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message, field=field)


class Empty(ServiceError):
    status, kind = 400, "empty"


class Unauthorized(ServiceError):
    status, kind = 401, "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class NotFound(ServiceError):
    status, kind = 404, "not_found"


class WrongMethod(ServiceError):
    """`allowed`: the methods that the path takes."""

    status, kind = 405, "wrong_method"

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(f"this path takes {', '.join(allowed)}")
        self.allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        return {"allow": ", ".join(self.allowed)}


class TimedOut(ServiceError):
    status, kind = 408, "timed_out"


class TooLarge(ServiceError):
    status, kind = 413, "too_large"


class WrongType(ServiceError):
    status, kind = 415, "wrong_type"


class BackendFailed(ServiceError):
    """The model gave no result for a valid request."""

    status, kind = 424, "backend"


class Overloaded(ServiceError):
    """`retry_after`: seconds after which there is likely to be room."""

    status, kind = 429, "overloaded"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after)}


class Misdirected(ServiceError):
    """A request that came from the front of another service; its front asks another replica."""

    status, kind = 503, "misdirected"


class Unavailable(ServiceError):
    status, kind = 503, "unavailable"

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": "5"}


# A protocol's shape of an error.
ErrorBody = Callable[[ServiceError], Mapping[str, Any]]


@dataclass
class Context:
    """What is known of the request that runs: the `deadline` is of `time.monotonic()`, None for none; `facts` go into
    its line of the log; `background` where it comes after all others.
    """

    id: str
    deadline: float | None
    began: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)
    background: bool = False


CURRENT: ContextVar[Context | None] = ContextVar("request", default=None)


def request_id(given: str | None) -> str:
    """The caller's, if it can stand in a log and a header as it is; a new one else."""
    if given and len(given) <= 128 and all(33 <= ord(c) <= 126 for c in given):
        return given
    return uuid.uuid4().hex
