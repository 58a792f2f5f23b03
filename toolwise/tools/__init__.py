"""Tools the model may call: sandboxed `python`, `text_search`, `image_search`."""

from toolwise.tools.base import Tool, ToolError, ToolResult, ToolSession

__all__ = ["Tool", "ToolError", "ToolResult", "ToolSession"]
