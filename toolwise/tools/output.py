"""Text that comes from a tool is data: it must not be able to speak as the chat template."""

from __future__ import annotations

import re

MARKUP = re.compile(r"<(?=\||/?tool_(?:call|response)>)")


def plain_text(text: str, limit: int) -> str:
    """Well-formed Unicode of at most `limit` characters, in which no chat markup is left.

    `<|im_end|>`, `</tool_response>` and their like get a space after the `<`.
    """
    text = text.encode("utf-8", "replace").decode()
    text = MARKUP.sub("< ", text)
    return (
        text
        if len(text) <= limit
        else f"{text[:limit]}\n[{len(text) - limit} more characters not shown]"
    )
