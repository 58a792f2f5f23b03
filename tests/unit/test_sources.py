"""Every published format, with rows as their publishers write them."""

import base64
import importlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from toolwise.data import AnswerType, Task, Trajectory, decode_image, encode_image
from toolwise.data.parquet import Rejects, write_tasks, write_trajectories
from toolwise.data.sources import SOURCES, published_tasks, published_trajectories
from toolwise.data.sources.conversation import Said, build_messages
from toolwise.data.sources.options import choices_of, lettered_options
from toolwise.errors import InputError

SAMPLES = Path(__file__).parents[1] / "data" / "sources"
RED, BLUE = (encode_image(Image.new("RGB", (4, 4), colour)) for colour in ("red", "blue"))
CALL = '<tool_call>{"name": "python", "arguments": {"code": "print(1)"}}</tool_call>'

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
    ((row, why),) = reasons(rejects)
    assert row == 0
    assert why.startswith("no known source has the columns ['text']")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.parquet, \.jsonl, \.json file"):
        list(published_tasks(tmp_path / "empty", rejects))


def sample(name: str, rejects: Rejects, source: str | None) -> list[Trajectory]:
    return list(published_trajectories(SAMPLES / name, rejects, source))


def spoken(trajectory: Trajectory) -> list[str]:
    """Its turns in a line each: the role, the text, the calls, how many pictures."""
    lines = []
    for message in trajectory.messages:
        content = message["content"]
        if isinstance(content, list):
            shown = ["[picture]" if p["type"] == "image" else p["text"] for p in content]
            content = " ".join(shown)
        calls = [
            f" {call['id']}: {call['function']['name']} {call['function']['arguments']}"
            for call in message.get("tool_calls", ())
        ]
        answers = f" -> {message['tool_call_id']}" if "tool_call_id" in message else ""
        lines.append(f"{message['role']}{answers}: {content}{''.join(calls)}")
    return lines


def test_there_is_a_sample_of_every_source_but_the_format_several_share() -> None:
    assert {path.name for path in SAMPLES.iterdir() if path.is_dir()} - {"__pycache__"} == (
        SOURCES.keys() - {"verl"}
    )
    for name, source in SOURCES.items():
        assert source.name == name
        module = importlib.import_module(f"toolwise.data.sources.{name}")
        assert module.SOURCE is source
        assert source.url in module.__doc__, "the docstring cites where it is published"


@pytest.mark.parametrize("source", ["metis_rl", None])
def test_metis_rl(rejects: Rejects, source: str | None) -> None:
    tasks = list(published_tasks(SAMPLES / "metis_rl", rejects, source))
    assert [(t.id, t.ability, t.answer, t.answer_type) for t in tasks] == [
        ("vthinker-sft/source_index_0", "math", ("8/3",), AnswerType.MATH),
        ("deepeyes-perception/source_index_1", "perception", ("B",), AnswerType.CHOICE),
        ("fvqa/source_index_2", "search", ("1826",), AnswerType.EXACT),
    ]
    assert tasks[0].question == "One block weighs 2/3 kg. And all?"
    assert tasks[0].source == "vthinker-sft"
    assert tasks[0].metadata == {"pass8": 0}
    assert tasks[1].choices == ("three", "four")
    assert all(task.pil_images()[0].size == (120, 40) for task in tasks)
    ((row, why),) = reasons(rejects)
    assert row == 3
    assert "`reward_model.ground_truth" in why
    assert sample("metis_rl", rejects, source) == []
    assert rejects.count == 5, "and three questions without a conversation"


@pytest.mark.parametrize("source", ["metis_coldstart", None])
def test_metis_coldstart(rejects: Rejects, source: str | None) -> None:
    look, add, search = sample("metis_coldstart", rejects, source)
    assert spoken(look) == [
        "user: [picture] Which colour has the third block?",
        "assistant: <reason>The block is small.</reason>"
        " call_0: python {'code': 'show(image_1.crop((44, 8, 64, 32)))'}",
        "tool -> call_0: [picture]",
        "assistant: <reason>It is blue.</reason>\n<answer>blue</answer>",
    ]
    assert [image.size for image in look.task.pil_images()] == [(120, 40)]
    assert decode_image(look.messages[2]["content"][0]["image"]).size == (20, 24)
    assert spoken(add)[2] == "tool -> call_0: 55"
    assert search.messages[1]["tool_calls"][0]["function"] == {
        "name": "text_search",
        "arguments": {"query": "who first made aniline"},
    }
    assert (search.task.id, search.task.ability) == ("metis-coldstart/sft_2", "search")
    assert search.task.answer == ("Otto Unverdorben",)
    assert rejects.count == 0


