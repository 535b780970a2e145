"""One question to a server that answers as OpenAI's chat completions do, asked again while the server is busy."""

import email.utils
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.text.duration import duration
from xlmr_ray.train.judge.job import JudgeSection

REFUSED = (400, 413, 422)  # about one document: too long, or what the server will not read
BUSY = (408, 409, 425, 429)


class Busy(Exception):
    """The server could not answer now; it asks to wait for so many seconds, if it says."""

    def __init__(self, what: str, wait: float | None) -> None:
        super().__init__(what)
        self.wait = wait


class Stopped(Exception):
    """Nothing more is asked."""


@dataclass(frozen=True)
class JudgeAnswer:
    """What came back: a `text`, or the status with which this document was refused; and what it cost in tokens."""

    text: str | None
    refused: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, eq=False)
class Judge:
    """A server, for several threads at once. `stop` ends all waiting."""

    section: JudgeSection
    client: httpx.Client
    stop: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(cls, section: JudgeSection) -> "Judge":
        """Raises UserError where the variable with the key is not set."""
        headers = {}
        if section.api_key_env is not None:
            key = os.environ.get(section.api_key_env)
            if not key:
                raise UserError(f"judge.api_key_env: the environment variable {section.api_key_env} is not set")
            if not key.isascii() or not key.isprintable():
                raise UserError(f"judge.api_key_env: {section.api_key_env} holds characters that no key has")
            headers["Authorization"] = f"Bearer {key}"
        limits = httpx.Limits(max_connections=section.concurrency)
        return cls(section, httpx.Client(headers=headers, timeout=section.timeout, limits=limits))

    def ask(self, prompt: str) -> JudgeAnswer:
        """Raises JobFailed where the server answers nothing of use for long, or refuses all; Stopped."""
        retrying = Retrying(
            retry=retry_if_exception_type(Busy),
            wait=waiting,
            stop=stop_before_delay(self.section.patience),
            sleep=self.sleep,
            reraise=True,
        )
        try:
            return retrying(self.once, prompt)
        except Busy as error:
            asked = f", which asks to wait for {duration(error.wait)}" if error.wait else ""
            raise JobFailed(
                f"{self.section.url}: {error}{asked}; it was asked for {self.section.patience:g} s (judge.patience)"
            ) from None

    def sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Stopped

    def once(self, prompt: str) -> JudgeAnswer:
        if self.stop.is_set():
            raise Stopped
        section = self.section
        body = {**section.options, "model": section.model, "messages": [{"role": "user", "content": prompt}]}
        try:
            reply = self.client.post(f"{section.url}/chat/completions", json=body)
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Busy(f"no answer ({type(error).__name__})", None) from None
        if reply.status_code in REFUSED:
            return JudgeAnswer(None, refused=reply.status_code)
        if reply.status_code in BUSY or reply.status_code >= 500:
            raise Busy(f"status {reply.status_code}", retry_after(reply.headers.get("retry-after")))
        if reply.status_code != 200:
            # Not the server's own words, which may hold the document's.
            hint = {401: "; is the key right (judge.api_key_env)?", 403: "; may the key do this?"}
            where = hint.get(reply.status_code, "; are judge.url and judge.model right?")
            raise JobFailed(f"{section.url}: status {reply.status_code}{where}")
        try:
            content = reply.json()
            text = content["choices"][0]["message"]["content"]
            usage = content.get("usage") or {}
            counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise JobFailed(f"{section.url}: the answer is no chat completion; is judge.url right?") from None
        return JudgeAnswer(text if isinstance(text, str) else "", None, *counts)


def waiting(state: RetryCallState) -> float:
    """As long as the server asks, and some more, so that not all come back at once; else longer from time to time."""
    error = state.outcome.exception() if state.outcome else None
    random: float = wait_random_exponential(multiplier=0.5, max=30)(state)
    return random if not isinstance(error, Busy) or error.wait is None else error.wait + min(random, 1.0)


def retry_after(value: Any) -> float | None:
    """Seconds of a Retry-After header, which has seconds or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
