"""The file system of a URL, for reading input: local, S3, or another that fsspec knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import fsspec

from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.text.first_line import first_line
from xlmr_ray.text.printable import printable
from xlmr_ray.text.redact import carries_secret, clean_url, redacted


def filesystem(url: str, *, options: Mapping[str, object] | None = None) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of `url`, for reading input, and the path in it. No listing is cached; S3 is retried.

    Raises UserError for a URL that holds a password or a signature, and where the package for its scheme is missing.
    """
    if carries_secret(url):
        raise UserError(
            f"{clean_url(url)}: a user, password or signature in an input's URL would be written into the plan and "
            "beside every row; give it by the store's own variables or files"
        )
    return open_filesystem(url, options)


def open_filesystem(url: str, options: Mapping[str, object] | None) -> tuple[fsspec.AbstractFileSystem, str]:
    scheme = scheme_of(url)
    if scheme == "file":
        return fsspec.filesystem("file"), local_path(url)
    if scheme == "s3":
        from xlmr_ray.batch.store.s3 import s3_filesystem

        return s3_filesystem(options), url.split("://", 1)[1]
    if scheme == "hf":
        from xlmr_ray.batch.store.hub import hub_filesystem

        return hub_filesystem(options), url.split("://", 1)[1]
    if scheme not in fsspec.available_protocols():
        raise UserError(f"{clean_url(url)}: no file system for {scheme}:// is known")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise UserError(f"{clean_url(url)}: the package for {scheme}:// is not installed: {error}") from None
    try:
        return cast(
            tuple[fsspec.AbstractFileSystem, str],
            fsspec.core.url_to_fs(url, use_listings_cache=False, **dict(options or {})),
        )
    except Exception as error:  # credentials that are missing or wrong: each package has other exceptions
        reason = redacted(first_line(error))
        raise UserError(f"{clean_url(url)}: {scheme}:// cannot be opened: {reason}") from None


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Tells a failure of an input's store, after its own retries, as one line: JobFailed. It is never taken for bad
    data.
    """
    try:
        yield
    except Exception as error:
        # botocore's own exceptions share no base with OSError, and importing botocore takes longer than most calls.
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("botocore", "aiobotocore")):
            raise
        reason = redacted(first_line(error))
        raise JobFailed(f"{what}: cannot be read: {reason}; run the job again to go on") from None


def scheme_of(url: str) -> str:
    scheme = url.split("://", 1)[0] if "://" in url else "file"
    return {"local": "file", "s3a": "s3", "s3n": "s3"}.get(scheme, scheme)


def scheme_and_path(url: str) -> tuple[str, str]:
    """The scheme of a URL or path (`file`, `s3`, …), and where in it, without a slash at the end: to compare two."""
    scheme = scheme_of(url)
    return scheme, (local_path(url) if scheme == "file" else url.split("://", 1)[1]).rstrip("/")


def local_path(url: str) -> str:
    path = unquote(url.split("://", 1)[1]) if "://" in url else url
    if (shown := printable(path)) != path:
        raise UserError(f"{shown}: the name is not UTF-8; rename it (convmv -f latin1 -t utf8)")
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:
        user = path.partition("/")[0]
        raise UserError(f"{path}: no user {user[1:]} here; write ./{path} for a folder of that name") from None
