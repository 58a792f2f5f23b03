"""A spool: what one step has told MLflow, kept on disk until MLflow has taken it.

It is a folder with `journal.jsonl`, to which lines are only added, with `sent`, the number of its
bytes that MLflow has, and with copies of the artifacts. Whoever holds the lock on the journal owns
the spool; the lock goes with the process, so a spool that can be locked has been left behind. What
a killed process has written is in the journal, except for a line it was in the middle of; a crash
of the machine may cost the last seconds.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from toolwise.errors import BackendError
from toolwise.storage import atomic_file
from toolwise.tracking.entries import ENTRY, Entry

SPOOL_VARIABLE = "TOOLWISE_SPOOL"
"""Environment variable naming the folder of all spools; `~/.local/state/toolwise/spool` without."""


_JOURNAL = "journal.jsonl"


class Unsent(NamedTuple):
    """An entry, and how many bytes of the journal are sent with it."""

    entry: Entry
    end: int


class Spool:
    """One spool, owned by this process; `Spool.new` makes one, `left_behind` finds those of others.

    Args:
        folder: where it stands; `journal.jsonl` in it is locked by `journal`.
        journal: descriptor of the journal.
    """

    def __init__(self, folder: Path, journal: int) -> None:
        self.folder = folder
        self._journal = journal
        self._writing = threading.Lock()
        self._counter = folder / "sent"

    @classmethod
    def new(cls, uri: str) -> Spool:
        """An empty spool for MLflow at `uri`.

        Raises:
            BackendError: the folder cannot be written.
        """
        root, name = _folder(uri), f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        folder, unlocked = root / name, root / f".{name}"
        try:
            unlocked.mkdir(parents=True)
            journal = os.open(unlocked / _JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            fcntl.flock(journal, fcntl.LOCK_EX)
            unlocked.rename(folder)
        except OSError as error:
            raise _unwritable(root, error) from error
        return cls(folder, journal)

    @property
    def name(self) -> str:
        """What it is called, in its folder and in the tag of its MLflow run."""
        return self.folder.name

    def append(self, entry: Entry) -> None:
        """Add an entry.

        Raises:
            BackendError: the disk does not take it.
        """
        line = ENTRY.dump_json(entry) + b"\n"
        try:
            with self._writing:
                self._write(line)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def _write(self, line: bytes) -> None:
        end = os.fstat(self._journal).st_size
        written = os.write(self._journal, line)
        if written < len(line):  # a disk that is all but full takes a part, and says nothing
            os.ftruncate(self._journal, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def keep(self, path: Path) -> str:
        """Copy a file or folder into the spool; returns the copy's path within it.

        Raises:
            BackendError: the disk does not take it.
        """
        target = self.folder / "files" / uuid.uuid4().hex / path.name
        try:
            target.parent.mkdir(parents=True)
            if path.is_dir():
                shutil.copytree(path, target)
            else:
                shutil.copyfile(path, target)
        except shutil.Error as errors:  # of a folder: source, target and text for each file
            raise _unwritable(
                self.folder, OSError(errno.EIO, str(errors.args[0][0][2]))
            ) from errors
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        return target.relative_to(self.folder).as_posix()

    def entries(self) -> list[Entry]:
        """All entries, sent or not; none where not even the first was written."""
        return [unsent.entry for unsent in self._read(0)]

    def unsent(self) -> list[Unsent]:
        """The entries not marked as sent, in order."""
        return list(self._read(self._sent()))

    def mark_sent(self, unsent: Unsent) -> None:
        """MLflow has this entry and those before it."""
        with atomic_file(self._counter) as partial:
            partial.write_text(str(unsent.end))

    def remove(self) -> None:
        """Everything is sent."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._journal)

    def set_aside(self) -> Path:
        """Keep it where no run looks for spools; returns where."""
        os.close(self._journal)
        return self.folder.rename(self.folder.with_name(f"refused-{self.name}"))

    def release(self) -> None:
        """Leave it to whoever comes next."""
        os.close(self._journal)

    def _sent(self) -> int:
        return int(self._counter.read_text()) if self._counter.exists() else 0

    def _read(self, start: int) -> Iterator[Unsent]:
        with (self.folder / _JOURNAL).open("rb") as lines:
            lines.seek(start)
            end = start
            for line in lines:
                if not line.endswith(b"\n"):  # its writer was killed in the middle of it
                    return
                end += len(line)
                yield Unsent(ENTRY.validate_json(line), end)


def left_behind(uri: str) -> Iterator[Spool]:
    """The spools for MLflow at `uri` that no process owns any more, oldest first, made ours."""
    for folder in sorted(_folder(uri).glob("[0-9]*")):
        try:
            journal = os.open(folder / _JOURNAL, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:  # its owner has just removed it
            continue
        except PermissionError:  # another user's, who has to send it
            continue
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(journal)
            continue
        if (folder / _JOURNAL).exists():
            yield Spool(folder, journal)
        else:
            os.close(journal)


def is_live(uri: str, name: str) -> bool:
    """Whether a process of this machine owns the spool of that name for MLflow at `uri`."""
    try:
        journal = os.open(_folder(uri) / name / _JOURNAL, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except PermissionError:  # another user's: it cannot be told
        return True
    try:
        fcntl.flock(journal, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(journal)


def _unwritable(folder: Path, error: OSError) -> BackendError:
    return BackendError(
        f"{folder} cannot be written: {error.strerror}; what MLflow is told is kept there "
        f"({SPOOL_VARIABLE} names another folder)"
    )


def _folder(uri: str) -> Path:
    root = Path(os.environ.get(SPOOL_VARIABLE) or "~/.local/state/toolwise/spool").expanduser()
    return root / hashlib.sha256(uri.encode()).hexdigest()[:16]
