"""A language model behind an OpenAI-compatible endpoint: retried with backoff, each answer kept on disk.

Only `POST URL/chat/completions` is spoken, with the standard library. Answers are kept by (address, model, question), so that an
interrupted run goes on and a repeated one costs nothing. The key comes from an environment variable and is never written anywhere.
"""

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

from clip_anatomy.errors import BadInput, EndpointError, reading
from clip_anatomy.files import digest
from clip_anatomy.loading.disk_cache import DiskCache, cache_folder
from clip_anatomy.network import TooLargeError, opener, read_bounded

__all__ = ["EndpointError", "LanguageModel", "LlmAnswer", "LlmUsage"]

KEY_VARIABLE = "CLIP_ANATOMY_LLM_KEY"
LARGEST = 8 * 2**20  # bytes of an answer
MOST_TOKENS = 2**40  # of one answer; a server that says more says nothing
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for


class _RetryableError(Exception):
    """This try failed in a way that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class LlmAnswer:
    """One answer of a language model.

    Attributes:
        text: its content.
        raw: the whole response body (JSON).
        tokens_in: tokens of the question, as billed; 0 where the server does not say.
        tokens_out: tokens of the answer.
        cached: taken from disk, so that it cost nothing this time.
    """

    text: str
    raw: str
    tokens_in: int
    tokens_out: int
    cached: bool = False


@dataclass(frozen=True)
class LlmUsage:
    """Tokens and cost of some answers.

    Attributes:
        sent: questions that went out.
        cached: questions answered from disk.
        tokens_in: tokens sent, of those that went out.
        tokens_out: tokens received.
        price: of a million tokens in and out, in whatever currency; None when not known.
    """

    sent: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    price: tuple[float, float] | None = None

    @staticmethod
    def of(answers: Sequence[LlmAnswer], price: tuple[float, float] | None = None) -> "LlmUsage":
        """Add up."""
        paid = [answer for answer in answers if not answer.cached]
        return LlmUsage(
            len(paid),
            len(answers) - len(paid),
            sum(answer.tokens_in for answer in paid),
            sum(answer.tokens_out for answer in paid),
            price,
        )

    @property
    def cost(self) -> float | None:
        """In the currency of the price."""
        if self.price is None:
            return None
        return (self.tokens_in * self.price[0] + self.tokens_out * self.price[1]) / 1e6

    def __str__(self) -> str:
        """Write one line for people."""
        spent = "" if self.cost is None else f", cost {self.cost:.4f}"
        return (
            f"language model: {self.sent} questions asked, {self.cached} answered from disk; "
            f"{self.tokens_in:,} tokens in, {self.tokens_out:,} out{spent}"
        )


@dataclass(frozen=True)
class LanguageModel:
    """An endpoint, the name of a model there, and how long to wait for it.

    Attributes:
        url: address of the API, such as `http://127.0.0.1:8000/v1`.
        name: name of the model there.
        key: sent as a bearer token; by default what $CLIP_ANATOMY_LLM_KEY holds.
        timeout: seconds to wait for one answer.
        tries: how often one question is asked before giving up.
        price: of a million tokens in and out, for the bill.
        cache: where answers are kept.
        sleep: waits between tries.
    """

    url: str
    name: str
    key: str = field(default_factory=lambda: os.environ.get(KEY_VARIABLE, ""), repr=False)
    timeout: float = 60.0
    tries: int = 5
    price: tuple[float, float] | None = None
    cache: DiskCache = field(default_factory=lambda: DiskCache(cache_folder() / "answers.sqlite"))
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        """Refuse addresses and settings that cannot work."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput(
                f"{self.url!r} is no address of a language model. Type, for example: llm='http://127.0.0.1:8000/v1'"
            )
        if not self.name:
            raise BadInput("no model of that endpoint was named. Type: llm_model=NAME")
        if self.timeout <= 0 or self.tries < 1:
            raise BadInput(
                f"timeout={self.timeout}, tries={self.tries}: give more than nothing. Type timeout=60, tries=5"
            )
        if any(c in self.key for c in "\r\n"):
            raise BadInput(f"the key in ${KEY_VARIABLE} holds a line break. Set it to the key alone")

    @property
    def endpoint(self) -> str:
        """The full address."""
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"

    def ask(self, question: str, *, system: str = "", most_tokens: int = 400) -> LlmAnswer:
        """Ask one question, or take the answer from disk.

        Args:
            question: in words.
            system: how to answer.
            most_tokens: of the answer.

        Returns:
            LlmAnswer.

        Raises:
            EndpointError: no usable answer after all tries; says what the server said.
        """
        messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": question}]
        body = {"model": self.name, "messages": messages, "temperature": 0, "max_tokens": most_tokens}
        place = digest(json.dumps([self.endpoint, body], sort_keys=True), size=20)
        if (cached := self.cache.get([place]).get(place)) is not None:
            try:
                return _answer_of(cached.decode(), cached=True)
            except (_RetryableError, UnicodeDecodeError):
                pass  # damaged on disk: ask again
        answer = self._retried(json.dumps(body).encode())
        self.cache.put({place: answer.raw.encode()})
        return answer

    def _retried(self, body: bytes) -> LlmAnswer:
        problem = ""
        for attempt in range(self.tries):
            try:
                return _answer_of(self._post(body), cached=False)
            except _RetryableError as error:
                problem = str(error)
                if attempt + 1 < self.tries:
                    backoff = 2.0**attempt * (0.5 + random.random())
                    self.sleep(min(LONGEST_WAIT, backoff if error.wait is None else error.wait))
        raise EndpointError(
            f"{self.endpoint} gave no usable answer in {self.tries} tries (the last: {problem}). What was answered before is kept: "
            "see that the server runs, and type the same command again"
        )

    def _post(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "clip-anatomy"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        deadline = time.monotonic() + self.timeout
        try:
            http_request = request.Request(self.endpoint, body, headers)
            with opener(self.timeout, _NoRedirect()).open(http_request, timeout=self.timeout) as response:
                raw = read_bounded(response, LARGEST, deadline)
        except TooLargeError:
            raise EndpointError(
                f"{self.endpoint} answered with more than {LARGEST >> 20} MB. Type the address of a chat-completions API"
            ) from None
        except HTTPError as error:
            with error:
                self._refused(error)
            raise _RetryableError(
                f"HTTP {error.code} {error.reason}", _retry_after(error.headers.get("Retry-After"))
            ) from None
        except TimeoutError:
            raise _RetryableError(f"no answer within {self.timeout:g} s") from None
        except (OSError, HTTPException) as error:  # refused, reset, name not found, certificate, cut short
            if isinstance(getattr(error, "reason", None), TimeoutError) or time.monotonic() > deadline:
                raise _RetryableError(f"no answer within {self.timeout:g} s") from None
            raise _RetryableError(f"{getattr(error, 'reason', None) or error or type(error).__name__}") from None
        return raw.decode("utf-8", "replace")

    def _refused(self, error: HTTPError) -> None:
        """Raise EndpointError for what will not pass by waiting."""
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            return
        if 300 <= error.code < 400:
            # Not followed: the key would travel to a place that nobody named.
            raise EndpointError(
                f"{self.endpoint} sends us on to {error.headers.get('Location', '?')}. Type that address, if you trust it"
            )
        reason = " ".join(_body(error).split())[:300]
        if error.code in (401, 403):
            raise EndpointError(
                f"{self.endpoint} refuses the key (HTTP {error.code}: {reason}). Type first: export {KEY_VARIABLE}=..."
            )
        if error.code == 404:
            raise EndpointError(
                f"{self.endpoint} is not there, or has no model {self.name!r} (HTTP 404: {reason}). Type llm='URL/v1', llm_model=NAME"
            )
        raise EndpointError(
            f"{self.endpoint} refuses the question (HTTP {error.code}: {reason}). Type another llm_model="
        )


def language_model(
    llm: LanguageModel | str | None,
    name: str | None = None,
    price: tuple[float, float] | None = None,
    timeout: float = 60.0,
    task: str = "",
) -> LanguageModel | None:
    """Make a language model of what people type; None where they name none.

    Args:
        llm: one, or the address of its API.
        name: of the model there.
        price: of a million tokens in and out.
        timeout: seconds to wait for one answer.
        task: what it is to be asked about, if anything.

    Raises:
        BadInput: an address without a name, or something to ask and nobody to ask it.
    """
    if isinstance(llm, LanguageModel):
        return llm
    if llm is None:
        if name or price or task:
            raise BadInput(
                "a model's name, its price and a task need a language model to ask. Type: llm='http://127.0.0.1:8000/v1', llm_model=NAME"
            )
        return None
    if not name:
        raise BadInput(f"which model at {llm}? Type: llm_model=NAME")
    return LanguageModel(llm, name, timeout=timeout, price=price)


class _NoRedirect(request.HTTPRedirectHandler):
    """Follows no redirect, so that a key is never sent elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuse: the response comes out as an HTTPError."""


def _answer_of(raw: str, *, cached: bool) -> LlmAnswer:
    """Take the words out of a response.

    Raises:
        _RetryableError: it is no chat completion.
    """
    try:
        with reading("an answer", "It is asked for again"):
            body: dict[str, Any] = json.loads(raw)
            text = body["choices"][0]["message"]["content"]
    except BadInput:
        raise _RetryableError(f"not a chat completion: {' '.join(raw.split())[:120]!r}") from None
    if not isinstance(text, str) or not text.strip():
        raise _RetryableError("an empty answer")
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    text = text.encode("utf-8", "replace").decode()  # half a character of UTF-16 stands in no file
    return LlmAnswer(
        text.strip(), raw, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), cached
    )


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) and 0 <= value < MOST_TOKENS else 0


def _retry_after(header: str | None) -> float | None:
    """Return seconds that a Retry-After header asks for: a number, or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _body(error: HTTPError) -> str:
    try:
        return error.read(4096).decode("utf-8", "replace")
    except OSError:
        return ""
