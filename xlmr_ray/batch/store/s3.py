"""S3 as a store. The one file that imports s3fs.

botocore's and s3fs's own retries are switched off for the store: they know no deadline, and take a conflict for final.
Input is read with them on.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import inspect
import io
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeVar, cast

import botocore.exceptions
import botocore.session
import s3fs
from fsspec.asyn import sync
from s3fs.core import S3_RETRYABLE_ERRORS
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from xlmr_ray.batch.store import retry_counter as retries
from xlmr_ray.batch.store.base import DEADLINE, Changed, Entry, Exists, NoConditionalWrites, probe_writes
from xlmr_ray.batch.store.throttle import MOST, throttle_of
from xlmr_ray.errors import JobFailed, UserError

log = logging.getLogger(__name__)
T = TypeVar("T")

PROBE_DEADLINE = 20.0  # a wrong endpoint is an error within seconds, at the start
BLOCK = 8 << 20  # bytes read at a time; the 50 MiB of s3fs is much for a Parquet footer
TIMEOUTS = {"connect_timeout": 5, "read_timeout": 60, "max_pool_connections": MOST}
RETRIES = {"mode": "adaptive", "total_max_attempts": 6}
_opening = threading.Lock()
TRANSIENT_CODES = {
    "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "InternalError",
    "ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict", "BadDigest", "IncompleteBody",
    "XAmzContentSHA256Mismatch",
}  # fmt: skip
SLOW_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
DENIED_CODES = {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired", "SignatureDoesNotMatch"}


@dataclass(frozen=True)
class Access:
    """How S3 is reached, for libraries with clients of their own; the secret ones are in no repr."""

    endpoint: str | None
    region: str | None
    key: str | None = field(repr=False)
    secret: str | None = field(repr=False)
    token: str | None = field(repr=False)


def access(options: Mapping[str, object] | None = None) -> Access:
    """By the options of `s3_filesystem`, else by the usual AWS variables and files."""
    given = cast(dict[str, str | None], known_options(options))
    session = botocore.session.Session(profile=given.get("profile"))
    region = session.get_config_variable("region")
    endpoint = given.get("endpoint_url")
    if given.get("key"):
        return Access(endpoint, region, given["key"], given.get("secret"), given.get("token"))
    found = session.get_credentials()
    keys = None if found is None else found.get_frozen_credentials()
    return Access(endpoint, region, *((keys.access_key, keys.secret_key, keys.token) if keys else (None, None, None)))


def s3_filesystem(options: Mapping[str, object] | None = None) -> s3fs.S3FileSystem:
    """S3 for reading input: no listing cache, retried by botocore, which also slows down when the store throttles."""
    return _filesystem(known_options(options), RETRIES)


class S3Store:
    """A prefix of a bucket on a store with `If-None-Match` and `If-Match`.

    `deadline` is the seconds for which one operation is retried (5xx, 429, 409, resets, time-outs), with jitter; 403
    and expired credentials fail at once.
    """

    at_least_once = False

    def __init__(self, url: str, *, options: Mapping[str, object] | None = None, deadline: float = DEADLINE) -> None:
        bucket, _, prefix = url.split("://", 1)[1].partition("/")
        if not bucket:
            raise UserError(f"{url}: names no bucket; write s3://bucket/folder")
        self.bucket = bucket
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.deadline = deadline
        self._options = known_options(options)
        self._opened: tuple[int, s3fs.S3FileSystem] | None = None

    def __repr__(self) -> str:
        return f"S3Store({self.url('')!r})"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}

    def __copy__(self) -> S3Store:
        """Another store on the same connections."""
        same = S3Store.__new__(S3Store)
        same.__dict__.update(self.__dict__)
        return same

    def create(self, key: str, data: bytes) -> str:
        return self._conditional("create", key, data, Exists(self.url(key)), {"IfNoneMatch": "*"})

    def create_file(self, key: str, file: BinaryIO) -> str:
        return self._conditional("create", key, file, Exists(self.url(key)), {"IfNoneMatch": "*"})

    def replace(self, key: str, data: bytes, etag: str) -> str:
        return self._conditional("replace", key, data, Changed(self.url(key)), {"IfMatch": f'"{etag}"'})

    def _conditional(
        self, verb: str, key: str, data: bytes | BinaryIO, lost: Exception, condition: dict[str, str]
    ) -> str:
        # a name on the bytes, by which to know them again: an earlier try may have written them and lost its answer,
        # and not only a try of ours: aiohttp sends a PUT again when a kept-open connection breaks, and so do proxies
        writer = secrets.token_hex(8)

        def write() -> str:
            try:
                return self._write(key, data, Metadata={"writer": writer}, **condition)
            except Exception as error:
                if _status(error) != 412 and not (_status(error) == 404 and _code(error) in ("NoSuchKey", "404")):
                    raise
            try:
                found = self._call("head_object", Key=self.prefix + key)
            except FileNotFoundError:
                found = {}
            if found.get("Metadata", {}).get("writer") == writer:
                return cast(str, found["ETag"].strip('"'))
            raise lost

        return self._run(verb, key, write)

    def put(self, key: str, data: bytes) -> str:
        return self._run("put", key, lambda: self._write(key, data))

    def get(self, key: str) -> tuple[bytes, str]:
        return self._run("get", key, lambda: self._read(key))

    def head(self, key: str) -> Entry | None:
        try:
            found = self._run("head", key, lambda: self._call("head_object", Key=self.prefix + key))
        except FileNotFoundError:
            return None
        return Entry(key, found["ContentLength"], found["ETag"].strip('"'), found["LastModified"].timestamp())

    def list(self, prefix: str) -> Iterator[Entry]:
        for page in self._pages(prefix, {}):
            for found in page.get("Contents", ()):
                key = found["Key"][len(self.prefix) :]
                yield Entry(key, found["Size"], found["ETag"].strip('"'), found["LastModified"].timestamp())

    def folders(self, prefix: str) -> Iterator[str]:
        for page in self._pages(prefix, {"Delimiter": "/"}):
            for found in page.get("CommonPrefixes", ()):
                yield found["Prefix"].rstrip("/").rpartition("/")[2]

    def _pages(self, prefix: str, more: dict[str, str]) -> Iterator[dict[str, Any]]:
        def fetch() -> dict[str, Any]:
            return cast(dict[str, Any], self._call("list_objects_v2", Prefix=self.prefix + prefix, **more))

        while True:
            page = self._run("list", prefix, fetch)
            yield page
            if not page.get("IsTruncated"):
                return
            more = {**more, "ContinuationToken": page["NextContinuationToken"]}

    def open(self, key: str) -> BinaryIO:
        entry = self.head(key)
        if entry is None:
            raise FileNotFoundError(self.url(key))
        found = entry

        def read(start: int, stop: int) -> bytes:
            # of the same object only, or two halves of different ones would pass for a whole
            same = {"Range": f"bytes={start}-{stop - 1}", "IfMatch": f'"{found.etag}"'}
            return self._run("read", key, lambda: self._read(key, **same))[0]

        return cast(BinaryIO, io.BufferedReader(_Ranges(found.size, read), BLOCK))

    def delete(self, key: str) -> None:
        self._run("delete", key, lambda: self._call("delete_object", Key=self.prefix + key))

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def probe(self) -> None:
        self._try(probe_writes)

    def check(self) -> None:
        self._try(lambda store: next(store.list("_runs/"), None))

    def _try(self, what: Callable[[S3Store], object]) -> None:
        try:
            self._connection()
            quick = copy.copy(self)
            quick.deadline = min(PROBE_DEADLINE, self.deadline)
            what(quick)
        except _NotImplemented:
            raise NoConditionalWrites(self.url("")) from None
        except (JobFailed, FileNotFoundError) as error:
            raise UserError(str(error)) from None

    def _write(self, key: str, data: bytes | BinaryIO, **more: object) -> str:
        # the store compares the digest with what arrived, so an etag in return means that every byte did
        md5 = hashlib.md5(usedforsecurity=False)
        if isinstance(data, bytes):
            md5.update(data)
        else:
            data.seek(0)
            while block := data.read(BLOCK):
                md5.update(block)
            data.seek(0)
        digest = base64.b64encode(md5.digest()).decode()
        answer = self._call("put_object", Key=self.prefix + key, Body=data, ContentMD5=digest, **more)
        return cast(str, answer["ETag"].strip('"'))

    def _read(self, key: str, **more: str) -> tuple[bytes, str]:
        fs = self._fs

        async def read() -> tuple[bytes, str]:
            answer = await fs._call_s3("get_object", Bucket=self.bucket, Key=self.prefix + key, **more)
            async with answer["Body"] as body:
                data = await body.read()
            if len(data) != answer["ContentLength"]:
                raise ConnectionError(f"got {len(data)} of {answer['ContentLength']} bytes")
            return data, answer["ETag"].strip('"')

        return cast(tuple[bytes, str], sync(fs.loop, read))

    def _call(self, method: str, **parameters: object) -> Any:
        return self._fs.call_s3(method, Bucket=self.bucket, **parameters)

    @property
    def _fs(self) -> s3fs.S3FileSystem:
        return self._connection()[1]

    def _connection(self) -> tuple[int, s3fs.S3FileSystem]:
        """The process and its connection.

        A fork must not share its parent's sockets. It is not fsspec's cached instance, which is one a thread, and
        would keep the credentials, or their absence, of its first use.
        """
        with _opening:
            if self._opened is None or self._opened[0] != os.getpid():
                settings = {**self._options, "skip_instance_cache": True}
                self._opened = (os.getpid(), _filesystem(settings, {"total_max_attempts": 1}))
                self._opened[1].retries = 1
            return self._opened

    def _run(self, verb: str, key: str, function: Callable[[], T]) -> T:
        url = self.url(key)

        def tell(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            log.info("%s: %s failed (%s), try %d", url, verb, _s3_reason(error), state.attempt_number)
            retries.count()

        retrying = Retrying(
            retry=retry_if_exception(_transient),
            wait=wait_random_exponential(multiplier=0.1, max=10),
            stop=stop_before_delay(self.deadline),
            before_sleep=tell,
            reraise=True,
        )
        throttle = throttle_of(f"{self._options.get('endpoint_url')} {self.bucket}")
        try:
            return retrying(lambda: throttle.call(function, _throttled))
        except (Exists, Changed):
            raise
        except Exception as error:
            explained = _explained(error, verb, url, self.deadline)
        # outside the handler: the store's answer can echo the signed request, and must not hang on ours as context
        raise explained


class _Ranges(io.RawIOBase):
    """An object of so many bytes, read by ranges with `read_range(start, stop)`."""

    def __init__(self, size: int, read_range: Callable[[int, int], bytes]) -> None:
        self.size, self.read_range, self.position = size, read_range, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, start + offset)
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        stop = min(self.position + len(buffer), self.size)
        if stop <= self.position:
            return 0
        data = self.read_range(self.position, stop)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


class _NotImplemented(JobFailed):
    """The store said 501."""


def _filesystem(options: Mapping[str, Any], retries: Mapping[str, object]) -> s3fs.S3FileSystem:
    settings = {"default_block_size": BLOCK, **options}
    config = {**TIMEOUTS, "retries": retries, **settings.pop("config_kwargs", {})}
    return s3fs.S3FileSystem(**settings, config_kwargs=config, use_listings_cache=False)


def known_options(options: Mapping[str, object] | None) -> dict[str, object]:
    """s3fs's options, with the endpoint from the environment; s3fs itself would only trip over a misspelt one later."""
    known = {*inspect.signature(s3fs.S3FileSystem.__init__).parameters, "profile"} - {"self", "kwargs"}
    if unknown := set(options or ()) - known:
        raise UserError(
            f"unknown option of the S3 store: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
        )
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return {**({"endpoint_url": endpoint} if endpoint else {}), **(options or {})}


