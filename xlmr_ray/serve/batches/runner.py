"""Computes the batches of a shelf, a chunk at a time: each request goes through the application's own routes, in the
queue behind all that somebody waits for.
"""

import asyncio
import json
import logging
import uuid
from contextlib import suppress

from starlette.types import ASGIApp, Message, Scope

from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.serve.batches.shelf import CLAIM_S, Answered, Line, Shelf
from xlmr_ray.serve.logs import log_failure
from xlmr_ray.serve.requests import BACKGROUND, Unavailable
from xlmr_ray.serve.service import Service

log = logging.getLogger(__name__)

AT_ONCE = 8  # requests that are tokenized, or wait for the engine
LOOK_S = 2.0  # how often it is looked for what others were asked


class BatchRunner:
    """Of one replica. `woken` where a batch was made or cancelled here."""

    def __init__(self, app: ASGIApp, service: Service, shelf: Shelf) -> None:
        self.app, self.service, self.shelf = app, service, shelf
        self.woken = asyncio.Event()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                busy = self.service.ready and not self.service.closing and await self.step()
            except Exception as error:  # the store is away for a while: what is not done is done later
                tell("batches", error)
                busy = False
            if not busy:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.woken.wait(), LOOK_S)
                self.woken.clear()

    async def step(self) -> bool:
        """Computes a chunk, or ends a batch; False where there was none. What fails in one batch holds up no other."""
        for name in await asyncio.to_thread(self.shelf.open):
            try:
                if await self.advance(name):
                    return True
            except Exception as error:
                first = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
                tell(f"batch {name}", first)
        return False

    async def advance(self, name: str) -> bool:
        batch = await asyncio.to_thread(self.shelf.batch, name)
        number = await asyncio.to_thread(self.shelf.claim, name)
        if number is None:
            return await asyncio.to_thread(self.shelf.finish, name)
        await self.chunk(name, number, batch["endpoint"], cancelled=batch["status"] == "cancelling")
        return True

    async def chunk(self, name: str, number: int, endpoint: str, *, cancelled: bool) -> None:
        renewing = asyncio.create_task(self.renewed(name, number))
        room = asyncio.Semaphore(AT_ONCE)

        async def one(line: Line) -> tuple[bool, str]:
            async with room:
                return await self.answer(line, endpoint)

        try:
            lines = await asyncio.to_thread(self.shelf.chunk, name, number)
            if cancelled:
                found = [(False, not_run(line)) for line in lines]
            else:
                async with asyncio.TaskGroup() as group:  # one that fails ends the others: all are computed again
                    answers = [group.create_task(one(line)) for line in lines]
                found = [answer.result() for answer in answers]
            answered = Answered([text for good, text in found if good], [text for good, text in found if not good])
            await asyncio.to_thread(self.shelf.put_answers, name, number, answered)
        except BaseException:
            with suppress(Exception):  # where the store is away, too, another one waits for its time
                await asyncio.to_thread(self.shelf.release, name, number)
            raise
        finally:
            renewing.cancel()

    async def renewed(self, name: str, number: int) -> None:
        while True:
            await asyncio.sleep(CLAIM_S / 3)
            try:
                await asyncio.to_thread(self.shelf.renew, name, number)
            except Exception as error:
                tell(f"batch {name}", error)

    async def answer(self, line: Line, endpoint: str) -> tuple[bool, str]:
        """Whether the request was answered, and its line."""
        # As small as the caller may have sent it: escaped, a text of another script would be more than `body_bytes`.
        # What is not Unicode, in batches from before it was refused, is one line's error.
        given = json.dumps(line.body, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")
        status, body = await post(self.app, endpoint, given)
        if status in (429, 503):  # says nothing of the request: the service ends, or its engine has
            raise Unavailable(f"a request of a batch was answered {status}")
        # Numbers go in as they stand: to read and write a million of them would hold up the event loop. In other texts
        # may be what some clients take for the end of a line.
        text = body.decode() if body.isascii() else json.dumps(json.loads(body))
        response = f'{{"status_code": {status}, "request_id": "{uuid.uuid4().hex}", "body": {text}}}'
        return status < 400, answer_line(line, response=response)


def tell(what: str, error: BaseException) -> None:
    """Logs a failure, that of a store in its own words."""
    if isinstance(error, JobFailed | UserError):
        log.error("%s: %s", what, error)
    else:
        log_failure(log, what, error)


def answer_line(line: Line, *, response: str = "null", error: str = "null") -> str:
    """A line of the answers, as OpenAI's have it, of a response or an error in JSON."""
    head = json.dumps({"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": line.custom_id})
    return f'{head[:-1]}, "response": {response}, "error": {error}}}'


def not_run(line: Line) -> str:
    error = {"code": "batch_cancelled", "message": "the batch was cancelled before this request ran"}
    return answer_line(line, error=json.dumps(error))


async def post(app: ASGIApp, path: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of the application's answer to a POST."""
    status = 500
    parts: list[bytes] = []
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": None,
        "server": None,
        BACKGROUND: True,
    }
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            await asyncio.Event().wait()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, b"".join(parts)
