"""An engine whose model is a function: it reads a conversation and writes the next turn."""

from collections.abc import Callable, Sequence
from typing import Any

from toolwise.agent import Sampling, TokenRecord, Turn
from toolwise.data import Message

Model = Callable[[list[Message], bool, int], str]
"""Conversation, whether tools are offered, position in the batch → text of the next turn."""


class ScriptedEngine:
    """Follows a model function, and remembers the batches it was asked for."""

    def __init__(self, model: Model, name: str = "scripted") -> None:
        self.name = name
        self.max_result_chars = 4096
        self.model = model
        self.batches: list[tuple[int, bool, int | None]] = []
        """Conversations, tools offered, seed."""

    def start(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[dict[str, Any]]
    ) -> "ScriptedBatch":
        return ScriptedBatch(self, [list(c) for c in conversations], bool(tools))


class ScriptedBatch:
    def __init__(
        self, engine: ScriptedEngine, conversations: list[list[Message]], tools: bool
    ) -> None:
        self.engine = engine
        self.conversations = conversations
        self.tools = tools
        self.started = False

    async def generate(self, indices: Sequence[int], sampling: Sampling) -> list[Turn]:
        if not self.started:
            self.engine.batches.append((len(self.conversations), self.tools, sampling.seed))
            self.started = True
        assert sampling.temperature == 1.0
        turns = []
        for index in indices:
            text = self.engine.model(self.conversations[index], self.tools, index)
            self.conversations[index].append({"role": "assistant", "content": text})
            turns.append(Turn(text, "stop", 0, len(text)))
        return turns

    def append(self, index: int, messages: Sequence[Message]) -> None:
        self.conversations[index].extend(messages)

    def tokens(self, index: int) -> TokenRecord:
        raise NotImplementedError


def question_of(conversation: list[Message]) -> str:
    return next(p["text"] for p in conversation[0]["content"] if p["type"] == "text")
