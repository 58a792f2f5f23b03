"""A vLLM server as a source of tokens, by the endpoints TRL's client trains against.

`/v1/completions` continues token ids. Where there are images it cannot be given them: they go to
`/v1/chat/completions/render` first, and the features that come back go with the token ids to
`/inference/v1/generate` (from vLLM 0.30 on, a server started with `--enable-scale-out`). Start the
server with `--logprobs-mode processed_logprobs`.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, TypeVar

import aiohttp
import orjson
from pydantic import BaseModel, Field, ValidationError

from toolwise.agent.concurrently import concurrently
from toolwise.agent.engine import Sampling
from toolwise.agent.vllm_engine import Sampled, TokenRequest
from toolwise.data import data_uri
from toolwise.errors import BackendError
from toolwise.retry import TransientFault, request_endpoint, retry_after

CONCURRENCY = 64
"""Requests in flight; the server batches them itself."""

_FINAL_ONLY = 2  # vLLM's output kind; the default drops part of what was sampled
_SUPPRESSED = -100.0  # what the OpenAI protocol takes for never


class _Model(BaseModel):
    id: str
    max_model_len: int


class _Models(BaseModel):
    data: list[_Model] = Field(min_length=1)


class _Rendered(BaseModel):
    features: dict[str, Any]


class _Logprob(BaseModel):
    logprob: float | None


class _Logprobs(BaseModel):
    """Of `/v1/completions` the one list, of `/inference/v1/generate` the other."""

    token_logprobs: list[float | None] | None = None
    content: list[_Logprob] | None = None

    def values(self) -> list[float]:
        found = self.token_logprobs
        if found is None:
            found = [entry.logprob for entry in self.content or ()]
        return [math.nan if value is None else value for value in found]


class _Choice(BaseModel):
    token_ids: list[int] = Field(min_length=1)
    logprobs: _Logprobs


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1, max_length=1)


Reply = TypeVar("Reply", bound=BaseModel)


class VLLMServer:
    """Continues prompts on a server (see `toolwise.agent.vllm_engine.TokenSource`).

    Args:
        base_url: without `/v1`, as `vllm_server_base_url` of TRL.
        timeout: seconds one request may take; failures are retried with backoff.
    """

    def __init__(self, base_url: str, timeout: float = 600.0) -> None:
        self.name = f"vLLM at {base_url}"
        self._base_url = base_url.rstrip("/")
        self._timeout = timeout
        self._model: _Model | None = None

    async def context(self) -> int:
        """Tokens the served model reads and writes at most."""
        async with self._session() as session:
            return (await self._served(session)).max_model_len

    async def sample(
        self,
        requests: Sequence[TokenRequest],
        sampling: Sampling,
        *,
        end_id: int,
        image_id: int,
        suppressed_ids: Sequence[int],
    ) -> list[Sampled]:
        """One continuation each, in order, sent concurrently; see `TokenSource`.

        Raises:
            BackendError: the server could not be reached, kept failing, or makes no sense.
        """
        shared = {
            "n": 1,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # What the model's own generation_config would set otherwise.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": [end_id],
            "logit_bias": {str(token): _SUPPRESSED for token in suppressed_ids},
        }
        features: dict[tuple[bytes, ...], asyncio.Task[dict[str, Any]]] = {}
        async with self._session() as session:
            model = (await self._served(session)).id

            async def one(request: TokenRequest) -> Sampled:
                own = {"max_tokens": request.max_tokens, "seed": request.seed}
                if not request.images:
                    body = {"prompt": list(request.ids), "return_token_ids": True}
                    body |= {"model": model, "logprobs": 0, **shared, **own}
                    return await self._sample(session, "/v1/completions", body)
                # A group's rollouts begin with the same images.
                if request.images not in features:
                    rendering = self._features(session, model, request.images)
                    features[request.images] = asyncio.create_task(rendering)
                body = {
                    "request_id": f"toolwise-{uuid.uuid4().hex}",
                    "model": model,
                    "token_ids": list(request.ids),
                    "features": self._placed(await features[request.images], request.ids, image_id),
                    "sampling_params": {
                        **shared,
                        **own,
                        "logprobs": 0,
                        "output_kind": _FINAL_ONLY,
                    },
                }
                return await self._sample(session, "/inference/v1/generate", body)

            return await concurrently(one, requests, CONCURRENCY)

    async def _served(self, session: aiohttp.ClientSession) -> _Model:
        if self._model is None:
            self._model = (await self._ask(session, "/v1/models", None, _Models)).data[0]
        return self._model

    async def _features(
        self, session: aiohttp.ClientSession, model: str, images: Sequence[bytes]
    ) -> dict[str, Any]:
        parts = [{"type": "image_url", "image_url": {"url": data_uri(image)}} for image in images]
        body = {
            "model": model,
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": 1,
        }
        rendered = await self._ask(session, "/v1/chat/completions/render", body, _Rendered)
        return rendered.features

    def _placed(
        self, features: dict[str, Any], ids: Sequence[int], image_id: int
    ) -> dict[str, Any]:
        """Features that say where the images stand in `ids`, not in what was rendered."""
        places: list[dict[str, int]] = []
        for position, token in enumerate(ids):
            if token != image_id:
                continue
            if position and ids[position - 1] == image_id:
                places[-1]["length"] += 1
            else:
                places.append({"offset": position, "length": 1})
        lengths = [place["length"] for place in features["mm_placeholders"]["image"]]
        if lengths != [place["length"] for place in places]:
            raise BackendError(
                f"{self.name} makes {lengths} tokens of the images where the prompt holds "
                f"{[place['length'] for place in places]}: its processor is another one"
            )
        return {**features, "mm_placeholders": {**features["mm_placeholders"], "image": places}}

    async def _sample(
        self, session: aiohttp.ClientSession, path: str, body: dict[str, Any]
    ) -> Sampled:
        choice = (await self._ask(session, path, body, _Completion)).choices[0]
        logprobs = choice.logprobs.values()
        if len(logprobs) != len(choice.token_ids):
            raise BackendError(
                f"{self.name} answers {len(choice.token_ids)} tokens with {len(logprobs)} "
                "log-probabilities"
            )
        return Sampled(tuple(choice.token_ids), tuple(logprobs))

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        path: str,
        body: dict[str, Any] | None,
        reply_type: type[Reply],
    ) -> Reply:
        """POST `body`, or GET without one, with retries."""
        content = None if body is None else orjson.dumps(body)
        reply = await request_endpoint(lambda: self._request(session, path, content), self.name)
        try:
            return reply_type.model_validate_json(reply)
        except ValidationError as error:
            raise BackendError(f"{self.name}{path} answers something else: {error}") from None

    async def _request(
        self, session: aiohttp.ClientSession, path: str, content: bytes | None
    ) -> bytes:
        method = "GET" if content is None else "POST"
        try:
            async with session.request(method, self._base_url + path, data=content) as response:
                reply = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TransientFault(f"{type(error).__name__}: {error}") from error
        if response.status == HTTPStatus.OK:
            return reply
        fault = f"{path}: HTTP {response.status}: {reply[:500].decode(errors='replace')}"
        passing = response.status == HTTPStatus.TOO_MANY_REQUESTS
        if passing or response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise TransientFault(fault, retry_after(response.headers.get("Retry-After")))
        raise BackendError(f"{self.name} failed: {fault}")

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers={"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            connector=aiohttp.TCPConnector(limit=0),
        )
