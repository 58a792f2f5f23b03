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

SENDING_SECONDS = 5
"""How long a client may take to read the end of an answer that is out of time."""


class ServingSettings(BaseModel):
    """Settings of one endpoint; each field's text is also the help of its option."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(default="toolwise", pattern=r"^[\w.-]+$")
    """Model name that clients ask for."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8080, ge=1, le=65535)
    """Port to listen on."""
    isolation: Isolation = Isolation.BUBBLEWRAP
    """Lowest sandbox isolation accepted for `python`."""
    max_turns: int = Field(default=6, ge=1)
    """Assistant turns per request."""
    max_tool_calls: int = Field(default=8, ge=0)
    """Tool calls per request; a request may ask for fewer."""
    max_tokens: int = Field(default=512, ge=1)
    """Tokens per assistant turn; a request may ask for fewer."""
    max_characters: int = Field(default=2**18, ge=1)
    """Characters of text in the messages of a request."""
    request_seconds: int = Field(default=120, ge=1)
    """Seconds a request may take, and a stopping server waits for it."""
    concurrency: int = Field(default=64, ge=1)
    """Requests answered at a time."""
    queue: int = Field(default=256, ge=0)
    """Requests that may wait to be answered; further ones are refused with a time to retry."""
    keys: Path | None = None
    """YAML file of API keys (`toolwise.serving.keys.ApiKey`); without it no key is needed."""
    trace_share: float = Field(default=0.0, ge=0, le=1)
    """Share of requests traced in MLflow; if it is above 0, every failed request is traced."""
    private_images: bool = False
    """Let image URLs point to private and local addresses."""
    search: SearchSettings | None = None
    """Settings of the search tools, as in the profile; as an option, JSON."""

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
