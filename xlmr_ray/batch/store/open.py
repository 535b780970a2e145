"""A URL to its store."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from xlmr_ray.batch.store.base import DEADLINE, Address, Store
from xlmr_ray.batch.store.filesystem import local_path, scheme_of
from xlmr_ray.batch.store.fsspec import FsspecStore
from xlmr_ray.errors import UserError
from xlmr_ray.text.redact import carries_secret, clean_url


def local(address: Address) -> Store:
    from xlmr_ray.batch.store.local import LocalStore

    return LocalStore(local_path(address.url), address.at_least_once)


def s3(address: Address) -> Store:
    from xlmr_ray.batch.store.s3 import S3Store, known_options  # here, so that a local run does not wait for botocore

    if carries_secret(address.url):
        raise UserError(
            f"{clean_url(address.url)}: keys do not belong in a URL; set AWS_ACCESS_KEY_ID, …, or a profile"
        )
    if address.at_least_once:
        return FsspecStore(address.url, known_options(address.options), True)
    return S3Store(address.url, options=address.options, deadline=address.deadline)


def other(address: Address) -> Store:
    return FsspecStore(address.url, dict(address.options), address.at_least_once)


# By the URL's scheme; every other scheme is fsspec's.
STORES: dict[str, Callable[[Address], Store]] = {"file": local, "s3": s3}


def open_store(
    url: str, *, options: Mapping[str, object] | None = None, at_least_once: bool = False, deadline: float = DEADLINE
) -> Store:
    """Open the store at `url`: a path or `file://`, `s3://bucket/prefix`, or another fsspec URL. Sends no request.

    `options` are those of the URL's file system, s3fs's for S3 (`endpoint_url`, `key`, `secret`, `token`, `profile`,
    `anon`, `client_kwargs`, …). Without them the usual AWS variables and files hold; the endpoint is that of
    `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, read here so that it travels with a pickled store. `at_least_once`
    opens a store without conditional writes: two writers may then both believe that they created a key. `deadline`:
    seconds for which one operation is retried.
    """
    return STORES.get(scheme_of(url), other)(Address(url, options or {}, at_least_once, deadline))
