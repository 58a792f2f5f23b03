"""Curation of trajectories for the cold start: keep those that show a tool used because it must.

See docs/curation.md for the filters and for what they do together.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from toolwise.agent import Engine, extract_answer
from toolwise.agent.vllm_process import VLLMSettings
from toolwise.curation.filtering import CORES, Filter, by_rule
from toolwise.curation.judge import PROMPTS, JudgePanel, JudgeSettings, LlmJudge, TrajectoryScores
from toolwise.curation.necessity import ToolNecessity
from toolwise.curation.reexecution import message_text, reexecute
from toolwise.curation.report import CurationReport
from toolwise.curation.rule_judge import judge_by_rules
from toolwise.curation.run import CurationRun, Outcome
from toolwise.curation.verdicts import Verdict
from toolwise.curation.workbench import Inputs, Workbench, open_workbench
from toolwise.data import AnswerType, CorruptImage, Trajectory, grade
from toolwise.data.parquet import Rejects, iterate_trajectories, write_trajectories
from toolwise.errors import InputError
from toolwise.progress import Progress
from toolwise.tools import Tool
from toolwise.tools.sandbox.contract import Isolation
from toolwise.tools.search.settings import SearchSettings

FilterName = Literal["form", "re-execution", "answer", "necessity", "strategic-use"]
FILTERS: tuple[FilterName, ...] = get_args(FilterName)
"""In the order they run, whatever the order they are asked for in."""

TRAJECTORIES_PER_CORE = 8
"""Re-executed at a time: enough that a core has work while others wait for the sandbox."""

BEYOND = "beyond the share asked for"


class SftCurationSettings(BaseModel):
    """What to keep for the cold start.

    Args:
        filters: which to run; all of them by default.
        samples: k tool-free attempts of the base model; all right means the tool is not needed.
        max_tokens: limit of one such attempt.
        batch_size: conversations per generation.
        tool_free_share: share of trajectories in which the model was offered tools and answered
            without, of each ability's result. What lets reinforcement learning discover
            abstaining; much more, and the cold start itself learns to choose.
        replay: direct answers to prompts without tools (`metadata["tools"] == "none"`) mixed in
            at most, so that answering directly is not forgotten.
        isolation: lowest sandbox level accepted for re-execution.
        search: the search tools; as the profile has it.
        vllm: the model answers by vLLM; as the profile has it.
        judge: a model that judges strategic tool use; without it, rules do.
        least_scores: of those the judge gives; one below its least drops the row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    filters: tuple[FilterName, ...] = FILTERS
    samples: int = Field(default=8, ge=1)
    max_tokens: int = Field(default=512, ge=1)
    batch_size: int = Field(default=256, ge=1)
    tool_free_share: float = Field(default=0.03, ge=0, lt=1)
    replay: int = Field(default=0, ge=0)
    isolation: Isolation = Isolation.BUBBLEWRAP
    search: SearchSettings | None = None
    vllm: VLLMSettings | None = None
    judge: JudgeSettings | None = None
    least_scores: TrajectoryScores = TrajectoryScores()

    @model_validator(mode="after")
    def _some_filter(self) -> Self:
        if not self.filters:
            raise ValueError(f"`filters` names none; there are: {', '.join(FILTERS)}")
        return self


def curate_sft(
    model_dir: str | Path | None,
    trajectories: str | Path,
    corpus: str | Path | None,
    out_dir: Path,
    settings: SftCurationSettings,
    seed: int,
    *,
    progress: Progress | None = None,
    engine: Engine | None = None,
    tools: Sequence[Tool] | None = None,
) -> CurationReport:
    """Filter raw trajectories; a killed run goes on from the verdicts it has.

    Args:
        model_dir: the base model, asked every question without tools; only `necessity` needs it.
        trajectories: raw trajectories (Parquet).
        corpus: what `text_search` searches when a trajectory is executed again.
        out_dir: gets `curated.parquet`, `rejected.parquet` (with `reason`), `report.json`,
            `report.md`, `report.html`, and where there are any `aside.parquet` (with `reason`),
            `waiting.parquet` and `rejects.jsonl`; all or none.
        settings: what to keep.
        seed: decides the base model's samples and which tool-free trajectories are taken.
        progress: told rows done, rows in all, the filter's name.
        engine: the base model where it is served elsewhere (default: `model_dir` in process).
        tools: instead of the python sandbox and `text_search` over `corpus`.

    Raises:
        InputError: the input cannot be read, or nothing is left.
        BackendError: sandbox, search, model or judge failed; nothing is decided by that.
    """
    if "necessity" in settings.filters and model_dir is None and engine is None:
        raise InputError("the filter `necessity` asks the base model and none is given (--model)")
    with open_workbench(
        Inputs(trajectories, model_dir if "necessity" in settings.filters else None, corpus),
        out_dir,
        seed,
        engine=engine,
        tools=tools if "re-execution" in settings.filters else (),
        isolation=settings.isolation,
        search=settings.search,
        vllm=settings.vllm,
    ) as bench:
        return asyncio.run(_SftRun(bench, settings, progress).curate(out_dir))


