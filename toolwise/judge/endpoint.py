"""A model that judges, behind an OpenAI-compatible endpoint, and the replies it gave before."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import openai
from openai.types import CompletionUsage
from pydantic import BaseModel, ConfigDict, Field

from toolwise.errors import BackendError, InputError
from toolwise.judge.spend import Bill, Budget, BudgetSpent, Usage
from toolwise.retry import call_endpoint

REPLY_TOKENS = 8192
"""Of one reply; models that reason do it within them."""

T = TypeVar("T")


class EndpointSettings(BaseModel):
    """Where a judge is and how it is asked.

    Args:
        base_url: up to and including `/v1`.
        model: name the server knows it by.
        api_key_env: environment variable that holds the key.
        timeout: seconds one request may take.
        concurrency: requests in flight.
        budget: most a run may spend on it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    timeout: float = Field(120.0, gt=0)
    concurrency: int = Field(8, ge=1)
    budget: Budget = Budget()


class JudgeEndpoint:
    """Asks the judge, and never twice the same.

    Args:
        settings: where it is.
        cache: file of earlier replies, added to as they come; without it every question is asked.
        bill: file of what was paid so far, which the budget counts too.

    Raises:
        InputError: `cache` cannot be read or written.
    """

    def __init__(
        self, settings: EndpointSettings, cache: Path | None = None, bill: Path | None = None
    ) -> None:
        self.settings = settings
        self.bill = Bill(settings.budget, bill)
        self.remembered = 0
        """Replies that came from the cache."""
        self.name = f"judge {settings.model} at {settings.base_url}"
        self._cache = None if cache is None else ReplyCache(cache)
        key = os.environ.get(settings.api_key_env) or "none"
        self._client = openai.OpenAI(
            base_url=settings.base_url, api_key=key, timeout=settings.timeout, max_retries=0
        )

    def ask(
        self,
        messages: list[dict[str, Any]],
        read: Callable[[str], T],
        response_format: dict[str, Any] | None = None,
    ) -> T:
        """What `read` makes of the judge's reply to `messages`; several threads may call this.

        Args:
            messages: the conversation, OpenAI-style.
            read: takes the reply's text; raises `ValueError` where it is not what was asked for.
            response_format: the form a server that knows of it makes the reply take.

        Raises:
            BackendError: no reply that can be read after the last attempt, or the request is
                refused. Only replies that were read are kept.
            BudgetSpent: the budget is reached; replies from the cache still come.
            InputError: there is a limit, and the server does not say what a reply took.
        """
        asked: dict[str, Any] = {"model": self.settings.model, "messages": messages}
        if response_format is not None:
            asked["response_format"] = response_format
        known = None if self._cache is None else self._cache.get(asked)
        if known is not None:
            with contextlib.suppress(ValueError):
                answer = read(known)
                self.remembered += 1
                return answer

        def request() -> tuple[str, T]:
            self.bill.admit()
            reply = self._client.chat.completions.create(
                **asked, temperature=0, max_tokens=REPLY_TOKENS
            )
            self._pay(reply.usage)
            if not reply.choices:
                raise BackendError("a reply without a choice")
            text = reply.choices[0].message.content or ""
            return text, read(text)

        try:
            text, answer = call_endpoint(request, self.name, _transient)
        except openai.OpenAIError as error:
            raise BackendError(f"{self.name} failed: {error}") from error
        if self._cache is not None:
            self._cache.put(asked, text)
        return answer

    def _pay(self, usage: CompletionUsage | None) -> None:
        limits = self.settings.budget
        if usage is not None:
            self.bill.pay(Usage(usage.prompt_tokens, usage.completion_tokens))
        elif limits.tokens is not None or limits.cost is not None:
            raise InputError(
                f"{self.name} does not say how many tokens a reply took (`usage`), so that "
                "`budget` cannot be kept; take its limits out, or use another server"
            )


class ReplyCache:
    """Replies by the content of what was asked, a JSON line each.

    A line cut short by a kill is skipped. Several processes may add to one file; each reads what
    was there when it began.

    Args:
        path: the file; made where it is missing.

    Raises:
        InputError: it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._writing = threading.Lock()
        self._replies: dict[str, str] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            self._file.seek(0)
            content = self._file.read()
        except OSError as error:
            raise InputError(
                f"{path}: the judge's replies cannot be kept: {error.strerror}"
            ) from error
        for line in content.split(b"\n"):
            try:
                row = json.loads(line)
                self._replies[row["asked"]] = row["reply"]
            except ValueError:
                continue
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")

    def get(self, asked: Any) -> str | None:
        return self._replies.get(_digest(asked))

    def put(self, asked: Any, reply: str) -> None:
        key = _digest(asked)
        line = json.dumps({"asked": key, "reply": reply}, ensure_ascii=False) + "\n"
        with self._writing:
            self._replies[key] = reply
            self._file.write(line.encode())


def _digest(asked: Any) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _transient(error: Exception) -> bool:
    if isinstance(error, BudgetSpent):
        return False
    if isinstance(error, openai.APIStatusError):
        return error.status_code >= 500 or error.status_code in (408, 409, 429)
    return isinstance(error, openai.APIConnectionError | ValueError | BackendError)
