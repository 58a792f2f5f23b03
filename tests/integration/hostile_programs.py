"""The programs of tests/data/hostile.toml, and a host with something to be had."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from toolwise.tools import ToolResult
from toolwise.tools.sandbox import SandboxSession

DATA = tomllib.loads((Path(__file__).parents[1] / "data" / "hostile.toml").read_text())
PRISE = "ESCAPED"
Program = dict[str, Any]
PROGRAMS: list[Program] = [
    program
    for program in DATA["program"]
    if program.get("machine", platform.machine()) == platform.machine()
]


def named(programs: Sequence[Program]) -> list[Any]:
    """As the parameters of a test."""
    return [pytest.param(program, id=program["name"]) for program in programs]


class Host(NamedTuple):
    """What there is to be had on the host; each holds the prise."""

    secret: Path
    victim: int
    port: int
    name: str

    def attack(
        self, program: Program, attacker: SandboxSession, partner: SandboxSession
    ) -> ToolResult:
        """The answer to a program, after its partner has run in the other session."""
        if "partner" in program:
            partner.call(self._code(program["partner"]))
        return attacker.call(self._code(program["code"]))

    def _code(self, text: str) -> str:
        values = {"SECRET": self.secret, "VICTIM": self.victim, "PORT": self.port}
        for key, value in {**values, "NAME": self.name}.items():
            text = text.replace(f"@{key}@", str(value))
        return f"{DATA['prelude']}\n{text}"


@contextlib.contextmanager
def host_with_a_prise(folder: Path) -> Iterator[Host]:
    """A file, a process, a listening port and an abstract socket, all untouched in the end."""
    secret = folder / "secret"
    secret.write_text(PRISE)
    name = f"toolwise-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract,
        subprocess.Popen(["sleep", "10000"], env={"KEY": PRISE}) as victim,
    ):
        abstract.bind(f"\0{name}")
        yield Host(secret, victim.pid, int(server.getsockname()[1]), name)
        assert victim.poll() is None
        victim.kill()
    assert [path.read_text() for path in folder.iterdir()] == [PRISE]
