"""A spool keeps whole lines, whatever the disk does."""

import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from toolwise.errors import BackendError
from toolwise.tracking.entries import Tag
from toolwise.tracking.spool import SPOOL_VARIABLE, Spool, left_behind

URI = "sqlite:///mlflow.db"


@contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def without_roots_rights() -> Iterator[None]:
    """As the user nobody, where this is root, who may read everything."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(mine)


def test_an_entry_that_half_fits_on_the_disk_is_not_there_and_the_next_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(SPOOL_VARIABLE, str(tmp_path))
    spool = Spool.new(URI)
    first, second, third = (Tag(key="step", value=word * 40) for word in ("one", "two", "three"))
    spool.append(first)
    room = (spool.folder / "journal.jsonl").stat().st_size + 50
    with (
        disk_with_room_for(room),
        pytest.raises(BackendError, match="cannot be written: No space left"),
    ):
        spool.append(second)
    spool.append(third)
    assert spool.entries() == [first, third]
    spool.remove()


@pytest.mark.parametrize("whole", [False, True])
def test_a_file_that_the_disk_does_not_take_is_an_error_that_names_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
):
    monkeypatch.setenv(SPOOL_VARIABLE, str(tmp_path / "spool"))
    report = tmp_path / "files" / "report.json"
    report.parent.mkdir()
    report.write_bytes(b"x" * 10_000)
    spool = Spool.new(URI)
    with (
        disk_with_room_for(5_000),
        pytest.raises(BackendError, match=f"{spool.folder} cannot be written: .*File too large"),
    ):
        spool.keep(report.parent if whole else report)
    spool.remove()


def test_the_spool_of_another_user_is_left_to_that_user(monkeypatch: pytest.MonkeyPatch):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv(SPOOL_VARIABLE, folder)
        theirs, mine = Spool.new(URI), Spool.new(URI)
        for spool, mode in ((theirs, 0o000), (mine, 0o666)):
            (spool.folder / "journal.jsonl").chmod(mode)
            spool.release()
        with without_roots_rights():
            found = [*left_behind(URI)]
        assert [spool.name for spool in found] == [mine.name]
        found[0].release()