@pytest.mark.parametrize("source", ["deepeyesv2_sft", None])
def test_deepeyesv2_sft_with_its_pictures_in_a_zip(rejects: Rejects, source: str | None) -> None:
    size, zoom, logo = sample("deepeyesv2_sft", rejects, source)
    assert spoken(size) == [
        "user: [picture] How many pixels is the picture wide and high?",
        "assistant: <reason>I will ask for its size.</reason>"
        " call_0: python {'code': 'print(image_1.size)'}",
        "tool -> call_0: (120, 40)",
        "assistant: <reason>It is 120 by 40.</reason>\n<answer>120x40</answer>",
    ]
    assert spoken(zoom)[2] == "tool -> call_0: [picture]"
    assert [line.partition(":")[0] for line in spoken(logo)] == [
        "user",
        "assistant",
        "tool -> call_0",
        "assistant",
        "tool -> call_1",
        "assistant",
    ]
    calls = [call["function"] for m in logo.messages for call in m.get("tool_calls", ())]
    assert calls == [
        {"name": "image_search", "arguments": {}},
        {"name": "text_search", "arguments": {"query": "block logo author"}},
    ]
    assert "[picture] [Block logo]" in spoken(logo)[2]
    assert (logo.task.id, logo.task.source) == ("sft_part_1/0", "deepeyesv2_sft")
    assert logo.task.metadata == {"reference": "own answer"}
    assert reasons(rejects) == [
        (1, "the image images/absent_000.jpg is not there, nor in a zip archive beside the data")
    ]


@pytest.mark.parametrize("source", ["deepeyesv2_rl", None])
def test_deepeyesv2_rl(rejects: Rejects, source: str | None) -> None:
    tasks = list(published_tasks(SAMPLES / "deepeyesv2_rl", rejects, source))
    assert [(t.question, t.ability, t.answer, t.answer_type) for t in tasks] == [
        ("Where is the block?\nA) left\nB) right", "perception", ("A",), AnswerType.CHOICE),
        ("Which colour?", "perception", ("blue",), AnswerType.OPEN),
        ("What is the number of blocks, squared?", "math", ("9",), AnswerType.OPEN),
        ("When was this dye first made?", "search", ("1826",), AnswerType.OPEN),
    ]
    assert rejects.count == 0


@pytest.mark.parametrize("source", ["thyme_sft", None])
def test_thyme_sft(rejects: Rejects, source: str | None) -> None:
    squares, crop, direct = sample("thyme_sft", rejects, source)
    assert spoken(squares) == [
        "user: What is the sum of the first 100 squares?",
        "assistant: <reason>A formula, and code to be sure.</reason>"
        " call_0: python {'code': 'print(sum(n * n for n in range(101)))'}",
        "tool -> call_0: 338350",
        "assistant: <reason>So 338350.</reason><answer>338350</answer>",
    ]
    assert (squares.task.ability, squares.task.answer_type) == ("math", AnswerType.MATH)
    assert crop.task.question == "Which colour has the last block? Options:\nA. red\nB. blue"
    assert (crop.task.answer, crop.task.choices) == (("B",), ("red", "blue"))
    assert spoken(crop)[2:] == [
        "tool -> call_0: [picture]",
        "assistant: <reason>It is blue.</reason><answer>B</answer>",
    ]
    assert crop.task.images[0].startswith(b"\xff\xd8"), "kept as it came"
    assert spoken(direct)[1:] == ["assistant: <reason>Two.</reason><answer>2</answer>"]
    assert reasons(rejects) == [(2, "an image cannot be read: Truncated File Read")]


@pytest.mark.parametrize("source", ["v_interaction", None])
def test_v_interaction(rejects: Rejects, source: str | None) -> None:
    written, unwritten = sample("v_interaction", rejects, source)
    assert spoken(written)[2:] == [
        "tool -> call_0: [picture]",
        "assistant: <reason>Two are whole.</reason><answer>2</answer>",
    ]
    assert spoken(unwritten) == spoken(written), "the edited picture is what the code gave"
    assert written.messages[2]["content"][0]["image"] != written.task.images[0]
    assert len(written.task.images) == 1
    assert written.task.answer == ("2",)
    assert written.task.metadata == {}, "it has a reference answer"
    assert reasons(rejects) == [(2, "a code block without a <sandbox_output>")]


