"""Many calls in a row leave nothing behind; `python -m bench sandbox` makes ten times as many."""

from __future__ import annotations

import json
import mmap
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bench.sandbox import Held, Soak

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing")


def test_a_thousand_calls_over_a_pool_of_four_leave_nothing_behind() -> None:
    # In a process of its own: this one may still tidy up after, or serve, other tests.
    code = "import json; from bench.sandbox import soak; print(json.dumps(soak(1000)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    left = Soak(*json.loads(done.stdout))
    assert left.processes_left <= 0
    assert left.descriptors_left <= 0
    assert left.files_left <= 0
    assert left.memory_growth_mb < 20


def test_what_is_left_is_seen(tmp_path: Path) -> None:
    """So the test above can fail."""
    before = Held.by_us(tmp_path)
    # Of its own, not out of what the process holds already.
    block = mmap.mmap(-1, 30_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.write(bytes(range(256)) * (len(block) // 256))
    with tempfile.NamedTemporaryFile(dir=tmp_path):
        after = Held.by_us(tmp_path)
    assert after.files - before.files == 1
    assert after.descriptors - before.descriptors == 1
    assert after.megabytes - before.megabytes > 20
    block.close()
