"""A conversation as tokens, as engines keep it that know the tokens they sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from toolwise.agent.engine import Sampling, TokenRecord, Turn
from toolwise.agent.rendering import Rendered, Renderer


@dataclass(slots=True, eq=False)
class Conversation:
    """A token record that grows, by what it is given and by what the model writes."""

    prompt_ids: list[int]
    images: list[bytes]
    prompt_images: int = field(init=False)
    completion_ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt_images = len(self.images)

    def give(self, results: Rendered) -> None:
        """Add tool results."""
        self.images += results.images
        self._extend(results.ids, [0.0] * len(results.ids), wrote=False)

    def write(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Add what the model wrote."""
        self._extend(ids, logprobs, wrote=True)

    def record(self) -> TokenRecord:
        """What a trainer learns from."""
        return TokenRecord(
            tuple(self.prompt_ids),
            tuple(self.completion_ids),
            tuple(self.mask),
            tuple(self.logprobs),
            tuple(self.images),
            self.prompt_images,
        )

    def _extend(self, ids: Sequence[int], logprobs: Sequence[float], *, wrote: bool) -> None:
        self.completion_ids += ids
        self.logprobs += logprobs
        self.mask += [int(wrote)] * len(ids)


def turn_of(
    ids: Sequence[int],
    logprobs: Sequence[float],
    renderer: Renderer,
    sampling: Sampling,
    *,
    prompt_tokens: int,
    seconds: float,
) -> Turn:
    """The turn these tokens make.

    Args:
        ids: what the model wrote, with the end marker unless it was cut before.
        logprobs: of each, under the sampling distribution.
        renderer: decodes them.
        sampling: its `stop` strings end the text.
        prompt_tokens, seconds: as in `Turn`.
    """
    ended = ids[-1] == renderer.end_id
    text = renderer.tokenizer.decode(list(ids[:-1] if ended else ids))
    cut = min((text.find(stop) for stop in sampling.stop if stop in text), default=None)
    return Turn(
        text=text if cut is None else text[:cut],
        finish_reason="stop" if ended or cut is not None else "length",
        prompt_tokens=prompt_tokens,
        completion_tokens=len(ids),
        token_ids=tuple(ids),
        logprobs=tuple(logprobs),
        seconds=seconds,
    )