def test_openmmreasoner(rejects: Rejects) -> None:
    rl, picture, text = published_tasks(SAMPLES / "openmmreasoner", rejects, "openmmreasoner")
    assert (rl.id, rl.answer, rl.answer_type) == ("virl39k/0", ("1.5",), AnswerType.MATH)
    assert (picture.id, picture.source, picture.answer) == ("mmr1_0", "openmmreasoner", ("3",))
    assert len(picture.images) == 1
    assert (text.question, text.images) == ("What is 7 · 8?", ())
    ((row, why),) = reasons(rejects)
    assert row == 2
    assert "lies outside" in why
    trajectories = sample("openmmreasoner/sft", rejects, "openmmreasoner")
    assert spoken(trajectories[0])[1:] == ["assistant: <reason>I count.</reason><answer>3</answer>"]


def test_plain_openai_messages(rejects: Rejects) -> None:
    (trajectory,) = sample("openai_messages", rejects, None)
    assert (trajectory.task.id, trajectory.task.source) == ("line-1", "blocks")
    assert (trajectory.task.answer, trajectory.task.ability) == (("2", "two"), "perception")
    assert spoken(trajectory) == [
        "user: [picture] How many blocks?",
        "assistant:  c1: python {'code': 'print(1 + 1)'}",
        "tool -> c1: 2",
        "assistant: <answer>2</answer>",
    ]
    assert [row for row, _ in reasons(rejects)] == [1]


def test_plain_sharegpt(rejects: Rejects) -> None:
    (trajectory,) = sample("sharegpt", rejects, None)
    assert [m["role"] for m in trajectory.messages] == ["user", "assistant", "tool", "assistant"]
    assert reasons(rejects) == [(1, "the conversation does not start with a user turn")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>a</think><sandbox_output>1</sandbox_output><answer>1</answer>", "no code block"),
        ("<code>print(1)</code><answer>1</answer>", "without a <sandbox_output>"),
        ("<think>no answer</think>", "no final <answer>"),
        ("<code>print(1)</code><sandbox_output><image></sandbox_output><answer>1</answer>", "more"),
    ],
)
def test_answers_whose_code_and_results_do_not_pair_are_rejected(
    tmp_path: Path, rejects: Rejects, text: str, reason: str
) -> None:
    row = {"image": None, "question": "1?", "response": text}
    (tmp_path / "thyme.jsonl").write_text(json.dumps(row))
    assert list(published_trajectories(tmp_path / "thyme.jsonl", rejects)) == []
    assert reason in reasons(rejects)[0][1]


def test_warnings_and_pictures_of_a_code_result_follow_what_it_printed() -> None:
    result = (
        "Code execution result:\nstdout:\n```\n1\n2\n```\n\nstderr:\n```\nold\n```\n\n<image>\n"
    )
    turns = [Said("user", "q"), Said("assistant", "<code>\nf()\n</code>"), Said("user", result)]
    (_, call, tool) = build_messages(turns, [RED])
    assert call["tool_calls"][0]["function"]["arguments"] == {"code": "f()"}
    assert tool["content"] == [
        {"type": "text", "text": "1\n2\nold"},
        {"type": "image", "image": RED},
    ]


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which?\nA. one\nB. two", ("one", "two")),
        ("Which?\n(A) one\n(B) two\n(C) three", ("one", "two", "three")),
        ("Which?\nA: one\nB) two", ("one", "two")),
        ("Which?\nA. one\nC. two", ()),
        ("A. Smith drew it.\nWho?", ()),
        ("Is it A. or B.?", ()),
    ],
)
def test_lettered_options(question: str, options: tuple[str, ...]) -> None:
    assert lettered_options(question) == options


def test_a_question_with_options_whose_answer_is_none_of_them_is_no_choice() -> None:
    question = "How long, in steps of\nA. a second\nB. a minute?"
    kept = (AnswerType.EXACT, ())
    assert choices_of(question, ["12"], AnswerType.EXACT) == kept
    assert choices_of(question, ["B"], AnswerType.EXACT)[0] is AnswerType.CHOICE


