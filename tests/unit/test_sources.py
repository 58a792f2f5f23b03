"""Every published format, with rows as their publishers write them."""

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from toolwise.data import AnswerType, Task, Trajectory, encode_image
from toolwise.data.parquet import Rejects, write_tasks, write_trajectories
from toolwise.data.sources import published_tasks, published_trajectories
from toolwise.errors import InputError

RED, BLUE = (encode_image(Image.new("RGB", (4, 4), colour)) for colour in ("red", "blue"))
CALL = '<tool_call>{"name": "python", "arguments": {"code": "print(1)"}}</tool_call>'

METIS_RL = {
    "data_source": "vthinker-sft",
    "prompt": [
        {"role": "system", "content": "You are an efficient agent."},
        {"role": "user", "content": "<image>\nWhat is the ratio?"},
    ],
    "images": [{"bytes": RED}],
    "ability": "math",
    "reward_model": {"ground_truth": "17/264", "style": "rule"},
    "extra_info": {
        "answer": "17/264",
        "index": "source_index_0",
        "pass8": 0,
        "question": "<image>\nWhat is the ratio?",
    },
}
SHAREGPT = {
    "messages": [
        {"role": "system", "content": "tools"},
        {"role": "user", "content": "<image>Which number?"},
        {"role": "assistant", "content": f"<reason>small</reason>{CALL}"},
        {"role": "user", "content": "<tool_response>\n<image>\n1</tool_response>"},
        {"role": "assistant", "content": "<answer>1</answer>"},
    ],
    "images": ["pictures/red.png", "pictures/blue.png"],
}
OPENAI = {
    "id": "line-1",
    "answer": ["1", "one"],
    "ability": "perception",
    "messages": [
        {"role": "system", "content": "tools"},
        {
            "role": "user",
            "content": [
                {
                    "type": "image_url",
                    "image_url": {"url": "data:image/png;base64," + base64.b64encode(RED).decode()},
                },
                {"type": "text", "text": "Which number?"},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "python", "arguments": '{"code": "print(1)"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "assistant", "content": "<answer>1</answer>"},
    ],
}


@pytest.fixture
def rejects(tmp_path: Path) -> Rejects:
    return Rejects(tmp_path / "rejects.jsonl")


def reasons(rejects: Rejects) -> list[tuple[int, str]]:
    lines = rejects.path.read_text().splitlines() if rejects.count else []
    return [(line["row"], line["reason"]) for line in map(json.loads, lines)]


def sharegpt_file(folder: Path, rows: list[Any]) -> Path:
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures" / "red.png").write_bytes(RED)
    (folder / "pictures" / "blue.png").write_bytes(BLUE)
    (folder / "deepeyes.json").write_text(json.dumps(rows))
    return folder / "deepeyes.json"


def test_metis_rl_rows_become_tasks(tmp_path: Path, rejects: Rejects) -> None:
    wrong = {**METIS_RL, "reward_model": {"ground_truth": None, "style": "rule"}}
    opened = {**METIS_RL, "reward_model": {"ground_truth": "a cat", "style": "model"}}
    folder = tmp_path / "data"
    folder.mkdir()
    table = pa.Table.from_pylist([METIS_RL, wrong, opened])
    pq.write_table(table, folder / "train-00000.parquet")
    tasks = list(published_tasks(folder, rejects))
    assert tasks[0] == Task(
        id="vthinker-sft/source_index_0",
        source="vthinker-sft",
        ability="math",
        question="What is the ratio?",
        answer=("17/264",),
        images=(RED,),
        answer_type=AnswerType.MATH,
        metadata={"pass8": 0},
    )
    assert tasks[1].answer_type is AnswerType.OPEN
    assert len(tasks) == 2
    assert rejects.count == 1
    assert reasons(rejects)[0][0] == 1
    assert "ground_truth" in reasons(rejects)[0][1]
    assert list(published_trajectories(folder, rejects)) == []
    assert rejects.count == 4


def test_sharegpt_rows_become_trajectories(tmp_path: Path, rejects: Rejects) -> None:
    file = sharegpt_file(tmp_path / "data", [SHAREGPT])
    (trajectory,) = published_trajectories(file, rejects)
    assert trajectory.task.images == (RED,)
    assert trajectory.task.question == "Which number?"
    assert trajectory.task.answer == ("1",)
    assert trajectory.task.metadata == {"reference": "own answer"}
    user, call, result, answer = trajectory.messages
    assert user["content"][0] == {"type": "image", "image": RED}
    assert call["content"] == "<reason>small</reason>"
    function = {"name": "python", "arguments": {"code": "print(1)"}}
    assert call["tool_calls"] == [{"id": "call_0", "type": "function", "function": function}]
    assert result == {
        "role": "tool",
        "tool_call_id": "call_0",
        "content": [{"type": "image", "image": BLUE}, {"type": "text", "text": "1"}],
    }
    assert answer == {"role": "assistant", "content": "<answer>1</answer>"}


def test_turns_from_value_with_calls_of_their_own(tmp_path: Path, rejects: Rejects) -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "1?"},
            {"from": "function_call", "value": '{"name": "text_search", "arguments": {}}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "<answer>1</answer>"},
        ]
    }
    (trajectory,) = published_trajectories(sharegpt_file(tmp_path / "d", [row]), rejects)
    assert [m["role"] for m in trajectory.messages] == ["user", "assistant", "tool", "assistant"]
    assert trajectory.tool_calls == 1


