"""Load a Qwen3-VL processor, with or without torchvision, which only its video half needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.utils.import_utils import is_torchvision_available

from toolwise.errors import InputError

_SHARED = ("patch_size", "temporal_patch_size", "merge_size", "size", "image_mean", "image_std")
"""Settings that the video half has in common with the image half."""


class ImageProcessor(Qwen3VLProcessor):
    """`Qwen3VLProcessor` for text and images, without the video half and its torchvision.

    It saves settings of the video half all the same: vLLM, and whoever has torchvision, loads no
    checkpoint without them.
    """

    video_settings: dict[str, Any] | None = None
    """Those it was loaded with; without any, the image half's are saved."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts this processor is made of."""
        return ["image_processor", "tokenizer"]

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        kwargs.pop("video_processor", None)
        super().__init__(image_processor, tokenizer, None, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Its settings, as they are saved."""
        settings = super().to_dict()
        image = settings["image_processor"]
        settings["video_processor"] = self.video_settings or {
            "video_processor_type": "Qwen3VLVideoProcessor",
            **{name: image[name] for name in _SHARED},
        }
        return settings


def load_processor(path: str | Path) -> Qwen3VLProcessor:
    """The processor saved beside a checkpoint; raises `InputError` where there is none."""
    folder = Path(path)
    config = folder / "preprocessor_config.json"
    if not config.exists():
        config = folder / "processor_config.json"
    if not config.exists():
        raise InputError(f"{folder}: no preprocessor_config.json; is this a model checkpoint?")
    if is_torchvision_available():
        return Qwen3VLProcessor.from_pretrained(folder)
    settings = json.loads(config.read_text())
    video = settings.get("video_processor")
    if video is None and (folder / "video_preprocessor_config.json").exists():
        video = json.loads((folder / "video_preprocessor_config.json").read_text())
    settings = settings.get("image_processor", settings)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = ImageProcessor(
        Qwen2VLImageProcessorPil(**settings), tokenizer, chat_template=tokenizer.chat_template
    )
    processor.video_settings = video
    return processor
