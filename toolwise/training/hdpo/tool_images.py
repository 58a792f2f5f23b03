"""TRL's tool loop with tools that return images, where not every conversation got one."""

from __future__ import annotations

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
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> Any:
        return super()._generate_single_turn(
            prompt_ids,
            images,
            multimodal_fields,
            num_generations,
            has_tool_images=has_tool_images and any(images or ()),
        )
