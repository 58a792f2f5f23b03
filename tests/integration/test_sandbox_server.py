"""The sandbox server as a process of its own, spoken to over HTTP by its client and by others."""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from hostile_programs import PRISE, PROGRAMS, Program, host_with_a_prise, named
from sandbox_tools import descendants, eventually, picture, png

from toolwise.data import decode_image
from toolwise.errors import BackendError, InputError
from toolwise.tools.python import PythonTool
from toolwise.tools.sandbox import Isolation, open_sandbox, remote
from toolwise.tools.sandbox.remote import RemoteSession
from toolwise.tools.server import reported_isolation

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing")

ADDRESSES = ["127.0.0.1", "127.0.0.2"]
ON_THE_SERVER = {
    "a file of the host",
    "the environment of a process of the host",
    "a port of the host",
    "two sessions, by an abstract socket",
    "fork bomb",
    "a child whose name is no text",
    "memory flood of many processes",
    "a length without end",
    "exit past Python",
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def start(
    port: int, isolation: str = "bubblewrap", host: str = "127.0.0.1", sessions: int = 1024
) -> subprocess.Popen[bytes]:
    program = f"from toolwise.tools import server; server.MAX_SESSIONS = {sessions}; server.main()"
    arguments = ["--host", host, "--port", str(port), "--isolation", isolation, "--workers", "1"]
    server = subprocess.Popen([sys.executable, "-c", program, *arguments])

    def healthy() -> bool:
        try:
            return httpx.get(f"http://{host}:{port}/health").is_success
        except httpx.TransportError:
            return False

    assert eventually(healthy, 120.0)
    return server


def stop(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGTERM)
    server.wait(60)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port()
    server = start(port)
    yield f"http://127.0.0.1:{port}"
    stop(server)


@pytest.fixture
def port_of_two(monkeypatch: pytest.MonkeyPatch) -> int:
    """A port at both addresses of the name `sandbox.test`."""
    look_up = socket.getaddrinfo

    def both(host: Any, *arguments: Any, **options: Any) -> list[Any]:
        hosts = ADDRESSES if host == "sandbox.test" else [host]
        return [found for one in hosts for found in look_up(one, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    return free_port()


def open_at(port: int) -> list[int]:
    """The sessions at each of the two addresses."""
    return [httpx.get(f"http://{host}:{port}/health").json()["sessions"] for host in ADDRESSES]


def test_sessions_are_spread_over_a_names_addresses_and_stay(port_of_two: int) -> None:
    servers = [start(port_of_two, host=host) for host in ADDRESSES]
    sandbox = open_sandbox("bubblewrap", url=f"http://sandbox.test:{port_of_two}/")
    sessions = [sandbox.open([]) for _ in range(6)]
    for number, session in enumerate(sessions):
        session.call(f"x = {number}")
    assert open_at(port_of_two) == [3, 3]
    assert [session.call("print(x)").text for session in sessions] == list("012345")
    for session in sessions:
        session.close()
    assert eventually(lambda: open_at(port_of_two) == [0, 0])
    sandbox.close()
    for server in servers:
        stop(server)


def test_an_address_that_is_full_or_away_is_passed_over(
    port_of_two: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    servers = [
        start(port_of_two, host=host, sessions=room)
        for host, room in zip(ADDRESSES, (1, 3), strict=True)
    ]
    sandbox = open_sandbox("bubblewrap", url=f"http://sandbox.test:{port_of_two}")
    sessions = [sandbox.open([]) for _ in range(4)]
    for session in sessions:
        session.call("1")
    assert open_at(port_of_two) == [1, 3]
    late = sandbox.open([])
    with monkeypatch.context() as patience:
        patience.setattr(remote, "FULL_SECONDS", 0.0)
        with pytest.raises(BackendError, match="sessions of the sandbox server are taken"):
            late.call("1")
    refused, given_up = Event(), remote._given_up
    monkeypatch.setattr(remote, "_given_up", lambda state: refused.set() or given_up(state))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(late.call, "print('in')")
        assert refused.wait(60)
        for session in sessions:
            session.close()
        assert waiting.result(60).text == "in"
    late.close()
    stop(servers[0])
    for _ in range(2):
        assert sandbox.open([]).call("print('here')").text == "here"
    sandbox.close()
    stop(servers[1])


def test_no_session_is_made_at_an_address_that_isolates_too_little(port_of_two: int) -> None:
    levels = ("bubblewrap", "none")
    servers = [
        start(port_of_two, level, host) for host, level in zip(ADDRESSES, levels, strict=True)
    ]

    def two_sessions() -> None:
        sandbox = open_sandbox("bubblewrap", url=f"http://sandbox.test:{port_of_two}")
        for _ in range(2):
            sandbox.open([]).call("1")

    with pytest.raises(BackendError, match=r"isolates by 'none'"):
        two_sessions()
    assert open_at(port_of_two)[1] == 0
    for server in servers:
        stop(server)


def test_a_session_on_the_server_is_like_one_here(url: str) -> None:
    sandbox = open_sandbox("bubblewrap", url=url)
    assert sandbox.isolation is Isolation.BUBBLEWRAP
    session = sandbox.open([png(1), png(2)])
    result = session.call("x = 7; show(images[1]); print(image.size)")
    assert [decode_image(image) for image in result.images] == [picture(2)]
    assert result.text == "(96, 96)"
    assert not result.is_error
    assert session.call("print(x)").text == "7"
    assert "NameError" in session.call("print(y)").text
    assert session.call("print(y)").is_error
    session.close()
    session.close()
    sandbox.close()


@pytest.mark.parametrize("program", named([p for p in PROGRAMS if p["name"] in ON_THE_SERVER]))
def test_a_hostile_program_on_the_server_stays_inside(
    url: str, program: Program, tmp_path: Path
) -> None:
    sandbox = open_sandbox("bubblewrap", url=url)
    bystander, attacker, partner = (sandbox.open([png()]) for _ in range(3))
    bystander.call("n = 1")
    with host_with_a_prise(tmp_path) as host:
        result = host.attack(program, attacker, partner)
    assert PRISE not in result.text
    assert re.search(program["says"], result.text), result.text
    assert bystander.call("print(n, image.size)").text == "1 (96, 96)"
    for session in (bystander, attacker, partner):
        session.close()
    assert eventually(lambda: httpx.get(f"{url}/health").json()["sessions"] == 0)
    sandbox.close()


def test_the_python_tool_works_over_it_in_several_event_loops(url: str) -> None:
    tool = PythonTool(url=url)

    async def one(number: int) -> str:
        session = await tool.open([])
        result = await session.call({"code": f"print({number})"})
        await session.close()
        return result.text

    async def batch() -> list[str]:
        return await asyncio.gather(*(one(number) for number in range(20)))

    for _ in range(2):
        assert asyncio.run(batch()) == [str(number) for number in range(20)]
    asyncio.run(tool.aclose())


def test_a_closed_session_is_gone_from_the_server(url: str) -> None:
    sandbox = open_sandbox("bubblewrap", url=url)
    session = sandbox.open([])
    session.call("1")
    assert httpx.get(f"{url}/health").json()["sessions"] >= 1
    session.close()
    assert eventually(lambda: httpx.get(f"{url}/health").json()["sessions"] == 0)
    sandbox.close()


def test_a_session_closed_while_it_is_opened_is_gone_from_the_server() -> None:
    """As when a client hangs up, or time is up, during a request's first call."""
    port = free_port()
    server = start(port)
    sandbox = open_sandbox("bubblewrap", url=f"http://127.0.0.1:{port}")
    session = sandbox.open([])
    assert isinstance(session, RemoteSession)
    with ThreadPoolExecutor(1) as pool:
        server.send_signal(signal.SIGSTOP)
        calling = pool.submit(session.call, "print('nobody listens')")
        assert eventually(session._lock.locked)
        session.close()
        server.send_signal(signal.SIGCONT)
        with pytest.raises(BackendError, match="closed while it was opened"):
            calling.result()
    assert httpx.get(f"http://127.0.0.1:{port}/health").json()["sessions"] == 0
    sandbox.close()
    stop(server)


def test_code_that_may_have_ended_its_server_is_sent_once() -> None:
    port = free_port()
    server = start(port)
    sandbox = open_sandbox("bubblewrap", url=f"http://127.0.0.1:{port}")
    session = sandbox.open([])
    idle = descendants(server.pid)
    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(session.call, "import time; time.sleep(1000)")
        assert eventually(lambda: bool(descendants(server.pid) - idle))
        server.kill()
        server.wait(60)
        server = start(port)
        with pytest.raises(BackendError, match=str(port)):
            calling.result(60)
    assert httpx.get(f"http://127.0.0.1:{port}/health").json()["sessions"] == 0
    sandbox.close()
    stop(server)


def test_a_closed_sandbox_is_the_hosts_fault(url: str) -> None:
    sandbox = open_sandbox("bubblewrap", url=url)
    started, new = sandbox.open([]), sandbox.open([])
    started.call("1")
    sandbox.close()
    for session in (started, new):
        with pytest.raises(BackendError, match="closed"):
            session.call("1")
        session.close()


def test_a_server_weaker_than_accepted_is_refused(url: str) -> None:
    with pytest.raises(BackendError, match=r"isolates by 'bubblewrap'.*'gvisor'"):
        open_sandbox("gvisor", url=url)


def test_a_corrupt_image_is_the_inputs_fault(url: str) -> None:
    sandbox = open_sandbox("bubblewrap", url=url)
    with pytest.raises(InputError, match="can't be decoded"):
        sandbox.open([png()[:100]]).call("1")
    sandbox.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/sessions", {"images": ["not base64!"]}, 422),
        ("POST", "/sessions", {"images": ["é"]}, 422),
        ("POST", "/sessions", {"images": "x"}, 422),
        ("POST", "/sessions/unknown/calls", {"code": "1"}, 404),
        ("POST", "/sessions/unknown/calls", {"code": 1}, 422),
        ("DELETE", "/sessions/unknown", None, 204),
    ],
)
def test_bad_requests_are_told_what_is_wrong(
    url: str, method: str, path: str, body: dict[str, object] | None, status: int
) -> None:
    response = httpx.request(method, url + path, json=body)
    assert response.status_code == status
    if status >= 400:
        assert response.json()["detail"]


def test_the_wire_format_is_what_a_stranger_would_send(url: str) -> None:
    images = [base64.b64encode(png(3)).decode()]
    name = httpx.post(f"{url}/sessions", json={"images": images}).json()["id"]
    answer = httpx.post(f"{url}/sessions/{name}/calls", json={"code": "show(image)"}).json()
    assert decode_image(base64.b64decode(answer["images"][0])) == picture(3)
    assert httpx.delete(f"{url}/sessions/{name}").status_code == 204


def test_a_server_that_is_not_there_is_named() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(BackendError, match=address):
        open_sandbox("gvisor", url=address)


def test_something_else_that_answers_is_refused() -> None:
    class Hello(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"hello": "world"}')

    with HTTPServer(("127.0.0.1", 0), Hello) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(BackendError, match="is no sandbox server"):
            open_sandbox("bubblewrap", url=f"http://127.0.0.1:{other.server_port}")
        other.shutdown()


def test_a_restart_costs_a_fresh_session_nothing_and_stops_one_with_variables() -> None:
    port = free_port()
    server = start(port)
    sandbox = open_sandbox("bubblewrap", url=f"http://127.0.0.1:{port}")
    with_variables, fresh = sandbox.open([]), sandbox.open([])
    with_variables.call("x = 1")
    processes = descendants(server.pid)
    stop(server)
    assert not processes & descendants()
    server = start(port)
    with pytest.raises(BackendError, match="no such session"):
        with_variables.call("print(x)")
    assert fresh.call("print('fresh')").text == "fresh"
    sandbox.close()
    stop(server)


def test_a_server_without_a_sandbox_says_so() -> None:
    port = free_port()
    server = start(port, "none")
    assert httpx.get(f"http://127.0.0.1:{port}/health").json()["isolation"] == "none"
    with pytest.raises(BackendError, match="'none'"):
        open_sandbox("bubblewrap", url=f"http://127.0.0.1:{port}")
    open_sandbox("none", url=f"http://127.0.0.1:{port}").close()
    stop(server)


def test_gvisor_is_told_by_its_kernel_log() -> None:
    gvisor = "[    0.000000] Starting gVisor...\n[    0.354495] Daemonizing children...\n"
    linux = "[    0.000000] Linux version 6.1.0\n"
    assert reported_isolation(Isolation.BUBBLEWRAP, gvisor) is Isolation.GVISOR
    assert reported_isolation(Isolation.BUBBLEWRAP, linux) is Isolation.BUBBLEWRAP
    assert reported_isolation(Isolation.NONE, "") is Isolation.NONE
