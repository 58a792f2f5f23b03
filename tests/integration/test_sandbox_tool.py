"""The `python` tool over a real sandbox: many sessions at once, event loops come and go."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_tools import descendants, picture, png, processes_of, send

from toolwise.data import decode_image
from toolwise.errors import InputError
from toolwise.tools import Tool, ToolError, ToolResult, open_tools
from toolwise.tools.python import PythonTool
from toolwise.tools.sandbox.local import LocalSandbox

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing")


@pytest.fixture(scope="module")
def tool() -> Iterator[PythonTool]:
    tool = PythonTool()
    yield tool
    asyncio.run(tool.aclose())


async def call_once(tool: Tool, seed: int) -> ToolResult:
    session = await tool.open([png(seed)])
    try:
        return await session.call({"code": f"show(image.crop((0, 0, 9, 9))); print({seed})"})
    finally:
        await session.close()


@pytest.mark.parametrize("arguments", [{}, {"code": 3}, {"code": None}, {"code": ["print(1)"]}])
async def test_arguments_that_are_no_code_are_the_models_fault(
    tool: PythonTool, arguments: dict[str, object]
) -> None:
    session = await tool.open([])
    with pytest.raises(ToolError, match="`code` must be a string"):
        await session.call(arguments)
    await session.close()


def test_many_sessions_at_once_in_one_event_loop_after_another(tool: PythonTool) -> None:
    async def batch() -> list[ToolResult]:
        return await asyncio.gather(*(call_once(tool, seed) for seed in range(40)))

    for _ in range(2):
        for seed, result in enumerate(asyncio.run(batch())):
            assert result.text == str(seed)
            assert decode_image(result.images[0]) == picture(seed).crop((0, 0, 9, 9))


def test_a_session_outlives_the_event_loop_it_was_opened_in(tool: PythonTool) -> None:
    async def first() -> object:
        session = await tool.open([])
        await session.call({"code": "x = 5"})
        return session

    session = asyncio.run(first())
    assert asyncio.run(session.call({"code": "print(x)"})).text == "5"  # type: ignore[attr-defined]
    asyncio.run(session.close())  # type: ignore[attr-defined]


async def test_the_event_loop_is_free_while_code_runs(tool: PythonTool) -> None:
    session = await tool.open([])
    call = asyncio.create_task(session.call({"code": "import time; time.sleep(1); print('done')"}))
    steps = 0
    while not call.done():
        await asyncio.sleep(0.01)
        steps += 1
    assert steps > 5
    assert (await call).text == "done"
    await session.close()
    await session.close()  # safe to repeat


async def test_a_cancelled_call_ends_with_its_session(tool: PythonTool) -> None:
    session = await tool.open([])
    await session.call({"code": "1"})
    call = asyncio.create_task(session.call({"code": "while True: pass"}))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    started = time.monotonic()
    await session.close()
    assert time.monotonic() - started < 5.0


async def test_the_event_loop_is_free_while_a_busy_supervisor_is_told_to_close() -> None:
    tool = PythonTool(workers=1)
    session = await tool.open([])
    await session.call({"code": "1"})
    assert isinstance(tool._sandbox, LocalSandbox)
    worker = processes_of(tool._sandbox)
    send(signal.SIGSTOP, worker)
    control = tool._sandbox.worker(())._control
    control.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            control.send(b"end nobody")
    control.settimeout(5.0)
    closing = asyncio.create_task(session.close())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not closing.done()
    send(signal.SIGCONT, worker)
    await closing
    await tool.aclose()


async def test_open_tools_gives_search_only_with_a_corpus(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "1", "title": "t", "text": "needle"}\n')
    before = descendants()
    tools = open_tools(corpus, workers=1)
    assert [tool.name for tool in tools] == ["python", "text_search"]
    assert [tool.name for tool in tools] == [tool.schema["function"]["name"] for tool in tools]
    for tool in tools:
        await tool.aclose()
    assert descendants() <= before
    (only,) = open_tools(None, workers=1)
    assert only.name == "python"
    await only.aclose()


def test_open_tools_names_an_isolation_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none, bubblewrap, gvisor"):
        open_tools(None, "docker")