def is_replay(trajectory: Trajectory) -> bool:
    """Whether this is a direct answer to a prompt that offers no tools."""
    return trajectory.task.metadata.get("tools") == "none"


def kind(trajectory: Trajectory) -> str:
    """`replay`, `tool-using` or `tool-free`."""
    if is_replay(trajectory):
        return "replay"
    return "tool-using" if trajectory.tool_calls else "tool-free"


def uses_tools(trajectory: Trajectory) -> bool:
    """Whether tools were offered and called."""
    return kind(trajectory) == "tool-using"


def form_filter() -> Filter[Trajectory]:
    """Drops corrupt pictures, and conversations that do not end in one answer."""
    return Filter("form", "", lambda _: True, by_rule(check_form))


def reexecution_filter(tools: Sequence[Tool]) -> Filter[Trajectory]:
    """Drops hallucinated environments: calls that fail, or give something else than recorded.

    Args:
        tools: what to call again, on all cores as far as they allow it.
    """
    by_name = {tool.name: tool for tool in tools}
    at_once = TRAJECTORIES_PER_CORE * CORES

    async def decide(rows: Mapping[int, Trajectory]) -> dict[int, Verdict]:
        slots = asyncio.Semaphore(at_once)

        async def one(row: Trajectory) -> Verdict:
            async with slots:
                return await reexecute(row, by_name)

        return dict(zip(rows, await asyncio.gather(*map(one, rows.values())), strict=True))

    # Batches end with cores at rest; several times what runs at once keeps that short.
    return Filter("re-execution", " ".join(sorted(by_name)), uses_tools, decide, 4 * at_once)


def answer_filter() -> Filter[Trajectory]:
    """Drops wrong answers."""
    return Filter("answer", "", lambda _: True, by_rule(check_answer))


def necessity_filter(
    engine: Engine, settings: SftCurationSettings, seed_of: Callable[[int], int]
) -> Filter[Trajectory]:
    """Drops what the base model gets right without tools in all `settings.samples` attempts.

    Args:
        engine: the base model.
        settings: `samples`, `max_tokens` and `batch_size` of it.
        seed_of: sampling seed of a batch, from the number of its first row.
    """
    size = settings.batch_size
    needed = ToolNecessity(engine, settings.samples, settings.max_tokens, size, seed_of)
    identity = f"{settings.samples} {settings.max_tokens} {size}"
    return Filter("necessity", identity, uses_tools, needed.decide, size)


def strategic_use_filter(
    panel: JudgePanel[Trajectory] | None = None, identity: str = ""
) -> Filter[Trajectory]:
    """Drops calls for show.

    Args:
        panel: a judge; by default rules decide.
        identity: what the judge's verdicts depend on.
    """
    if panel is None:
        return Filter("strategic-use", "rules", uses_tools, by_rule(judge_by_rules))
    return Filter("strategic-use", identity, uses_tools, panel.decide, 64)