def _answer(error: BaseException | None) -> dict[str, Any]:
    """The store's answer behind an exception of s3fs, which keeps botocore's as its cause; {} where none came."""
    for found in (error, error.__cause__ if error else None):
        if isinstance(found, botocore.exceptions.ClientError):
            return cast(dict[str, Any], found.response)
    return {}


def _status(error: BaseException | None) -> int | None:
    return cast(int | None, _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode"))


def _code(error: BaseException | None) -> str:
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _transient(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status in (408, 409, 429) or (status >= 500 and status != 501) or _code(error) in TRANSIENT_CODES
    connection = (*S3_RETRYABLE_ERRORS, botocore.exceptions.ConnectionError, ConnectionError, TimeoutError)
    return isinstance(error, connection)


def _throttled(error: Exception) -> bool:
    return _status(error) in (429, 503) or _code(error) in SLOW_CODES


def _s3_reason(error: BaseException | None) -> str:
    """Only status and code: the store's own text may echo keys and signatures."""
    status = _status(error)
    code = _code(error)
    # an answer to HEAD has no body, and botocore then gives the status as the code
    return f"{status} {'' if code.isdigit() else code}".rstrip() if status else type(error).__name__


def _explained(error: Exception, verb: str, url: str, deadline: float) -> Exception:
    """One line, for a person, without the store's own text."""
    status, code = _status(error), _code(error)
    if isinstance(error, botocore.exceptions.NoCredentialsError | botocore.exceptions.PartialCredentialsError):
        return UserError(
            f"{url}: no credentials for the store; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    if isinstance(error, botocore.exceptions.ProfileNotFound):
        return UserError(f"{url}: the AWS profile asked for is in no configuration file")
    if isinstance(error, ValueError) and "ndpoint" in str(error):
        return UserError(f"{url}: the store's endpoint_url is not a URL; write http(s)://host:port")
    if code == "NoSuchBucket":
        return JobFailed(f"{url}: the bucket does not exist; create it or correct its name")
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(url)
    if status == 403 or code in DENIED_CODES or isinstance(error, PermissionError):
        return JobFailed(
            f"{url}: {verb} was refused ({_s3_reason(error)}); check the credentials and what they may do here"
        )
    if status == 501:
        return _NotImplemented(f"{url}: the store cannot {verb} ({_s3_reason(error)})")
    if status == 412:
        return JobFailed(f"{url}: changed while it was read; run the command again")
    if _transient(error):
        return JobFailed(
            f"{url}: {verb} still failed after {deadline:.0f} s of retries ({_s3_reason(error)}); "
            "start again, it resumes"
        )
    return JobFailed(f"{url}: {verb} failed ({_s3_reason(error)})")
