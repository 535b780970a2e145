"""A URL to its store."""

from __future__ import annotations

from collections.abc import Mapping

from xlmr_ray.batch.store.base import DEADLINE, Store
from xlmr_ray.batch.store.filesystem import local_path, scheme_of
from xlmr_ray.batch.store.fsspec import FsspecStore
from xlmr_ray.errors import UserError
from xlmr_ray.text.redact import carries_secret, clean_url


def open_store(
    url: str, *, options: Mapping[str, object] | None = None, at_least_once: bool = False, deadline: float = DEADLINE
) -> Store:
    """Open the store at `url`: a path or `file://`, `s3://bucket/prefix`, or another fsspec URL. Sends no request.

    `options` are those of the URL's file system, s3fs's for S3 (`endpoint_url`, `key`, `secret`, `token`, `profile`,
    `anon`, `client_kwargs`, …). Without them the usual AWS variables and files hold; the endpoint is that of
    `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, read here so that it travels with a pickled store. `at_least_once`
    opens a store without conditional writes: two writers may then both believe that they created a key.
    """
    scheme = scheme_of(url)
    if scheme == "s3" and carries_secret(url):
        raise UserError(f"{clean_url(url)}: keys do not belong in a URL; set AWS_ACCESS_KEY_ID, …, or a profile")
    if scheme == "file":
        from xlmr_ray.batch.store.local import LocalStore

        return LocalStore(local_path(url), at_least_once)
    if scheme == "s3" and not at_least_once:
        from xlmr_ray.batch.store.s3 import S3Store  # here, so that a local run does not wait for botocore

        return S3Store(url, options=options, deadline=deadline)
    if scheme == "s3":
        from xlmr_ray.batch.store.s3 import checked_options

        options = checked_options(options)
    return FsspecStore(url, dict(options or {}), at_least_once)
