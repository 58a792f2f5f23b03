"""How an endpoint is run: one validated object for the profile, the process and the cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from toolwise.tools.sandbox.contract import Isolation
from toolwise.tools.search.settings import SearchSettings

KEY_VARIABLE = "TOOLWISE_API_KEY"
"""Environment variable with the API key to ask with, for an endpoint that wants one."""


class ServingSettings(BaseModel):
    """Settings of one endpoint.

    Args:
        name: model name clients ask for.
        host: address to listen on.
        port: port to listen on.
        isolation: lowest sandbox isolation accepted for `python`.
        max_turns: assistant turns per request.
        max_tool_calls: tool calls per request; a request may ask for fewer.
        max_tokens: tokens per assistant turn; a request may ask for fewer.
        request_seconds: how long a request may take, and how long a stopping server waits for it.
        concurrency: requests answered at a time.
        queue: requests that may wait for that; further ones are told when to come again.
        keys: YAML file of API keys (`toolwise.serving.keys.ApiKey`); none asks nobody for a key.
        trace_share: share of requests traced in MLflow; with any, failed ones always are.
        private_images: let image URLs point to private and local addresses.
        search: the search tools; as the profile has it (as an option, JSON).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="toolwise", pattern=r"^[\w.-]+$")
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65535)
    isolation: Isolation = Isolation.BUBBLEWRAP
    max_turns: int = Field(default=6, ge=1)
    max_tool_calls: int = Field(default=8, ge=0)
    max_tokens: int = Field(default=512, ge=1)
    request_seconds: int = Field(default=120, ge=1)
    concurrency: int = Field(default=64, ge=1)
    queue: int = Field(default=256, ge=0)
    keys: Path | None = None
    trace_share: float = Field(default=0.0, ge=0, le=1)
    private_images: bool = False
    search: SearchSettings | None = None

    @field_validator("search", mode="before")
    @classmethod
    def _read_option(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    def options(self) -> dict[str, str]:
        """The settings as options of `python -m toolwise.serving`."""
        return {
            "--" + name.replace("_", "-"): value if isinstance(value, str) else json.dumps(value)
            for name, value in self.model_dump(mode="json", exclude_none=True).items()
        }
