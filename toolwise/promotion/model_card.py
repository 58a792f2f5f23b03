"""The model card of a registered version, in Markdown: what to know before using the model.

The card is a file of the run that judged the model. The version's description is a short form of
it, because MLflow's database keeps 5000 characters of a description.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from toolwise.evaluation.labels import METRICS, MODE_LABELS
from toolwise.evaluation.metrics import OVERALL, Metric, Summary
from toolwise.markdown import table
from toolwise.promotion.gate import Decision
from toolwise.promotion.lineage import Lineage, Stage

LONGEST_DESCRIPTION = 5000
"""Characters of a description that MLflow's database keeps; PostgreSQL refuses longer ones."""

_SETTINGS = 40
"""Settings shown of a training; the rest is in its run."""


def model_card(
    name: str, lineage: Lineage, metrics: Mapping[str, Any], decision: Decision, source: str
) -> str:
    """Data, training, metrics with intervals, the gate's decision, limits and licence.

    Args:
        name: of the registered model.
        lineage: where it comes from.
        metrics: `metrics.json` of its evaluation.
        decision: the gate's.
        source: where the checkpoint stands.
    """
    parts = [
        *_head(name, lineage, source),
        *_decision(decision),
        *_measured(metrics),
        "## Data",
        _data((lineage.evaluation, *lineage.trainings)),
        "## Training",
        *(_training(stage) for stage in lineage.trainings),
        *([] if lineage.trainings else ["How it was trained is not on record."]),
        "## Limits",
        _list(_limits(metrics, lineage)),
        "## Licence",
        _licence(lineage),
    ]
    return "\n\n".join(parts) + "\n"


def description(
    name: str,
    lineage: Lineage,
    metrics: Mapping[str, Any],
    decision: Decision,
    source: str,
    card: str,
) -> str:
    """The card in at most `LONGEST_DESCRIPTION` characters, without training and limits.

    Whole lines are left out at the end where it would be longer; the metrics come last, for they
    are in MLflow anyway.

    Args:
        name, lineage, metrics, decision, source: as of `model_card`.
        card: address of the whole card.
    """
    parts = [
        *_head(name, lineage, source),
        f"Training and limits are in the whole card, `{card}`.",
        *_decision(decision),
        "## Licence",
        _licence(lineage),
        "## Data",
        _data((lineage.evaluation, *lineage.trainings)),
        *_measured(metrics),
    ]
    text = "\n\n".join(parts) + "\n"
    if len(text) <= LONGEST_DESCRIPTION:
        return text
    cut = "\n\nThe rest is in the whole card.\n"
    kept = text[: LONGEST_DESCRIPTION - len(cut)]
    return kept.rpartition("\n")[0].rstrip() + cut


def _head(name: str, lineage: Lineage, source: str) -> list[str]:
    return [
        f"# {name}",
        "A vision-language model that is to call tools only when it must, trained and measured by "
        "Toolwise.",
        table(
            ("", ""),
            [
                ("checkpoint", f"`{source}`"),
                ("digest", _code(lineage.evaluation.checkpoint)),
                ("profile", name),
                ("pipeline run", _code(lineage.pipeline_run)),
                ("evaluation run", _code(lineage.evaluation.run_id)),
                ("git commit", _code(lineage.evaluation.commit)),
            ],
        ),
    ]


def _decision(decision: Decision) -> list[str]:
    criteria = _list(criterion.why for criterion in decision.criteria)
    return ["## Decision", f"**{decision.decision}**", criteria]


def _measured(metrics: Mapping[str, Any]) -> list[str]:
    return [
        "## Metrics",
        f"{metrics['items']} items, {metrics['solvable']} of which it solves without tools. Values "
        "with 95% intervals; in brackets the number of items or calls they rest on.",
        *(_metrics(MODE_LABELS[mode], metrics[mode]) for mode in MODE_LABELS if mode in metrics),
    ]


def _metrics(title: str, summary: Summary) -> str:
    groups = [OVERALL, *(group for group in summary if group != OVERALL)]
    rows = [
        (look.label, *(_value(summary[group].get(key), look.digits) for group in groups))
        for key, look in METRICS.items()
        if key in summary[OVERALL]
    ]
    return f"**{title}**\n\n" + table(("", *groups), rows)


def _value(metric: Metric | None, digits: int) -> str:
    if metric is None or metric["value"] is None:
        return "–"
    text = f"{metric['value']:.{digits}f}"
    if metric["low"] is not None and metric["high"] is not None:
        text += f" [{metric['low']:.{digits}f}, {metric['high']:.{digits}f}]"
    return f"{text} ({metric['count']})"


def _data(stages: Sequence[Stage]) -> str:
    rows = [
        (stage.name, data.context, data.name, _number(data.rows), _code(data.digest))
        for stage in stages
        for data in stage.data
    ]
    if not rows:
        return "No data is on record."
    return table(("step", "for", "file", "rows", "SHA-256, beginning"), rows)


def _training(stage: Stage) -> str:
    shown = [(key, value) for key, value in sorted(stage.params.items()) if value != "None"]
    rest = len(shown) - _SETTINGS
    more = f"\n\n{rest} more settings are in the run." if rest > 0 else ""
    head = f"**{stage.name}**, run `{stage.run_id}`, commit {_code(stage.commit)}"
    return f"{head}\n\n{table(('setting', 'value'), shown[:_SETTINGS])}{more}"


def _limits(metrics: Mapping[str, Any], lineage: Lineage) -> Iterable[str]:
    k = metrics.get("settings", {}).get("counterfactual_samples")
    yield (
        "The intervals are about items like those of the benchmark, for the one training seed; "
        "another seed trains another model."
    )
    if k:
        yield (
            f"Whether an item needs a tool is estimated from {k} answers without tools; an item "
            f"that is right 95% of the time counts as needing one in {1 - 0.95**k:.0%} of cases."
        )
    abilities = [group for group in metrics.get("greedy", {}) if group != OVERALL]
    if abilities:
        yield (
            f"It was measured on {', '.join(abilities)}, with the tools of its evaluation; what it "
            "does with other questions, other tools or other image sizes is not known."
        )
    if not lineage.trainings:
        yield "Its training data is not on record, so that overlap with the benchmark is unknown."
    yield "Answers can be wrong, also where no tool was called and where a tool was."


def _licence(lineage: Lineage) -> str:
    origin = lineage.trainings[-1] if lineage.trainings else None
    if origin is not None and origin.licence:
        return (
            f"The checkpoint it starts from says: {origin.licence}. Weights trained from it, and "
            "the data they were trained on, may carry further terms."
        )
    if origin is not None and not origin.params.get("checkpoint", "None").removeprefix("None"):
        return (
            "Apache-2.0: the base model was trained from scratch by Toolwise. Data that is not "
            "Toolwise's own may carry further terms."
        )
    return (
        "The checkpoint it starts from does not say. Find out before you pass the weights on or "
        "serve them to others."
    )


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else "not on record"


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
