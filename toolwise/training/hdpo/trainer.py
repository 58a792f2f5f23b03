"""`HDPOTrainer`: TRL's GRPO trainer with a second, decoupled channel for tool efficiency.

The accuracy channel is TRL's own loss, untouched; HDPO adds the efficiency channel, computed from
the same log-probabilities of the same forward pass. Rollouts come from TRL's generation or, where
an agent is given, from the agent loop.

B: rollouts of a batch. T: completion tokens, padded to the longest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar, cast

import accelerate.utils
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers.utils import logging

from toolwise.agent import Rollout, Sampling, TokenRecord
from toolwise.data import Task
from toolwise.training.hdpo import collapse
from toolwise.training.hdpo.advantages import Scale
from toolwise.training.hdpo.agent import RolloutAgent, completion, count_calls, token_record
from toolwise.training.hdpo.channels import efficiency_advantages, one_channel_advantages
from toolwise.training.hdpo.colocated import awake, forget_images, loses_weights
from toolwise.training.hdpo.config import UNSHARED, HDPOConfig, Variant
from toolwise.training.hdpo.forward import RecordScores, score_records
from toolwise.training.hdpo.loss import Level, efficiency_mask, mean_count, surrogate
from toolwise.training.hdpo.monitoring import rollout_metrics
from toolwise.training.hdpo.resumable import ResumableGRPOTrainer
from toolwise.training.hdpo.reward_functions import marks_failures
from toolwise.training.hdpo.rewards import Scores, efficiency_rewards, judge_failed
from toolwise.training.hdpo.tool_free import answer_both_ways, is_tool_free, mixture_weights
from toolwise.training.hdpo.tool_images import ToolImagesGRPOTrainer
from toolwise.training.launcher.fsdp import gather_head

__all__ = ["HDPOConfig", "HDPOTrainer", "Scores", "Variant"]

_logger = logging.get_logger(__name__)


class HDPOTrainer(ToolImagesGRPOTrainer, ResumableGRPOTrainer):
    """Hierarchical Decoupled Policy Optimization (arXiv 2604.08545) on TRL's GRPO trainer.

    Takes what `GRPOTrainer` takes. The reward functions, summed by `reward_weights`, are the
    accuracy reward; the efficiency reward 1/(T+1) is computed from the tool calls in each
    completion's messages. With `w_tool=0` the loss and its gradients are GRPOTrainer's. A rollout
    whose judge failed (its reward is NaN, or None where others of its group got a number) is in
    neither channel.

    Args:
        agent: makes the rollouts instead of TRL's generation, at `args.temperature` and with at
            most `args.max_completion_length` tokens a turn; or makes such an agent, given the
            trainer, once that has what it samples with (vLLM).
        tasks: what the agent is asked, in place of a `train_dataset`. Reward functions get the
            rollouts as an argument `rollout`.
    """

    _name = "HDPO"
    _tag_names = ("trl", "hdpo")
    _paper: ClassVar = {
        "title": "Act Wisely: Cultivating Meta-Cognitive Tool Use in Agentic Multimodal Models",
        "id": "2604.08545",
    }
    args: HDPOConfig
    model: Any
    num_generations: int
    num_generations_eval: int
    max_completion_length: int

    def __init__(
        self,
        *args: Any,
        agent: RolloutAgent | Callable[[HDPOTrainer], RolloutAgent] | None = None,
        tasks: Sequence[Task] = (),
        **kwargs: Any,
    ) -> None:
        if agent is not None:  # a prompt is a task's index: images stay out of the data set
            kwargs["train_dataset"] = Dataset.from_dict({"prompt": list(range(len(tasks)))})
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, HDPOConfig):
            raise TypeError(f"args must be an HDPOConfig, not {type(self.args).__name__}")
        if self.args.tool_free and agent is None:
            raise ValueError("tool_free rollouts are the agent loop's: give an agent")
        if agent is not None:
            _refuse_what_the_agent_does_not_sample_with(self.args)
        self.reward_funcs = [
            reward if isinstance(reward, nn.Module) else marks_failures(reward)
            for reward in self.reward_funcs
        ]
        for model in (self.model, self.ref_model):
            if model is not None:
                gather_head(model)
        self._agent = agent(self) if callable(agent) else agent
        self._tasks = tasks
        self._seconds = 0.0
        self._alarm: collapse.CollapseAlarm | None = None
        self._scores: Scores | None = None
        self._weights: Tensor | None = None  # of rollouts sampled under two prompts
        self._logps: Tensor | None = None
        # One conversation per row of the batch at hand, and which of them need a forward pass.
        self._records: list[TokenRecord] = []
        self._rows: list[int] | None = None

    # Rollouts and advantages

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        """TRL's seam for generation, where the agent's rollouts come in."""
        stats = self._agent.stats if self._agent else None
        before = replace(stats) if stats else None
        started = time.perf_counter()
        made = self._agent_rollouts(prompts) if self._agent else super()._generate(prompts)
        seconds = self._spent("rollout", started)
        _, completions, mask, *_ = made
        written = sum(map(sum, mask)) if mask else sum(map(len, completions))
        self._keep({"rollout/tokens_per_second": written / seconds})
        if stats and before:
            work = stats.since(before)
            self._keep({"rollout/padding_share": work.padding_share})
            self._keep({"rollout/shared_share": work.shared_share})
        return made

    def _agent_rollouts(self, prompts: list[Any]) -> tuple[Any, ...]:
        """The agent's rollouts as TRL wants them."""
        assert self._agent is not None
        if self.use_vllm:
            self._hand_over_weights()
        tasks = [self._tasks[int(prompt)] for prompt in prompts]
        sampling = Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_completion_length,
            seed=self._sampling_seed(),
        )
        free = self._tool_free_rows(len(tasks))
        with awake(self.vllm_generation) if self.use_vllm else nullcontext():
            rollouts = answer_both_ways(self._agent, tasks, sampling, free)
        self._records = [token_record(rollout) for rollout in rollouts]
        for row, task in enumerate(tasks):
            if free[row]:  # what is trained is the policy with tools
                offered = self._agent.prompt_ids(task, tool_free=False)
                self._records[row] = replace(self._records[row], prompt_ids=offered)
        if self.args.tool_free and self.model.training:  # whichever rows fell to this process
            self._weights = self._mixture_weights(rollouts, free)
        return (
            [list(record.prompt_ids) for record in self._records],
            [list(record.completion_ids) for record in self._records],
            [list(record.mask) for record in self._records],
            [completion(rollout) for rollout in rollouts],
            [list(record.logprobs) for record in self._records],
            {"rollout": list(rollouts)},
            None,
            [],
        )

    def _hand_over_weights(self) -> None:
        """Have vLLM sample from the policy as it is; every process takes part."""
        step, generation = self.state.global_step, self.vllm_generation
        if step != self._last_loaded_step or loses_weights(generation):
            generation.sync_weights()
            forget_images(generation)
            self._last_loaded_step = step
            self.accelerator.wait_for_everyone()  # no rollouts before the server has the weights

    def _tool_free_rows(self, rows: int) -> list[bool]:
        """Which of this process's rollouts are sampled under the prompt without tools."""
        first, group = self.accelerator.process_index * rows, self.num_generations
        count = self.args.tool_free if self.model.training else 0
        return [is_tool_free(first + row, group, count) for row in range(rows)]

    def _mixture_weights(self, rollouts: Sequence[Rollout], free: Sequence[bool]) -> Tensor:
        """`mixture_weights` of this process's rollouts, whose records have the prompt with tools.

        The engine knows a direct answer's likelihood under the prompt it was sampled with; under
        the other one it takes a forward pass.
        """
        assert self._agent is not None
        other = [
            record
            if is_free
            else replace(record, prompt_ids=self._agent.prompt_ids(rollout.task, tool_free=True))
            for record, rollout, is_free in zip(self._records, rollouts, free, strict=True)
        ]
        direct = torch.tensor([count_calls(completion(rollout)) == 0 for rollout in rollouts])
        width = max(len(record.completion_ids) for record in other)
        with torch.no_grad():
            # Weights that are sharded are gathered for each pass, on all processes or on none.
            rows = None if self._several else direct.nonzero().flatten().tolist()
            most = self.args.per_device_train_batch_size
            rescored = self.record_logps(self.model, other, width, rows, most).logps.sum(dim=1)
        sampled = torch.tensor([sum(record.logprobs) for record in self._records]).to(rescored)
        is_free = torch.tensor(free, device=rescored.device)
        rescored = rescored.masked_fill(~direct.to(rescored.device), -torch.inf)
        return mixture_weights(
            torch.where(is_free, rescored, sampled),
            torch.where(is_free, sampled, rescored),
            self.args.tool_free / self.num_generations,
        )

    def _sampling_seed(self) -> int:
        """A seed of its own for each step and process: a resumed run samples the same rollouts."""
        accumulation = self.args.gradient_accumulation_steps
        step = self.state.global_step * accumulation + self._step % accumulation
        step = step * self.accelerator.num_processes + self.accelerator.process_index
        return (self.args.seed * 1_000_003 + step) % 2**31

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        started = time.perf_counter()
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._spent("reward", started)
        group = self.num_generations if self.model.training else self.num_generations_eval
        rewards[judge_failed(rewards, group)] = torch.nan
        accuracy = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        accuracy[rewards.isnan().all(dim=1)] = torch.nan
        correct = accuracy > self.args.correct_above
        calls = torch.tensor([count_calls(c) for c in completions], device=rewards.device)
        calls = _gather(calls)
        self._scores = Scores(accuracy, efficiency_rewards(correct, calls), correct, calls)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        scores, self._scores = self._scores, None
        assert scores is not None
        group = self.num_generations if self.model.training else self.num_generations_eval
        local = slice(
            self.accelerator.process_index * len(inputs),
            (self.accelerator.process_index + 1) * len(inputs),
        )
        scale = cast(Scale, self.scale_rewards)
        if self.args.variant in ("coupled", "eapo"):
            batch["advantages"] = one_channel_advantages(scores, group, scale, self.args)[local]
        efficiency = efficiency_advantages(scores, group, scale, self.args)
        batch["efficiency_advantages"] = efficiency[local]
        weights, self._weights = self._weights, None
        if weights is not None and self.args.tool_free_correction:
            # A factor on a rollout's loss, clipped or not, is one on its advantage.
            batch["advantages"] = batch["advantages"] * weights
            batch["efficiency_advantages"] = batch["efficiency_advantages"] * weights
            free = torch.tensor(self._tool_free_rows(len(inputs)), device=weights.device)
            weight, count = _gather(torch.stack([(weights * free).sum(), free.sum()])[None]).sum(0)
            self._keep({"tool_free/weight": (weight / count).item()})
        mask = _loss_mask(batch)
        qualifying = efficiency_mask(
            batch["efficiency_advantages"], mask, self.args.efficiency_normalize
        )
        batch["efficiency_items"] = _gather(self._count(qualifying)).sum()
        if self.args.w_acc != 1.0:
            batch["accuracy_items"] = _gather(self._count(mask)).sum()
        if self._agent is not None:
            batch["records"], self._records = self._records, []
        self._log_scores(scores, batch["advantages"], efficiency, group)
        return batch

    def _log_scores(self, scores: Scores, accuracy: Tensor, efficiency: Tensor, group: int) -> None:
        with_tools = group - (self.args.tool_free if self.model.training else 0)
        found = rollout_metrics(scores, group, with_tools)
        found["advantage/accuracy"] = _gather(accuracy).abs().mean()
        found["advantage/efficiency"] = efficiency.abs().mean()
        self._keep({name: value.item() for name, value in found.items()})

    def _keep(self, metrics: Mapping[str, float]) -> None:
        """Have the metrics of a step logged."""
        mode = "train" if self.model.training else "eval"
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)

    def _spent(self, part: str, started: float) -> float:
        """The seconds since `started`: logged, and left out of the update's."""
        seconds = time.perf_counter() - started
        self._keep({f"seconds/{part}": seconds})
        if self.model.training:
            self._seconds -= seconds
        return seconds

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's metrics of the steps since the last log, and whether tool use has collapsed."""
        if self.model.training:
            self._watch_for_collapse()
        super().log(logs, start_time)

    def _watch_for_collapse(self) -> None:
        metrics = self._metrics["train"]
        names = ("accuracy", collapse.MISSED)
        logged = {name: [v for v in metrics.get(name, ()) if v == v] for name in names}
        if not all(logged.values()):
            return
        now = {name: sum(values) / len(values) for name, values in logged.items()}
        history = self.state.log_history
        groups = cast(int, self.args.generation_batch_size) // self.num_generations
        groups *= len(logged["accuracy"])
        if not self._alarm or self._alarm.log is not history or self._alarm.groups != groups:
            self._alarm = collapse.CollapseAlarm(groups, history)
        step = self.state.global_step
        found = self._alarm.add({**now, "step": step})
        metrics[collapse.ALARM] = [float(found is not None)]
        before = next((e[collapse.ALARM] for e in reversed(history) if collapse.ALARM in e), 0.0)
        if found and not before and self.accelerator.is_main_process:
            _logger.warning(str(found))
            if "mlflow" in (self.args.report_to or ()):
                collapse.tag_active_run(step, now)

    # Loss

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._records = inputs.get("records", [])
        advantages = inputs["advantages"]
        if self.args.w_acc != 1.0:  # TRL's loss also holds a KL, an entropy and a router term
            inputs = {**inputs, "advantages": self.args.w_acc * advantages}
        self._rows = self._rows_with_signal(inputs)
        loss = super()._compute_loss(model, inputs)
        logps, self._logps = self._logps, None
        self._records, self._rows = [], None
        assert logps is not None
        mode = "train" if self.model.training else "eval"
        accuracy = self._unweighted(loss.detach(), logps.detach(), inputs, advantages, mode)
        self._keep({"loss/accuracy": self._logged(accuracy, mode)})
        if self.args.efficiency_weight:
            efficiency = self._efficiency_loss(logps, inputs, mode)
            self._keep({"loss/efficiency": self._logged(efficiency, mode)})
            loss = loss + self.args.efficiency_weight * efficiency
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's step, timed apart from the rollouts and rewards it may start with."""
        self._seconds -= time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        self._seconds += time.perf_counter()
        if self._step % self.current_gradient_accumulation_steps == 0:
            self._metrics["train"]["seconds/update"].append(self._seconds)
            self._seconds = 0.0
        return loss

    def _unweighted(
        self, loss: Tensor, logps: Tensor, inputs: dict[str, Any], advantages: Tensor, mode: str
    ) -> Tensor:
        """TRL's loss as it would be with a `w_acc` of 1."""
        w_acc = self.args.w_acc
        if w_acc == 1.0:
            return loss
        if self.loss_type in UNSHARED:
            return loss / w_acc if w_acc else loss
        items, mask = inputs["accuracy_items"], _loss_mask(inputs)
        whole = self._surrogate(logps, inputs, advantages, mask, items, mode)
        return loss + (1 - w_acc) * whole

    def _efficiency_loss(self, logps: Tensor, inputs: dict[str, Any], mode: str) -> Tensor:
        """This batch's share of the efficiency loss of the whole optimizer step."""
        advantages = inputs["efficiency_advantages"]
        mask = efficiency_mask(advantages, _loss_mask(inputs), self.args.efficiency_normalize)
        return self._surrogate(logps, inputs, advantages, mask, inputs["efficiency_items"], mode)

    def _surrogate(
        self,
        logps: Tensor,
        inputs: dict[str, Any],
        advantages: Tensor,
        mask: Tensor,
        items: Tensor,
        mode: str,
    ) -> Tensor:
        """A channel's loss, averaged over `items`."""
        old = inputs.get("old_per_token_logps")
        count = items.clamp(min=1) / self.accelerator.num_processes
        if mode == "train":  # `items` spans the generation batch, as TRL's count does
            count = count * self.current_gradient_accumulation_steps
            count = count / self.args.steps_per_generation
        return surrogate(
            logps,
            logps.detach() if old is None else old,
            advantages,
            mask,
            clip_low=self.epsilon_low,
            clip_high=self.epsilon_high,
            dual_clip=self.args.delta,
            aggregation=self.args.aggregation,
            level=cast(Level, self.importance_sampling_level),
            weights_BT=inputs.get("importance_sampling_ratio"),
            count=count,
        )

    def _count(self, mask: Tensor) -> Tensor:
        """What `loss_type` divides a sum over `mask` by, of this process's rollouts."""
        if self.loss_type == "dr_grpo":
            return mean_count(mask, "rollout") * self.max_completion_length
        return mean_count(mask, self.args.aggregation)

    def _logged(self, loss: Tensor, mode: str) -> float:
        """A loss as the mean over accumulation steps wants it logged."""
        scale = self.current_gradient_accumulation_steps if mode == "train" else 1
        return _gather(loss.detach() * scale).mean().item()

    def _get_per_token_logps_and_entropies(  # type: ignore[override]
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self._records:
            most = kwargs.get("batch_size")  # in a step's own pass none: those are all at hand
            scored = self.record_logps(model, self._records, logits_to_keep, self._rows, most)
            found = scored.logps, scored.entropies, None
        else:
            found = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, **kwargs
            )
        self._logps = found[0]
        return found

    def _rows_with_signal(self, inputs: dict[str, Any]) -> list[int] | None:
        """Rows that can have a gradient, None for all: a zero advantage needs no forward pass."""
        if self.beta or self._entropy_bonus_enabled or self.aux_loss_enabled:
            return None
        signal = inputs["advantages"] != 0
        if self.args.efficiency_weight:
            signal = signal | (inputs["efficiency_advantages"] != 0)
        return signal.nonzero().flatten().tolist()

    def record_logps(
        self,
        model: nn.Module,
        records: Sequence[TokenRecord],
        width: int,
        rows: Sequence[int] | None = None,
        most: int | None = None,
    ) -> RecordScores:
        """`score_records` of this trainer's rollouts; arguments as there."""
        assert self._agent is not None
        with self.accelerator.autocast():
            return score_records(
                model,
                records,
                width,
                self._agent.renderer,
                device=self.accelerator.device,
                suppressed_ids=self._agent.suppressed_ids,
                rows=rows,
                most=most,
                in_step=self._several,
            )

    @property
    def _several(self) -> bool:
        return self.accelerator.num_processes > 1


def _refuse_what_the_agent_does_not_sample_with(args: HDPOConfig) -> None:
    unknown = {
        "top_k": args.top_k,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty != 1.0,
        "generation_kwargs": args.generation_kwargs,
    }
    for name, given in unknown.items():
        if given:
            raise ValueError(
                f"{name} is a setting of TRL's generation; the agent loop samples at temperature "
                "and top_p alone"
            )


def _gather(tensor: Tensor) -> Tensor:
    return cast(Tensor, accelerate.utils.gather(tensor))


def _loss_mask(batch: dict[str, Any]) -> Tensor:
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask
