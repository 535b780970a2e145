"""Files and batches in a folder or bucket, which all replicas of a service share. What is there says how far one is:

    files/ID.json, files/ID       a file's description, and its content where it was uploaded
    open/BATCH                    a batch that is being made, or is not done
    batches/BATCH/chunks/N        requests, some of its lines
    batches/BATCH/batch.json      what was asked for: from here on the batch is there
    batches/BATCH/claims/N        who computes them now, until when
    batches/BATCH/parts/N         their answers; only one writer can create it
    batches/BATCH/cancelled       that it was cancelled, when
    batches/BATCH/done.json       how it ended

A replica that dies leaves a claim, which another one may take when its time is over, or when nobody has renewed it for
as long as that by the other's own clock: those of machines differ, and jump. If both go on, one of them creates the
part, so that each request has one line.

The ids of batches begin with the time, so that their names tell the order. Before it stands a letter: older ids
are hexadecimal digits at random, and so are behind all others where the newest come first.
"""

import io
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from xlmr_ray.batch.store.base import Changed, Exists, Store, create_file
from xlmr_ray.batch.store.filesystem import scheme_of
from xlmr_ray.batch.store.open import STORES, open_store
from xlmr_ray.errors import UserError
from xlmr_ray.serve.json_body import Parser
from xlmr_ray.serve.members import check_parts
from xlmr_ray.serve.requests import Invalid, NotFound, TooLarge
from xlmr_ray.serve.settings import LimitsSection, ServeSettings

CHUNK = 64  # requests that are claimed, and whose answers are kept, together
CLAIM_S = 60.0
ABANDONED_S = 86_400.0  # after which a batch that was begun and is not there never will be
LONGEST_NAME = 64  # characters of an id
ESCAPED, ENVELOPE = 3, 65_536  # how much longer escapes make a line than its request in UTF-8, and bytes beside that
MOST_ERRORS = 100  # of a file whose lines are wrong

Kind = Literal["output", "errors"]


@dataclass(frozen=True)
class Line:
    """A request of a batch: `custom_id` is the caller's name for it."""

    custom_id: str
    body: Any


@dataclass(frozen=True)
class Answered:
    """The lines of one answered chunk, by where they belong."""

    output: Sequence[str]
    errors: Sequence[str]

    def to_bytes(self) -> bytes:
        head = json.dumps([len(self.output), len(self.errors)])
        return "\n".join([head, *self.output, *self.errors, ""]).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Answered":
        head, *lines = data.decode().split("\n")[:-1]
        good = json.loads(head)[0]
        return cls(lines[:good], lines[good:])