def test_a_picture_whose_end_is_missing_is_rejected(tmp_path: Path, rejects: Rejects) -> None:
    """Its beginning is whole, so only decoding all of it tells."""
    whole = encode_image(Image.effect_noise((64, 64), 100))
    for name, data in (("whole", whole), ("cut", whole[: len(whole) // 2])):
        row = {"image": [base64.b64encode(data).decode()], "question": "<image>?"}
        line = json.dumps({**row, "response": "<answer>1</answer>"})
        (tmp_path / f"{name}.jsonl").write_text(line)
    (task,) = published_tasks(tmp_path / "whole.jsonl", rejects)
    assert task.images == (whole,)
    assert list(published_tasks(tmp_path / "cut.jsonl", rejects)) == []
    assert "an image cannot be read" in reasons(rejects)[0][1]


def test_pictures_are_found_in_an_archive_and_in_a_folder_apart(
    tmp_path: Path, rejects: Rejects
) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "<image><image>?"},
            {"role": "assistant", "content": "<answer>1</answer>"},
        ],
        "images": ["deep/red.png", "blue.png"],
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text(json.dumps(row))
    apart = tmp_path / "pictures.zip"
    with zipfile.ZipFile(apart, "w") as archive:
        archive.writestr("pictures/deep/red.png", RED)
        archive.writestr("blue.png", BLUE)
    assert list(published_tasks(tmp_path / "data", rejects)) == []
    (task,) = published_tasks(tmp_path / "data", rejects, images=apart)
    assert task.images == (RED, BLUE)
    with zipfile.ZipFile(apart) as archive:
        archive.extractall(tmp_path / "apart")
    (tmp_path / "apart" / "deep").mkdir()
    (tmp_path / "apart" / "pictures" / "deep" / "red.png").rename(
        tmp_path / "apart" / "deep" / "red.png"
    )
    (task,) = published_tasks(tmp_path / "data", rejects, images=tmp_path / "apart")
    assert task.images == (RED, BLUE)


def test_a_data_set_in_the_hubs_cache_of_links_is_read(tmp_path: Path, rejects: Rejects) -> None:
    """A snapshot is a folder of links to files that lie beside it."""
    file = sharegpt_file(tmp_path / "blobs", [SHAREGPT])
    snapshot = tmp_path / "snapshots" / "0123"
    (snapshot / "pictures").mkdir(parents=True)
    for name in ("deepeyes.json", "pictures/red.png", "pictures/blue.png"):
        (snapshot / name).symlink_to(file.parent / name)
    assert len(list(published_trajectories(snapshot, rejects))) == 1


def test_a_glob_names_some_files(tmp_path: Path, rejects: Rejects) -> None:
    for part in ("train_1", "train_2", "other"):
        write_tasks(tmp_path / f"{part}.parquet", [Task(part, "s", "math", "1?", ("1",))])
    read = published_tasks(f"{tmp_path}/train_*.parquet", rejects)
    assert [task.id for task in read] == ["train_1", "train_2"]


def test_files_about_the_data_are_no_data(tmp_path: Path, rejects: Rejects) -> None:
    sharegpt_file(tmp_path / "data", [SHAREGPT])
    (tmp_path / "data" / "dataset_info.json").write_text('{"deepeyes": {"file_name": "…"}}')
    (tmp_path / "data" / ".cache").mkdir()
    (tmp_path / "data" / ".cache" / "download.json").write_text("[1]")
    assert len(list(published_trajectories(tmp_path / "data", rejects))) == 1
    assert rejects.count == 0


@pytest.mark.parametrize(
    ("name", "text"), [("rows.json", '[{"messages": [], '), ("rows.parquet", "PAR1")]
)
def test_a_damaged_file_is_an_error_and_not_fewer_rows(
    tmp_path: Path, rejects: Rejects, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=name):
        list(published_tasks(tmp_path, rejects))


def test_anybody_adds_a_source_by_a_module_of_their_own(
    tmp_path: Path, rejects: Rejects, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ours_alone.py").write_text(
        "from toolwise.data import Task\n"
        "from toolwise.data.sources.source import Source\n"
        "def read(row, number, file):\n"
        "    return Task(f'{file.stem}/{number}', 'ours', 'math', row['q'], (row['a'],))\n"
        "SOURCE = Source('ours_alone', 'https://example.com', read)\n"
    )
    (tmp_path / "package").mkdir()
    (tmp_path / "ours_alone.py").rename(tmp_path / "package" / "ours_alone.py")
    (tmp_path / "rows.jsonl").write_text('{"q": "1+1?", "a": "2"}\n{"q": "no answer"}\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    (task,) = published_tasks(tmp_path / "rows.jsonl", rejects, "package.ours_alone")
    assert (task.id, task.question, task.answer) == ("rows/0", "1+1?", ("2",))
    assert reasons(rejects) == [(1, "the column 'a' is missing")]
    for wrong, told in [("thyme", "there are: .*thyme_sft"), ("package.nothing", "cannot be had")]:
        with pytest.raises(InputError, match=told):
            list(published_tasks(tmp_path / "rows.jsonl", rejects, wrong))
