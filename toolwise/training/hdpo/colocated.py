"""vLLM in the trainer's own process as a source of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from toolwise.agent import Sampling
from toolwise.agent.vllm_engine import Sampled, TokenRequest
from toolwise.data import decode_image


class ColocatedVLLM:
    """TRL's colocated vLLM (see `toolwise.agent.vllm_engine.TokenSource`).

    It samples with one seed for all requests or none, so rollouts are not repeatable.

    Args:
        generation: `vllm_generation` of a trainer with `vllm_mode="colocate"`, whose temperature
            and nucleus it samples with.

    Raises:
        ValueError: it spreads the model over several processes: these would have to ask for the
            same number of turns, which the rollouts of one differ in from those of another.
    """

    name = "vLLM in this process"

    def __init__(self, generation: Any) -> None:
        if generation.mode != "colocate" or generation.tensor_parallel_size != 1:
            raise ValueError(
                "the agent loop needs vLLM with vllm_mode='colocate' and "
                "vllm_tensor_parallel_size=1; for a larger model use a server"
            )
        self._generation = generation

    async def context(self) -> int:
        """Tokens the model reads and writes at most."""
        return self._generation.llm.llm_engine.model_config.max_model_len

    async def sample(
        self,
        requests: Sequence[TokenRequest],
        sampling: Sampling,
        *,
        end_id: int,
        image_id: int,
        suppressed_ids: Sequence[int],
    ) -> list[Sampled]:
        """One continuation each, in order; see `TokenSource`."""
        del image_id  # vLLM finds the placeholders itself
        if not requests:
            return []
        self._generation.generation_kwargs = {
            **self._generation.generation_kwargs,
            "stop_token_ids": [end_id],
            "logit_bias": dict.fromkeys(suppressed_ids, -100.0),
        }
        self._generation.temperature, self._generation.top_p = sampling.temperature, sampling.top_p
        self._generation.max_completion_length = max(request.max_tokens for request in requests)
        images = [[decode_image(image) for image in request.images] for request in requests]
        _, ids, logprobs, _ = self._generation.generate(
            prompts=[list(request.ids) for request in requests],
            images=[shown or None for shown in images] if any(images) else None,
            num_generations=1,
        )
        return [
            Sampled(tuple(written), tuple(float("nan") if p[0] is None else p[0] for p in scores))
            for written, scores in zip(ids, logprobs, strict=True)
        ]


def loses_weights(generation: Any) -> bool:
    """Whether this vLLM sleeps between batches, and so has to be given the weights for each."""
    return generation.mode == "colocate" and generation.enable_sleep_mode


def forget_images(generation: Any) -> None:
    """Have vLLM, here or on a server, drop what its vision encoder made of images.

    It keeps that by image, whatever the weights, and TRL's hand-over of weights resets no more than
    the prefix cache.
    """
    if generation.mode == "colocate":
        generation.llm.llm_engine.reset_encoder_cache()
    elif generation.accelerator.is_main_process:
        client = generation.vllm_client
        client.session.post(f"{client.base_url}/reset_encoder_cache").raise_for_status()


@contextmanager
def awake(generation: Any) -> Iterator[None]:
    """Keep TRL's vLLM, which has just got the weights, awake over the turns of a batch.

    TRL lets it sleep after every request and gives it the weights again before the next. They are
    gathered from all processes, whose rollouts take different numbers of turns: a process with a
    turn more would wait for the others for ever.
    """
    if not loses_weights(generation):
        yield
        return
    generation.llm.wake_up(tags=["kv_cache"])
    generation.enable_sleep_mode = False
    try:
        yield
    finally:
        generation.enable_sleep_mode = True
        generation.llm.sleep(level=2)
        generation._llm_weights_sleeping = True