class _SftRun(CurationRun[Trajectory]):
    """The filters in order, then the choice of tool-free and replay rows.

    Args:
        bench: the trajectories, the base model, tools, and a place for verdicts.
        settings: what to keep.
        progress: told rows done, rows in all, the filter's name.
    """

    step = "sft"

    def __init__(
        self, bench: Workbench, settings: SftCurationSettings, progress: Progress | None
    ) -> None:
        self.settings = settings
        super().__init__(bench, settings, settings.judge, progress)

    def rows(self) -> Iterator[Trajectory]:
        self.rejects = Rejects(self.bench.verdicts / "rejects.jsonl")
        return iterate_trajectories(self.bench.source, self.rejects)

    def write_rows(
        self, path: Path, rows: Iterable[Trajectory], reasons: Iterable[str] | None
    ) -> None:
        write_trajectories(path, rows, reasons)

    async def curate(self, out_dir: Path) -> CurationReport:
        for name in FILTERS:
            if name in self.settings.filters:
                await self.run_filter(name)
        return self.publish(out_dir, self.outcome())

    async def run_filter(self, name: FilterName) -> None:
        match name:
            case "form":
                await self.filtering.run(form_filter())
            case "re-execution":
                await self.filtering.run(reexecution_filter(self.bench.tools))
            case "answer":
                await self.filtering.run(answer_filter())
            case "necessity":
                await self.filtering.run(
                    necessity_filter(
                        self.bench.engine,
                        self.settings,
                        lambda first: self.bench.batch_seed("necessity", first),
                    )
                )
            case "strategic-use":
                if self.judge:
                    await self.judge_strategic_use(self.judge)
                else:
                    await self.filtering.run(strategic_use_filter())

    async def judge_strategic_use(self, judge: LlmJudge) -> None:
        least = self.settings.least_scores

        def judged(row: Trajectory) -> Verdict:
            return judge.trajectory(row, least)

        panel = JudgePanel(judged, judge.settings)
        prompt = (PROMPTS / "sft_judge.md").read_text(encoding="utf-8")
        identity = f"{judge.settings.model} {prompt} {least}"
        await self.ask_judge(panel, strategic_use_filter(panel, identity))

    def outcome(self) -> Outcome:
        """The result, with its share of tool-free and replay rows, and why the others go.

        Raises:
            InputError: no tool-using row is left.
        """
        left = {n: kind(row) for n, row in self.filtering.survivors() if n not in self.waiting}
        chosen = self.choose(left)
        if not any(left[number] == "tool-using" for number in chosen):
            raise InputError(
                f"{self.bench.source}: no tool-using trajectory is left; dropped or set aside: "
                + ", ".join(
                    f"{c.name} {c.dropped + c.aside} of {c.seen}" for c in self.filter_counts()
                )
            )
        beyond = {n: f"{left[n]}: {BEYOND}" for n in left.keys() - chosen}
        aside: dict[int, str] = {}
        rejected = dict(beyond)
        for number in range(len(self.ids)):
            if out := self.filtering.dropped_by(number):
                name, verdict = out
                (aside if verdict.aside else rejected)[number] = f"{name}: {verdict.reason}"
        note = (
            f"{len(aside)} rows are set aside, see `aside.parquet`: what their calls returned "
            "cannot be had again here, so it is neither believed nor called made up."
        )
        return Outcome(
            kept={number: left[number] for number in chosen},
            rejected=rejected,
            aside=aside,
            not_needed=len(beyond),
            notes=[note] if aside else [],
        )

    def choose(self, kinds: Mapping[int, str]) -> set[int]:
        """All tool-using rows, the share of tool-free ones of each ability, the replay rows."""
        chosen = {number for number in kinds if kinds[number] == "tool-using"}
        using = Counter(self.abilities[number] for number in chosen)
        share = self.settings.tool_free_share
        free: dict[str, list[int]] = defaultdict(list)
        replay: list[int] = []
        for number in sorted(kinds.keys() - chosen, key=self.rank):
            target = replay if kinds[number] == "replay" else free[self.abilities[number]]
            target.append(number)
        for ability, candidates in free.items():
            chosen.update(candidates[: round(share * using[ability] / (1 - share))])
        chosen.update(replay[: self.settings.replay])
        return chosen


def check_form(trajectory: Trajectory) -> Verdict:
    """Drop corrupt pictures, and conversations that do not end in one answer."""
    try:
        trajectory.task.pil_images()
    except CorruptImage as error:
        return Verdict(False, f"corrupt image: {error.reason}")
    if is_replay(trajectory) and trajectory.tool_calls:
        return Verdict(False, "calls a tool where none was offered")
    if _final_answer(trajectory) is None:
        return Verdict(False, "no final answer")
    return Verdict(True)


def check_answer(trajectory: Trajectory) -> Verdict:
    """Drop wrong answers; open ones pass, because the grader cannot tell."""
    task = trajectory.task
    right = task.answer_type is AnswerType.OPEN or grade(task, _final_answer(trajectory))
    return Verdict(right, "" if right else "wrong answer")


def _final_answer(trajectory: Trajectory) -> str | None:
    last = trajectory.messages[-1] if trajectory.messages else {"role": ""}
    if last["role"] != "assistant" or last.get("tool_calls"):
        return None
    return extract_answer(message_text(last))
