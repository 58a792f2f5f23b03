"""A checkpoint's processor loads where torchvision is, as vLLM's is, and where it is not."""

import json
from pathlib import Path

from toolwise.agent.processor import load_processor
from toolwise.synthetic.model import build_processor
from toolwise.tools.python import PYTHON_SCHEMA


def saved_video(folder: Path) -> dict:
    return json.loads((folder / "processor_config.json").read_text())["video_processor"]


def test_settings_of_the_video_half_are_saved_with_those_of_the_image_half(tmp_path: Path) -> None:
    processor = build_processor([PYTHON_SCHEMA])
    processor.save_pretrained(tmp_path)
    video = saved_video(tmp_path)
    assert video["video_processor_type"] == "Qwen3VLVideoProcessor"
    assert video["patch_size"] == processor.image_processor.patch_size
    assert video["size"] == dict(processor.image_processor.size)


def test_a_base_models_own_settings_of_the_video_half_survive_training(tmp_path: Path) -> None:
    base, trained = tmp_path / "base", tmp_path / "trained"
    build_processor([PYTHON_SCHEMA]).save_pretrained(base)
    config = base / "processor_config.json"
    settings = json.loads(config.read_text())
    own = settings.pop("video_processor") | {"fps": 2}
    config.write_text(json.dumps(settings))
    (base / "video_preprocessor_config.json").write_text(json.dumps(own))
    load_processor(base).save_pretrained(trained)
    assert saved_video(trained) == own
    load_processor(trained).save_pretrained(trained)
    assert saved_video(trained) == own
