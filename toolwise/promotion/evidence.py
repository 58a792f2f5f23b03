"""What an evaluation must bring along before the gate takes its scores for evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from toolwise.errors import InputError
from toolwise.evaluation.comparability import (
    SHOWN,
    AnswerSettings,
    Measurement,
    unlike,
    version_of_metrics,
)
from toolwise.evaluation.metrics import METRIC_VERSION, RolloutScore, read_scores
from toolwise.promotion.policy import GatePolicy


class _Facts(Measurement):
    """What `metrics.json` says of these; see `Evaluation`."""

    checkpoint: str | None = None
    model: dict[str, str] | None = None
    items: int | None = None
    sources: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A checkpoint's scores, and what they were measured on and by.

    What an evaluation does not say is None, which makes it no evidence.

    Args:
        scores: one per answer.
        benchmark: digest of the items.
        metric_version: of the definitions of what is scored.
        items: how many there are to answer.
        sources: benchmark name → its items.
        checkpoint: digest of the model that answered; of a served one its name and address.
        model: name and address of a served one; None of a checkpoint that was loaded.
        settings: how the answers were given.
        corpus: digest of the texts that were searched, where they were a file.
    """

    scores: Sequence[RolloutScore]
    benchmark: str | None
    metric_version: int | None
    items: int | None
    sources: Mapping[str, int] | None
    checkpoint: str | None = None
    model: Mapping[str, str] | None = None
    settings: AnswerSettings = field(default_factory=AnswerSettings)
    corpus: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """The evaluation that `toolwise.evaluation.runner.evaluate` wrote to `folder`.

        Raises:
            InputError: a file is missing or is none of the runner's; names it.
        """
        path = folder / "metrics.json"
        try:
            facts = _Facts.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(f"{path}: not the metrics of an evaluation: {error}") from None
        return cls(scores=read_scores(folder / "scores.jsonl"), **dict(facts))

    def faults(self, policy: GatePolicy) -> Iterator[str]:
        """Why it is no evidence under `policy`, in words; nothing where it is."""
        if self.benchmark is None:
            yield "the evaluation does not say which items were answered (no benchmark digest)"
        elif policy.dataset and not self.benchmark.startswith(policy.dataset):
            yield (
                f"measured on the items {self.benchmark[:SHOWN]}, and the policy takes those of "
                f"{policy.dataset[:SHOWN]} only"
            )
        if self.metric_version != METRIC_VERSION:
            version = version_of_metrics(self.metric_version)
            yield f"measured by {version}, and this is {METRIC_VERSION}"
        answered = len({row.task_id for row in self.scores})
        if self.items is None:
            yield "the evaluation does not say how many items there were to answer"
        elif answered != self.items:
            yield f"{answered} items have scores, and {self.items} were to be answered"
        yield from self._miscounted(policy)
        for name in policy.benchmarks:
            found = (self.sources or {}).get(name, 0)
            if not found:
                known = ", ".join(sorted(self.sources or {})) or "none is named"
                yield f"the benchmark {name} is missing (answered: {known})"
            elif found < policy.min_items:
                yield (
                    f"{found} items of the benchmark {name} are too few; the policy asks for "
                    f"{policy.min_items}"
                )

    def unlike(self, other: Evaluation, policy: GatePolicy) -> str | None:
        """Why the two cannot be compared item by item, in words; None where they can."""
        return "; ".join(unlike(other, self, policy.mode)) or None

    def _miscounted(self, policy: GatePolicy) -> Iterator[str]:
        """Items with more or fewer answers than the settings say were to be given."""
        wanted = {"tools_off": self.settings.counterfactual_samples}
        if policy.mode == "sampled":
            wanted["sampled"] = self.settings.samples
        given = Counter((row.task_id, row.mode) for row in self.scores)
        for mode, number in wanted.items():
            if number is None:
                yield f"the evaluation does not say how many {mode} answers there were to be"
                continue
            wrong = {i: n for (i, m), n in given.items() if m == mode and n != number}
            if wrong:
                first = min(wrong)
                yield (
                    f"{len(wrong)} items do not have the {number} {mode} answers that the settings "
                    f"ask for (first: {first}, which has {wrong[first]})"
                )
