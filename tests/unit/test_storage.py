import signal
import subprocess
import sys
from pathlib import Path

import pytest

from toolwise.errors import InputError
from toolwise.storage import atomic_directory, atomic_file, local_copy, publish

KILLED_WRITER = """
import sys
from toolwise.storage import atomic_directory
with atomic_directory(sys.argv[1]) as room:
    (room / "half").write_text("written")
    print(room, flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def start_writer(final: Path) -> tuple["subprocess.Popen[str]", Path]:
    """A process in the middle of writing `final`, and the room it writes in."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(final)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_a_finished_file_is_under_its_name_and_nothing_else_is_left(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "new" / "a.json") as partial:
        partial.write_text("{}")
        assert not (tmp_path / "new" / "a.json").exists()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path: Path) -> None:
    final = tmp_path / "a.json"
    final.write_text("old")

    def fail_halfway() -> None:
        with atomic_file(final) as partial:
            partial.write_text("new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_halfway()
    assert final.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_directory_replaces_the_old_one_whole(tmp_path: Path) -> None:
    final = tmp_path / "model"
    final.mkdir()
    (final / "stale").write_text("x")
    with atomic_directory(final) as room:
        (room / "deep").mkdir()
        (room / "deep" / "weights").write_text("w")
        assert (final / "stale").exists()
    assert [p.relative_to(final).as_posix() for p in final.rglob("*")] == ["deep", "deep/weights"]
    assert names(tmp_path) == ["model"]


def test_a_failed_directory_leaves_nothing(tmp_path: Path) -> None:
    def fail_halfway() -> None:
        with atomic_directory(tmp_path / "model") as room:
            (room / "weights").write_text("w")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_halfway()
    assert names(tmp_path) == []


def test_what_a_killed_writer_left_is_cleaned_by_the_next(tmp_path: Path) -> None:
    final = tmp_path / "model"
    process, room = start_writer(final)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert room.exists()
    assert not final.exists()

    with atomic_directory(final) as mine:
        (mine / "whole").write_text("x")
    assert names(tmp_path) == ["model"]
    assert names(final) == ["whole"]


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    final = tmp_path / "model"
    process, room = start_writer(final)
    with atomic_directory(final) as mine:
        (mine / "first").write_text("x")
    assert (room / "half").exists()
    process.communicate("")
    assert process.returncode == 0
    assert names(final) == ["half"]
    assert names(tmp_path) == ["model"]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(InputError, match=r"file.*cannot be written to"),
        atomic_file(tmp_path / "file" / "a.json"),
    ):
        pass


@pytest.mark.parametrize("as_uri", [False, True])
def test_local_content_is_used_in_place(tmp_path: Path, as_uri: bool) -> None:
    source = tmp_path / "with space.txt"
    source.write_text("x")
    assert local_copy(source.as_uri() if as_uri else str(source)) == source


def test_missing_content_and_unknown_schemes_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent does not exist"):
        local_copy(tmp_path / "absent")
    with pytest.raises(InputError, match="ftp://"):
        local_copy("ftp://host/file")


def test_publish_copies_files_and_directories_and_onto_itself_does_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a").write_text("x")
    publish(source, tmp_path / "copy")
    publish(source / "deep" / "a", (tmp_path / "b").as_uri())
    publish(source, source)
    assert (tmp_path / "copy" / "deep" / "a").read_text() == "x"
    assert (tmp_path / "b").read_text() == "x"
    assert (source / "deep" / "a").read_text() == "x"
