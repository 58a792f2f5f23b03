"""A spool keeps whole lines, whatever the disk does."""

import resource
from pathlib import Path

import pytest

from toolwise.errors import BackendError
from toolwise.tracking.entries import Tag
from toolwise.tracking.spool import SPOOL_VARIABLE, Spool


def test_an_entry_that_half_fits_on_the_disk_is_not_there_and_the_next_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(SPOOL_VARIABLE, str(tmp_path))
    spool = Spool.new("sqlite:///mlflow.db")
    first, second, third = (Tag(key="step", value=word * 40) for word in ("one", "two", "three"))
    spool.append(first)
    room = (spool.folder / "journal.jsonl").stat().st_size + 50
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(BackendError, match="cannot be written: No space left"):
            spool.append(second)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    spool.append(third)
    assert spool.entries() == [first, third]
    spool.remove()
