"""Programs that attack the sandbox (tests/data/hostile.toml): none gets out or disturbs another."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hostile_programs import PRISE, PROGRAMS, Host, Program, host_with_a_prise, named
from sandbox_tools import eventually, png, processes_of

from toolwise.tools.sandbox import SandboxLimits, open_sandbox
from toolwise.tools.sandbox.local import LocalSandbox, LocalSession

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing")
LIMITS = SandboxLimits(seconds=30.0, memory_mb=512)
IMPATIENT = replace(LIMITS, seconds=0.5)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host_with_a_prise(tmp_path_factory.mktemp("host")) as host:
        yield host


COUNT = """
n += 1
read, write = os.pipe()
one, other = socket.socketpair()
os.write(write, b"%d " % n)
one.sendall(os.read(read, 9) + open("/tmp/kept", "rb").read())
print(other.recv(99).decode())
for end in (read, write): os.close(end)
for end in (one, other): end.close()
"""


class Bystander:
    """A session of the same worker that counts, call after call, for as long as it is watched.

    Each number goes through a pipe, a pair of sockets and a file.
    """

    def __init__(self, sandbox: LocalSandbox) -> None:
        self._session = sandbox.open([])
        self._session.call("import os, socket; open('/tmp/kept', 'w').write('kept'); n = 0")
        self._stop = threading.Event()
        self.answers: list[str] = []
        self._thread = threading.Thread(target=self._count)
        self._thread.start()

    def _count(self) -> None:
        while not self._stop.is_set():
            self.answers.append(self._session.call(COUNT).text)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._session.close()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[LocalSandbox]:
    """One worker, so that all sessions are as close as sessions get."""
    os.environ["TOOLWISE_TEST_CREDENTIAL"] = PRISE
    sandbox = LocalSandbox(workers=1, limits=LIMITS)
    del os.environ["TOOLWISE_TEST_CREDENTIAL"]
    session = sandbox.open([])
    session.call("1")
    started = processes_of(sandbox)
    session.close()
    assert eventually(lambda: processes_of(sandbox) < started)
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize("program", named(PROGRAMS))
def test_it_stays_inside_and_nobody_notices(
    sandbox: LocalSandbox, host: Host, program: Program
) -> None:
    quiet = processes_of(sandbox)
    bystander = Bystander(sandbox)
    attacker = LocalSession(sandbox, [png()], IMPATIENT if program.get("endless") else LIMITS)
    partner = sandbox.open([])
    try:
        result = host.attack(program, attacker, partner)
        assert PRISE not in result.text
        assert re.search(program["says"], result.text), result.text
        assert len(result.text) < 13_000
        seen = len(bystander.answers)
        assert eventually(lambda: len(bystander.answers) > seen + 1)
        # Its own session may lie in ruins, but not for long.
        assert eventually(lambda: attacker.call("print(image.size)").text == "(96, 96)")
    finally:
        bystander.stop()
        attacker.close()
        partner.close()
    assert bystander.answers == [f"{n} kept" for n in range(1, len(bystander.answers) + 1)]
    assert eventually(lambda: processes_of(sandbox) == quiet)  # the worker is the same, and alone


@pytest.mark.parametrize("program", named([p for p in PROGRAMS if p.get("bare")]))
def test_without_walls_the_same_program_gets_what_it_wants(host: Host, program: Program) -> None:
    """So the test above can fail."""
    pool = open_sandbox("none", workers=1, limits=LIMITS)
    assert PRISE in host.attack(program, pool.open([png()]), pool.open([])).text
    pool.close()


def test_there_are_forty_programs_and_more() -> None:
    assert len(PROGRAMS) >= 40
    assert len({program["name"] for program in PROGRAMS}) == len(PROGRAMS)