@dataclass
class Shelf:
    """`counts` of answered chunks, which do not change, and the others' claims as they were `seen`, with their etags
    and since when, both by batch and chunk; of batches that are open.
    """

    store: Store
    most_lines: int
    counts: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    seen: dict[str, dict[int, tuple[str, float]]] = field(default_factory=dict)

    # Files

    def add_file(self, content: BinaryIO, name: str, purpose: str) -> dict[str, Any]:
        size = content.seek(0, io.SEEK_END)
        content.seek(0)
        described = self.describe(f"file-{secrets.token_hex(12)}", name, purpose, size)
        create_file(self.store, f"files/{described['id']}", content)
        self.write(f"files/{described['id']}.json", described)
        return described

    def describe(self, name: str, filename: str, purpose: str, size: int) -> dict[str, Any]:
        return {
            "id": name,
            "object": "file",
            "bytes": size,
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }

    def file(self, name: str) -> dict[str, Any]:
        """Raises NotFound."""
        return public(self.read(f"files/{checked_name(name)}.json", "file", name))

    def file_names(self) -> list[str]:
        """The newest first."""
        found = sorted((-one.modified, one.key) for one in self.store.list("files/") if one.key.endswith(".json"))
        return [key.removeprefix("files/").removesuffix(".json") for _, key in found]

    def content(self, name: str) -> Iterator[bytes]:
        """The pieces of a file's content. Raises NotFound, at once."""
        described = self.read(f"files/{checked_name(name)}.json", "file", name)
        return self.answers(described["batch"], described["kind"]) if "batch" in described else self.pieces(name)

    def pieces(self, name: str) -> Iterator[bytes]:
        with self.store.open(f"files/{name}") as file:
            while piece := file.read(1 << 20):
                yield piece

    def delete_file(self, name: str) -> None:
        self.file(name)
        self.store.delete(f"files/{name}.json")
        self.store.delete(f"files/{name}")

    # Batches

    def add_batch(
        self, endpoint: str, file: str, window: str, metadata: dict[str, str] | None, limits: LimitsSection
    ) -> dict[str, Any]:
        """A batch of the requests in a file, which are checked first: one that is wrong fails at once."""
        self.file(file)
        lines, errors = self.checked(b"".join(self.content(file)), endpoint, limits)
        name, now = f"batch_t{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}", int(time.time())
        chunks = [lines[first : first + CHUNK] for first in range(0, len(lines), CHUNK)] if not errors else []
        asked = {
            "id": name,
            "endpoint": endpoint,
            "input_file_id": file,
            "completion_window": window,
            "metadata": metadata,
            "created_at": now,
            "lines": len(lines),
            "chunks": len(chunks),
        }
        if errors:
            self.write(f"batches/{name}/done.json", {"status": "failed", "at": now, "errors": errors})
        else:
            self.write(f"open/{name}", now)
        for number, chunk in enumerate(chunks):
            self.write(f"batches/{name}/chunks/{number}", [[one.custom_id, one.body] for one in chunk])
        self.write(f"batches/{name}/batch.json", asked)
        return self.batch(name)

    def checked(self, data: bytes, endpoint: str, limits: LimitsSection) -> tuple[list[Line], list[dict[str, Any]]]:
        """The requests of a file, and what is wrong with its lines, without their text."""
        lines: list[Line] = []
        errors: list[dict[str, Any]] = []
        seen: set[str] = set()
        texts = [(number, text) for number, text in enumerate(data.split(b"\n"), 1) if text.strip()]
        if not texts:
            errors.append(wrong(None, "empty_file", "the file has no requests"))
        if len(texts) > self.most_lines:
            too_many = f"{len(texts)} requests, at most {self.most_lines} are allowed"
            return lines, [wrong(None, "too_many_tasks", too_many)]
        for number, text in texts:
            try:
                line = request_of(text, endpoint, limits)
                if line.custom_id in seen:
                    raise Invalid("custom_id", "another line has the same")
            except (Invalid, TooLarge) as error:
                errors.append(wrong(number, "invalid_request", str(error)))
            else:
                seen.add(line.custom_id)
                lines.append(line)
        return lines, errors[:MOST_ERRORS]

    def batch(self, name: str) -> dict[str, Any]:
        """A batch as it stands. Raises NotFound."""
        asked = self.read(f"batches/{checked_name(name)}/batch.json", "batch", name)
        done = self.maybe(f"batches/{name}/done.json") or {}
        cancelled = self.maybe(f"batches/{name}/cancelled")
        status = done.get("status") or ("cancelling" if cancelled else "in_progress")
        good, bad = done.get("counts") or self.counted(name)
        at = done.get("at")
        return {
            "id": name,
            "object": "batch",
            "endpoint": asked["endpoint"],
            "errors": {"object": "list", "data": done["errors"]} if "errors" in done else None,
            "input_file_id": asked["input_file_id"],
            "completion_window": asked["completion_window"],
            "status": status,
            "output_file_id": done.get("output"),
            "error_file_id": done.get("error"),
            "created_at": asked["created_at"],
            "in_progress_at": None if status == "failed" else asked["created_at"],
            "expires_at": None,
            "finalizing_at": at,
            "completed_at": at if status == "completed" else None,
            "failed_at": at if status == "failed" else None,
            "expired_at": None,
            "cancelling_at": cancelled,
            "cancelled_at": at if status == "cancelled" else None,
            "request_counts": {"total": asked["lines"], "completed": good, "failed": bad},
            "metadata": asked["metadata"],
        }

    def batch_names(self) -> list[str]:
        """The newest first, also some that are being made."""
        return list(self.store.folders("batches/"))[::-1]

    def is_there(self, name: str) -> bool:
        return self.store.head(f"batches/{name}/batch.json") is not None

    def cancel(self, name: str) -> dict[str, Any]:
        """Raises NotFound, and Invalid where the batch has ended."""
        status = self.batch(name)["status"]
        if status not in ("in_progress", "cancelling"):
            raise Invalid("batch_id", f"the batch is {status}, and cannot be cancelled any more")
        self.create(f"batches/{name}/cancelled", int(time.time()))
        return self.batch(name)

    # What is computed

    def open(self) -> list[str]:
        """The batches that are not done, the oldest first."""
        names = []
        for one in sorted(self.store.list("open/"), key=lambda one: one.modified):
            if self.is_there(name := one.key.rpartition("/")[2]):
                names.append(name)
            elif time.time() - (self.maybe(one.key) or 0) > ABANDONED_S:  # who made it died
                self.store.delete(one.key)
        for kept in (self.counts, self.seen):
            for ended in set(kept).difference(names):
                kept.pop(ended, None)
        return names

    def claim(self, name: str) -> int | None:
        """A chunk that nobody computes, claimed for `CLAIM_S` seconds; None where there is none."""
        there = {int(one.key.rpartition("/")[2]) for one in self.store.list(f"batches/{name}/parts/")}
        for number in range(self.read(f"batches/{name}/batch.json", "batch", name)["chunks"]):
            if number in there:
                continue
            if self.create(f"batches/{name}/claims/{number}", time.time() + CLAIM_S) or self.take_over(name, number):
                return number
        return None

    def take_over(self, name: str, number: int) -> bool:
        """Claims a chunk whose claim is over; False where it is not."""
        key = f"batches/{name}/claims/{number}"
        try:
            data, etag = self.store.get(key)
        except FileNotFoundError:  # released just now
            return False
        of_batch = self.seen.setdefault(name, {})
        seen, since = of_batch.get(number, (None, 0.0))
        if seen != etag:
            since = time.monotonic()
            of_batch[number] = etag, since
        if json.loads(data) > time.time() and time.monotonic() - since < CLAIM_S:
            return False
        try:
            self.store.replace(key, json.dumps(time.time() + CLAIM_S).encode(), etag)
        except Changed:
            return False
        return True

    def renew(self, name: str, number: int) -> None:
        self.write(f"batches/{name}/claims/{number}", time.time() + CLAIM_S)

    def release(self, name: str, number: int) -> None:
        """Another replica may have the chunk at once."""
        self.store.delete(f"batches/{name}/claims/{number}")

    def chunk(self, name: str, number: int) -> list[Line]:
        return [Line(*one) for one in self.read(f"batches/{name}/chunks/{number}", "chunk", str(number))]

    def put_answers(self, name: str, number: int, answered: Answered) -> None:
        """Keeps the answers to a chunk, unless it has some."""
        with suppress(Exists):
            self.store.create(f"batches/{name}/parts/{number}", answered.to_bytes())

    def counted(self, name: str) -> tuple[int, int]:
        """How many requests have an answer, and how many an error."""
        good = bad = 0
        counts = self.counts.setdefault(name, {})
        for entry in self.store.list(f"batches/{name}/parts/"):
            number = int(entry.key.rpartition("/")[2])
            if number not in counts:
                answered = Answered.from_bytes(self.store.get(entry.key)[0])
                counts[number] = (len(answered.output), len(answered.errors))
            good, bad = good + counts[number][0], bad + counts[number][1]
        return good, bad

    def finish(self, name: str) -> bool:
        """Ends a batch whose every chunk has answers. Any replica may do it, and all would write the same."""
        asked = self.read(f"batches/{name}/batch.json", "batch", name)
        good, bad = self.counted(name)
        if good + bad < asked["lines"]:
            return False
        done: dict[str, Any] = {"counts": [good, bad], "at": int(time.time())}
        done["status"] = "cancelled" if self.maybe(f"batches/{name}/cancelled") else "completed"
        for kind, key, count in (("output", "output", good), ("errors", "error", bad)):
            if count:
                size = sum(map(len, self.answers(name, kind)))
                made = f"file-{kind}-{name.removeprefix('batch_')}"
                described = self.describe(made, f"{name}_{kind}.jsonl", "batch_output", size)
                self.write(f"files/{made}.json", {**described, "batch": name, "kind": kind})
                done[key] = made
        self.create(f"batches/{name}/done.json", done)
        self.store.delete(f"open/{name}")
        return True

    def answers(self, name: str, kind: str) -> Iterator[bytes]:
        """The lines of a batch's answers, or of its errors, a chunk's at once."""
        for number in range(self.read(f"batches/{name}/batch.json", "batch", name)["chunks"]):
            answered = Answered.from_bytes(self.store.get(f"batches/{name}/parts/{number}")[0])
            if lines := answered.output if kind == "output" else answered.errors:
                yield "\n".join([*lines, ""]).encode()

    # JSON in the store

    def read(self, key: str, what: str, name: str) -> Any:
        """Raises NotFound."""
        found = self.maybe(key)
        if found is None:
            raise NotFound(f"no {what} {name[:64]!r}", field=f"{what}_id")
        return found

    def maybe(self, key: str) -> Any:
        try:
            return json.loads(self.store.get(key)[0])
        except FileNotFoundError:
            return None

    def write(self, key: str, value: Any) -> None:
        self.store.put(key, json.dumps(value).encode())

    def create(self, key: str, value: Any) -> bool:
        try:
            self.store.create(key, json.dumps(value).encode())
        except Exists:
            return False
        return True


