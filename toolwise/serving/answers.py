"""Which of what the model writes is the answer, told as early as it is certain."""

from __future__ import annotations

from toolwise.agent import Rollout

_OPEN, _CLOSE = "<answer>", "</answer>"


class AnswerReader:
    """Reads turns in pieces and says which text is the answer, as soon as that is certain.

    The answer is what stands in the turn's first `<answer>`, without the white space around it.
    """

    def __init__(self) -> None:
        self._held = ""
        self._inside = self._after = self._begun = False

    @property
    def found(self) -> bool:
        """Whether the turn has an answer so far."""
        return self._inside or self._after

    def read(self, text: str) -> str:
        """Take the next piece of the turn; returns what more of the answer is known."""
        if self._after:
            return ""
        self._held += text
        if not self._inside:
            _, tag, rest = self._held.partition(_OPEN)
            if not tag:
                return ""
            self._inside, self._held = True, rest
        known, tag, _ = self._held.partition(_CLOSE)
        if tag:
            self._after, self._held = True, ""
        else:
            partial = range(min(len(_CLOSE) - 1, len(known)), 0, -1)
            tail = next((n for n in partial if _CLOSE.startswith(known[-n:])), 0)
            known = known[: len(known) - tail]
        sent = known.rstrip()
        if not tag:
            self._held = self._held[len(sent) :]
        if not self._begun:
            sent = sent.lstrip()
            self._begun = bool(sent)
        return sent


def answer_text(rollout: Rollout) -> str:
    """What the last turn's `<answer>` says; the whole turn where there is none."""
    if rollout.answer is not None:
        return rollout.answer
    text = rollout.messages[-1]["content"] or ""
    reader = AnswerReader()
    answer = reader.read(text)
    return answer if reader.found else text
