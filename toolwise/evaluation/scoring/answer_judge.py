"""The judge of open answers, behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import re
from pathlib import Path

from toolwise.judge.endpoint import EndpointSettings, JudgeEndpoint

ANYTHING = r".*\S.*"
THOUGHT = "</think>"
"""What ends the reasoning of models that write it into their reply."""


class LlmAnswerJudge:
    """An `AnswerJudge` that asks a served model, and never twice the same.

    Args:
        settings: where it is.
        cache: file of earlier replies, which a rerun takes them from.

    Raises:
        InputError: `cache` cannot be read or written.
    """

    def __init__(self, settings: EndpointSettings, cache: Path | None = None) -> None:
        self._endpoint = JudgeEndpoint(settings, cache)
        self.name = self._endpoint.name

    def __call__(self, prompt: str, form: str = ANYTHING) -> str:
        """The model's reply, stripped; see `AnswerJudge`."""

        def read(reply: str) -> str:
            reply = reply.rpartition(THOUGHT)[2]
            if not re.fullmatch(form, reply, re.DOTALL):
                raise ValueError(f"a reply that does not have the form {form!r}: {reply[:200]!r}")
            return reply.strip()

        return self._endpoint.ask([{"role": "user", "content": prompt}], read)
