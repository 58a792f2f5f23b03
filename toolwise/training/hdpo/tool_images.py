"""TRL's tool loop with tools that return images, where not every conversation got one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl.trainer.grpo_trainer import GRPOTrainer


class ToolImagesGRPOTrainer(GRPOTrainer):
    """TRL's trainer, whose tool loop survives a turn that goes on without images.

    TRL 1.16 says that tools returned images as long as any conversation of the batch got one. Where
    those that go on have none, it then hands the model `token_type_ids`, which a Qwen-VL refuses.
    """

    def _generate_single_turn(
        self,
        prompt_ids: Any,
        images: Sequence[Sequence[Any] | None] | None,
        *given: Any,
        has_tool_images: bool = False,
        **named: Any,
    ) -> Any:
        shown = has_tool_images and any(images or ())
        return super()._generate_single_turn(
            prompt_ids, images, *given, has_tool_images=shown, **named
        )
