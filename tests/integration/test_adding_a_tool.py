"""The tool of docs/adding-a-tool.md does in the agent loop what the page says."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from scripted_engine import ScriptedEngine

from toolwise.agent import Rollout, Sampling, run_agent
from toolwise.data import Message, Task
from toolwise.tools import ToolError, ToolResult

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-tool.md"


def answered(arguments: dict[str, Any]) -> Rollout:
    """A model calls the page's tool once, and answers with the last line that it read."""
    [code] = re.findall(r"```python\n(class .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    made: dict[str, Any] = {"ToolError": ToolError, "ToolResult": ToolResult}
    exec(code, made)

    def model(conversation: list[Message], tools: bool, index: int) -> str:
        assert tools
        if conversation[-1]["role"] == "user":
            call = {"name": "area", "arguments": arguments}
            return f"<tool_call>{json.dumps(call)}</tool_call>"
        return f"<answer>{conversation[-1]['content']}</answer>"

    task = Task(id="1", source="page", question="How large?", answer=("12.0",), ability="math")
    sampling = Sampling(temperature=1.0)
    [rollout] = asyncio.run(
        run_agent(ScriptedEngine(model), [task], [made["AreaTool"]()], sampling=sampling)
    )
    return rollout


@pytest.mark.parametrize(
    ("arguments", "result", "failed"),
    [({"width": 3, "height": 4}, "12.0", False), ({"width": 3}, "two numbers", True)],
)
def test_the_model_reads_what_the_tool_says(
    arguments: dict[str, Any], result: str, failed: bool
) -> None:
    rollout = answered(arguments)
    [call] = rollout.calls
    assert call.result.is_error is failed
    assert result in call.result.text
    assert result in str(rollout.answer)