def request_of(text: bytes, endpoint: str, limits: LimitsSection) -> Line:
    """A line's request. Raises Invalid or TooLarge for what no request can be; the rest is checked when it is
    computed.
    """
    if len(text) > (most := ESCAPED * limits.body_bytes + ENVELOPE):
        raise TooLarge(f"the line has more than {most} bytes, which is the most")
    try:
        check_parts(text)
        value = Parser(limits.json_depth + 1).parse(text)
    except Invalid as error:  # of the whole line, if it is of the "body"
        raise error if error.field != "body" else Invalid(None, error.message) from None
    if not isinstance(value, dict) or not isinstance(value.get("body"), dict):
        raise Invalid(None, "expected a JSON object with custom_id, method, url and body")
    if not isinstance(value.get("custom_id"), str):
        raise Invalid("custom_id", "expected a string")
    if value.get("method") != "POST":
        raise Invalid("method", "expected POST")
    if value.get("url") != endpoint:
        raise Invalid("url", f"expected the batch's endpoint, {endpoint}")
    return Line(value["custom_id"], value["body"])


def shelf_of(settings: ServeSettings) -> Shelf | None:
    """Where the settings keep files and batches. Raises UserError for an address that is none."""
    kept = settings.batches
    if kept.folder is None:
        return None
    store = open_store(kept.folder, at_least_once=scheme_of(kept.folder) not in STORES)
    return Shelf(store, kept.lines)


def check_shelf(settings: ServeSettings) -> None:
    """Raises UserError where the settings name a folder that cannot be written."""
    try:
        if (shelf := shelf_of(settings)) is not None:
            shelf.store.probe()
    except UserError as error:
        raise UserError(f"batches.folder: {error}") from None


def checked_name(name: str) -> str:
    """A name that leads nowhere else. Raises NotFound."""
    if len(name) > LONGEST_NAME or not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise NotFound(f"no file or batch {name[:64]!r}", field="id")
    return name


def public(described: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in described.items() if key not in ("batch", "kind")}


def purpose_of(file: str) -> str:
    """The purpose of a file of this name."""
    return "batch_output" if file.startswith(("file-output-", "file-errors-")) else "batch"


def wrong(line: int | None, code: str, message: str) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": None}
