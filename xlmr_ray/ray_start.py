"""How a Ray cluster is started or joined: away from the user's folder, and whatever Ray raises there in one line."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from xlmr_ray.errors import UserError
from xlmr_ray.text.first_line import first_line
from xlmr_ray.workers_path import away_from_here


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def socket_folder() -> str | None:
    """Where sockets are, Ray's and others: `RAY_TMPDIR`, made as Ray makes it; None for Python's own choice."""
    folder = os.environ.get("RAY_TMPDIR")
    if not folder:
        return None
    try:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    except OSError as error:
        raise UserError(f"RAY_TMPDIR {folder}: cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"RAY_TMPDIR {folder}: cannot be written")
    return folder


def too_long_for_sockets() -> UserError:
    """Of the folder that Ray takes for its sockets."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "the folder for temporary files")
    folder = os.environ.get(name) or tempfile.gettempdir()  # which Python takes from other variables, too
    return UserError(f"{name} {folder}: too long for the paths of sockets; set RAY_TMPDIR to one such as /tmp")


@contextlib.contextmanager
def starting(cluster: str) -> Iterator[None]:
    """Around `ray.init`, of which any exception becomes a UserError that names the `cluster`. Ray raises even bare
    `Exception`, where a machine is so busy that a node does not start in time.
    """
    try:
        with away_from_here():
            yield
    except Exception as error:
        if "AF_UNIX" in str(error):
            raise too_long_for_sockets() from None
        # By its name: where a connection fails, Ray gives it as the text of another error.
        if any("AuthenticationError" in f"{type(one).__name__} {one}" for one in causes(error)):
            raise UserError(
                f"{cluster}: its cluster takes only who has its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
                "the file ~/.ray/auth_token to what `ray get-auth-token` prints on the cluster"
            ) from None
        raise UserError(f"{cluster}: no Ray cluster there: {first_line(error)}") from None
