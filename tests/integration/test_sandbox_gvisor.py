"""The sandbox server and the chart's test of it, both on gVisor's kernel."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUNSC = shutil.which("runsc")
ROOT = Path(__file__).parents[2]
ASK = ROOT / "charts" / "toolwise" / "files" / "ask_sandbox.py"
BOTH = """
cd {root}
{python} -m toolwise.tools.server --port 8080 --isolation none --workers 1 >&2 &
until (exec 3<>/dev/tcp/127.0.0.1/8080) 2>/dev/null; do kill -0 $! || exit 70; sleep 0.2; done
exec {python} {ask} http://127.0.0.1:8080 {lowest} {targets}
"""


def asked(lowest: str, *targets: str) -> subprocess.CompletedProcess[str]:
    script = BOTH.format(
        root=ROOT, python=sys.executable, ask=ASK, lowest=lowest, targets=" ".join(targets)
    )
    command = [RUNSC or "", "--network=none", "--ignore-cgroups", "do", "/bin/bash", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(RUNSC is None, reason="runsc is missing (Debian: apt-get install runsc)")
def test_the_server_says_it_is_gvisor_and_runs_code_that_reaches_nothing() -> None:
    done = asked("gvisor", "192.0.2.1:443")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "isolation: gvisor\n192.0.2.1:443: out of reach\n"