def test_openai_lines_become_trajectories(tmp_path: Path, rejects: Rejects) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(OPENAI) + "\nnot json\n[]\n")
    (trajectory,) = published_trajectories(file, rejects)
    assert trajectory.task == Task(
        id="line-1",
        source="rows",
        ability="perception",
        question="Which number?",
        answer=("1", "one"),
        images=(RED,),
    )
    function = {"name": "python", "arguments": {"code": "print(1)"}}
    assert trajectory.messages[1]["tool_calls"][0]["function"] == function
    assert trajectory.messages[2]["tool_call_id"] == "c1"
    assert [row for row, _ in reasons(rejects)] == [1, 2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": ["pictures/red.png"]}, "more <image> placeholders"),
        ({"images": ["pictures/red.png"] * 3}, "more images than"),
        ({"images": ["pictures/red.png", "../../secret.png"]}, "lies outside"),
        ({"images": ["pictures/red.png", "http://host/x.png"]}, "another machine"),
        ({"images": ["pictures/red.png", "pictures/absent.png"]}, "is not there"),
        (
            {"messages": SHAREGPT["messages"][2:4], "images": ["pictures/red.png"]},
            "start with a user",
        ),
        ({"messages": SHAREGPT["messages"][3:], "images": ["pictures/red.png"]}, "no call asked"),
        ({"messages": SHAREGPT["messages"][:2], "images": ["pictures/red.png"]}, "no reference"),
        ({"messages": [{"role": "narrator", "content": "once"}]}, "unknown role 'narrator'"),
        ({"messages": "text"}, "valid list"),
    ],
)
def test_rows_that_do_not_add_up_are_kept_with_their_reason(
    tmp_path: Path, rejects: Rejects, change: dict[str, Any], reason: str
) -> None:
    (tmp_path / "secret.png").write_bytes(RED)
    file = sharegpt_file(tmp_path / "a" / "data", [{**SHAREGPT, **change}, SHAREGPT])
    assert len(list(published_trajectories(file, rejects))) == 1
    ((row, why),) = reasons(rejects)
    assert row == 0
    assert reason in why


def test_our_own_files_and_unknown_ones(tmp_path: Path, rejects: Rejects) -> None:
    task = Task("t", "s", "math", "1+1?", ("2",))
    trajectory = Trajectory(task, ({"role": "user", "content": "1+1?"},))
    write_tasks(tmp_path / "tasks.parquet", [task])
    write_trajectories(tmp_path / "trajectories.parquet", [trajectory])
    assert list(published_tasks(tmp_path / "tasks.parquet", rejects)) == [task]
    read = published_trajectories(tmp_path / "trajectories.parquet", rejects)
    assert list(read) == [trajectory]
    assert list(published_tasks(tmp_path / "trajectories.parquet", rejects)) == [task]

    (tmp_path / "odd.jsonl").write_text('{"text": "once"}\n')
    assert list(published_tasks(tmp_path / "odd.jsonl", rejects)) == []
    assert reasons(rejects) == [(0, "no known format has the columns ['text']")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.parquet, \.jsonl, \.json file"):
        list(published_tasks(tmp_path / "empty", rejects))
