"""A server over real HTTP that speaks the part of vLLM's protocol that trainers use.

It decodes greedily, or by the request's seed, with the tiny model. Fields and shapes are those TRL
1.16's client sends and reads.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from typing import Any

import fastapi
import torch
import uvicorn
from fastapi.responses import JSONResponse
from PIL import Image

from toolwise.agent.rendering import Renderer
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.data import decode_image

CONTEXT = 512


class TokenServer:
    """Runs in a thread; `requests` are paths and bodies it got.

    Args:
        engine: whose model it decodes with.
        failures: so many requests fail first.
        port: where it listens; by default any that is free.
        context: tokens it says it reads and writes at most.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        failures: int = 0,
        *,
        port: int = 0,
        context: int = CONTEXT,
    ) -> None:
        self._context = context
        self._engine = engine
        self._failures = failures
        self._images: dict[str, bytes] = {}
        self._one_at_a_time = threading.Lock()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.forgotten_at: list[int] = []  # how many requests there had been
        app = fastapi.FastAPI()
        app.add_api_route("/health", self._health, methods=["GET"])
        app.add_api_route("/v1/models", self._models, methods=["GET"])
        app.add_api_route("/v1/completions", self._complete, methods=["POST"])
        app.add_api_route("/v1/chat/completions/render", self._render, methods=["POST"])
        app.add_api_route("/inference/v1/generate", self._generate, methods=["POST"])
        app.add_api_route("/reset_encoder_cache", self._forget_images, methods=["POST"])
        self._server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical")
        )
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> TokenServer:
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def _health(self) -> fastapi.Response:
        return fastapi.Response()

    def _models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "/model", "max_model_len": self._context}]}

    def _complete(self, body: dict[str, Any]) -> fastapi.Response:
        if refusal := self._noted("/v1/completions", body):
            return refusal
        if not body["return_token_ids"] or body["logprobs"] != 0:
            return JSONResponse({"error": "token ids were not asked for"}, 400)
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        choices = []
        for prompt in prompts:
            for sample in range(body.get("n", 1)):
                seed = body.get("seed") or len(self.requests) * 1000 + len(choices)
                ids, logprobs = self._decode(prompt, [], {**body, "seed": seed + sample})
                tokens = [f"token_id:{token}" for token in ids]
                scores = {
                    "tokens": tokens,
                    "token_logprobs": logprobs,
                    "top_logprobs": [{token: p} for token, p in zip(tokens, logprobs, strict=True)],
                }
                choices.append({"prompt_token_ids": prompt, "token_ids": ids, "logprobs": scores})
        return JSONResponse({"choices": choices})

    def _render(self, body: dict[str, Any]) -> fastapi.Response:
        if refusal := self._noted("/v1/chat/completions/render", body):
            return refusal
        hashes, places, offset = [], [], 1
        for part in body["messages"][0]["content"]:
            image = base64.b64decode(part["image_url"]["url"].partition(",")[2])
            key = hashlib.sha256(image).hexdigest()
            self._images[key] = image
            t, h, w = Renderer.pixels(self._engine.renderer, image).grid
            length = t * h * w // self._engine.renderer.merge_size**2
            hashes.append(key)
            places.append({"offset": offset, "length": length})
            offset += length + 2
        placeholders = {"image": places}
        features = {"mm_hashes": {"image": hashes}, "mm_placeholders": placeholders}
        return JSONResponse({"features": features})

    def _generate(self, body: dict[str, Any]) -> fastapi.Response:
        if refusal := self._noted("/inference/v1/generate", body):
            return refusal
        features = body["features"]
        ids, image_id = body["token_ids"], self._engine.renderer.image_id
        for place in features["mm_placeholders"]["image"]:
            span = ids[place["offset"] : place["offset"] + place["length"]]
            if span != [image_id] * place["length"]:
                return JSONResponse({"error": "no image stands there"}, 400)
        images = [self._images[key] for key in features["mm_hashes"]["image"]]
        written, logprobs = self._decode(ids, images, body["sampling_params"])
        content = [
            {"token": f"token_id:{token}", "logprob": logprob, "top_logprobs": []}
            for token, logprob in zip(written, logprobs, strict=True)
        ]
        choice = {"token_ids": written, "logprobs": {"content": content}}
        return JSONResponse({"choices": [choice]})

    def _forget_images(self) -> fastapi.Response:
        self.forgotten_at.append(len(self.requests))
        return fastapi.Response()

    def _noted(self, path: str, body: dict[str, Any]) -> fastapi.Response | None:
        self.requests.append((path, body))
        if len(self.requests) <= self._failures:
            return JSONResponse({"error": "overloaded"}, 503)
        return None

    def _decode(
        self, ids: list[int], images: list[bytes], wanted: dict[str, Any]
    ) -> tuple[list[int], list[float]]:
        """A forward pass over everything for each token: slow, and plainly right."""
        generator = torch.Generator().manual_seed(wanted["seed"] or 0)
        written: list[int] = []
        logprobs: list[float] = []
        with self._one_at_a_time, torch.inference_mode():
            vision: dict[str, Any] = {}
            if images:
                views = [decode_image(image) for image in images]
                vision = dict(self._processed(views))
            while len(written) < wanted["max_tokens"]:
                tokens = torch.tensor([[*ids, *written]])
                types = (tokens == self._engine.renderer.image_id).int()
                output = self._engine.model(input_ids=tokens, mm_token_type_ids=types, **vision)
                logits = output.logits[0, -1].float()
                for token, bias in wanted.get("logit_bias", {}).items():
                    logits[int(token)] += bias
                scores = (logits / (wanted["temperature"] or 1)).log_softmax(-1)
                if wanted["temperature"]:
                    token = int(torch.multinomial(scores.exp(), 1, generator=generator))
                else:
                    token = int(scores.argmax())
                written.append(token)
                logprobs.append(float(scores[token]))
                if token in wanted.get("stop_token_ids", [self._engine.renderer.end_id]):
                    break
        return written, logprobs

    def _processed(self, views: list[Image.Image]) -> dict[str, Any]:
        pixels = [
            self._engine.renderer._image_processor(images=[view], return_tensors="pt")
            for view in views
        ]
        return {
            name: torch.cat([entry[name] for entry in pixels])
            for name in ("pixel_values", "image_grid_thw")
        }
