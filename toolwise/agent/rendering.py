"""Messages to tokens and pixels: the one rendering shared by inference and training.

What supervised training shows the model is, token for token, what it reads and writes at
inference: a conversation is encoded in the same pieces (prompt, turn, tool results, turn, …) in
which the agent loop meets them, so that `Renderer.conversation` equals `Renderer.prompt` plus the
sampled turns plus `Renderer.tool_results`.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from toolwise.data import Message, decode_image
from toolwise.errors import InputError

if TYPE_CHECKING:
    import torch

_HEADER = "<|im_start|>assistant\n"
_END = "<|im_end|>"
_PLACEHOLDER = "<|image_pad|>"
_RESERVED = re.compile(r"<\|(\w+)\|>")
_MAX_ASPECT = 150  # Qwen's image processor refuses more than 200
_PIXEL_CACHE_BYTES = 256 * 2**20
_TEXT_CACHE_ENTRIES = 8192
_TEXT_CACHE_BYTES = 256 * 2**20  # of cached texts, their ids and encoded images
_ID_BYTES = 40  # of a token id in a list: its place, and the integer


class Pixels(NamedTuple):
    """One preprocessed image: `values` [patches, features] and its patch `grid` (t, h, w)."""

    values: torch.Tensor
    grid: tuple[int, int, int]


class Rendered(NamedTuple):
    """Token ids, and the encoded images whose placeholders stand in them, in order."""

    ids: list[int]
    images: tuple[bytes, ...]


class _Kept(NamedTuple):
    """A cached text, and the bytes it takes."""

    rendered: Rendered
    size: int


class RenderedConversation(NamedTuple):
    """A whole conversation: ids [L], assistant mask [L] (1 on what the model writes), images.

    The mask covers each assistant turn up to and including its end marker, and neither the
    turn's header nor the newline behind the marker.
    """

    ids: list[int]
    mask: list[int]
    images: tuple[bytes, ...]


class Renderer:
    """Renders chat messages with a Qwen-VL processor (its chat template and image processor).

    Args:
        processor: has `.tokenizer`, `.image_processor` and a chat template with ChatML markers
            that keeps prefixes.
    """

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        self.end_id: int = self.tokenizer.convert_tokens_to_ids(_END)
        self.image_id: int = self.tokenizer.convert_tokens_to_ids(_PLACEHOLDER)
        self._image_processor = processor.image_processor
        self._template = getattr(processor, "chat_template", None) or self.tokenizer.chat_template
        self.merge_size: int = processor.image_processor.merge_size
        self._texts: OrderedDict[Any, _Kept] = OrderedDict()
        self._text_bytes = 0
        self._pixels: OrderedDict[bytes, Pixels] = OrderedDict()
        self._pixel_bytes = 0

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> Rendered:
        """A conversation up to the first token of the assistant's next turn."""
        return self._cached(messages, tools, prefix="")

    def tool_results(self, messages: Sequence[Message]) -> Rendered:
        """What stands between a turn that ended in its end marker and the next turn's first token.

        Args:
            messages: the tool messages that answer the turn.
        """
        return self._cached(messages, (), prefix="\n")

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
    ) -> RenderedConversation:
        """A finished conversation with its assistant mask; ends at the last turn's end marker."""
        if not messages or messages[-1]["role"] != "assistant":
            raise InputError("a conversation to train on must end in an assistant message")
        plain, images = _split_images(messages)
        text = self._template_text(plain, tools, generate=False)
        head, *rest = text.split(_HEADER)
        counts = self._counts(images)
        ids = self._encode(head + _HEADER, counts)
        mask = [0] * len(ids)
        for number, chunk in enumerate(rest, start=1):
            turn, _, between = chunk.partition(_END)
            turn_ids = self._encode(turn + _END, counts)
            ids += turn_ids
            mask += [1] * len(turn_ids)
            if number < len(rest):
                between_ids = self._encode(between + _HEADER, counts)
                ids += between_ids
                mask += [0] * len(between_ids)
        return RenderedConversation(ids, mask, images)

    def pixels(self, image: bytes) -> Pixels:
        """The preprocessed image, cached: a training step meets each image many times."""
        found = self._pixels.get(image)
        if found is not None:
            self._pixels.move_to_end(image)
            return found
        decoded = _bounded(decode_image(image))
        batch = self._image_processor(images=[decoded], return_tensors="pt")
        grid = tuple(int(size) for size in batch["image_grid_thw"][0])
        found = Pixels(batch["pixel_values"], (grid[0], grid[1], grid[2]))
        self._pixels[image] = found
        self._pixel_bytes += found.values.nbytes + len(image)
        while self._pixel_bytes > _PIXEL_CACHE_BYTES and len(self._pixels) > 1:
            key, oldest = self._pixels.popitem(last=False)
            self._pixel_bytes -= oldest.values.nbytes + len(key)
        return found

    def _cached(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], prefix: str
    ) -> Rendered:
        key = (_frozen(messages), _frozen(tools), prefix)
        found = self._texts.get(key)
        if found is None:
            plain, images = _split_images(messages)
            text = prefix + self._template_text(plain, tools, generate=True)
            ids = self._encode(text, self._counts(images))
            size = len(text) + _ID_BYTES * len(ids) + sum(map(len, images))
            found = self._texts[key] = _Kept(Rendered(ids, images), size)
            self._text_bytes += size
            while len(self._texts) > _TEXT_CACHE_ENTRIES or self._text_bytes > _TEXT_CACHE_BYTES:
                _, oldest = self._texts.popitem(last=False)
                self._text_bytes -= oldest.size
        return Rendered(list(found.rendered.ids), found.rendered.images)

    def _template_text(
        self, messages: list[Message], tools: Sequence[dict[str, Any]], generate: bool
    ) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            tools=list(tools) or None,
            chat_template=self._template,
            add_generation_prompt=generate,
            tokenize=False,
        )

    def _counts(self, images: Iterable[bytes]) -> list[int]:
        """Placeholder tokens of each image, last one first (they are consumed from the end)."""
        counts = []
        for image in images:
            t, h, w = self.pixels(image).grid
            counts.append(t * h * w // self.merge_size**2)
        return counts[::-1]

    def _encode(self, text: str, counts: list[int]) -> list[int]:
        """Text to ids, each image placeholder repeated as often as the next of `counts` says."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.image_id not in ids:
            return ids
        expanded: list[int] = []
        for token in ids:
            expanded += [token] * (counts.pop() if token == self.image_id else 1)
        return expanded


def _split_images(messages: Sequence[Message]) -> tuple[list[Message], tuple[bytes, ...]]:
    """Messages as the template takes them, and their images in order."""
    images: list[bytes] = []

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            if value.get("type") == "image":
                images.append(value["image"])
                return {"type": "image"}
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        # Text that spells a control token must not become one: a tool may print anything.
        return _RESERVED.sub(r"< |\1| >", value) if isinstance(value, str) else value

    return [plain(message) for message in messages], tuple(images)


def _bounded(image: Image.Image) -> Image.Image:
    """A sliver (a tool may show one) padded to the thinnest shape the image processor takes."""
    least = math.ceil(max(image.size) / _MAX_ASPECT)
    if min(image.size) >= least:
        return image
    canvas = Image.new("RGB", (max(image.width, least), max(image.height, least)))
    canvas.paste(image)
    return canvas


def _frozen(value: Any) -> Any:
    """A hashable copy (bytes keep their hash, so an image costs nothing to look up twice)."""
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return value
