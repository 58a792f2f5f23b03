"""The bubblewrap sandbox and code that is well meant or broken; hostile code has its own tests."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import PIL
import pytest
from sandbox_tools import descendants, eventually, picture, png, processes_of, send

from toolwise.data import decode_image
from toolwise.errors import BackendError, InputError
from toolwise.tools.sandbox import Isolation, SandboxLimits, SandboxSession, open_sandbox
from toolwise.tools.sandbox import local as local_sandbox
from toolwise.tools.sandbox.inside import wire
from toolwise.tools.sandbox.local import LocalSandbox

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing")
LIMITS = SandboxLimits(seconds=30.0, memory_mb=512)
REPOSITORY = Path(__file__).parents[2]

FORKS_ONCE = """
import errno, json, os, socket, sys
from toolwise.tools.sandbox.inside.supervisor import Supervisor

forks = iter([os.fork])

def fork():  # a real limit would count everybody's processes of that user
    for real in forks:
        return real()
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

os.fork = fork
control = socket.socket(fileno=int(sys.argv[1]))
Supervisor(control, json.loads(sys.argv[2]), isolated=False).run()
"""
"""A supervisor that finds no process for a second session."""


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[LocalSandbox]:
    pool = LocalSandbox(workers=1, limits=LIMITS)
    yield pool
    pool.close()


@pytest.fixture
def session(sandbox: LocalSandbox) -> Iterator[SandboxSession]:
    session = sandbox.open([png(1), png(2)])
    yield session
    session.close()


@pytest.fixture
def own_sandbox() -> Iterator[LocalSandbox]:
    """One that a test may break."""
    pool = LocalSandbox(workers=1, limits=LIMITS)
    yield pool
    pool.close()


@pytest.fixture
def impatient() -> Iterator[LocalSandbox]:
    pool = LocalSandbox(workers=1, limits=SandboxLimits(seconds=2.0))
    yield pool
    pool.close()


class TestWellMeantCode:
    def test_variables_last_from_call_to_call(self, session: SandboxSession) -> None:
        assert not session.call("x = 41").is_error
        assert session.call("print(x + 1)").text == "42"

    def test_the_images_of_the_task_are_there_pixel_for_pixel(
        self, session: SandboxSession
    ) -> None:
        result = session.call("show(image); show(images[1]); print(len(images), image.size)")
        assert [decode_image(shown) for shown in result.images] == [picture(1), picture(2)]
        assert result.text == "2 (96, 96)"

    def test_a_shown_crop_is_the_crop(self, session: SandboxSession) -> None:
        result = session.call("show(image.crop((10, 20, 50, 70)))")
        assert decode_image(result.images[0]) == picture(1).crop((10, 20, 50, 70))
        assert result.text == ""

    def test_arrays_and_other_modes_are_shown_as_rgb(self, session: SandboxSession) -> None:
        result = session.call(
            "import numpy as np\nshow(np.zeros((4, 6, 3), 'uint8')); show(image.convert('L'))"
        )
        assert [decode_image(shown).size for shown in result.images] == [(6, 4), (96, 96)]

    def test_an_image_changed_after_it_was_shown_comes_as_it_was(
        self, session: SandboxSession
    ) -> None:
        result = session.call("show(image)\nimage.paste((0, 0, 0), (0, 0, 96, 96))")
        assert decode_image(result.images[0]) == picture(1)

    def test_files_under_tmp_last_from_call_to_call(self, session: SandboxSession) -> None:
        session.call("open('/tmp/note', 'w').write('kept')")
        assert session.call("print(open('note').read())").text == "kept"

    def test_image_files_can_be_written_and_read(self, session: SandboxSession) -> None:
        code = (
            "from PIL import Image\n"
            "for name in ('a.png', 'a.bmp', 'a.webp'):\n"
            "  image.save(name, lossless=True)\n"
            "  assert Image.open(name).convert('RGB').tobytes() == image.tobytes()"
        )
        result = session.call(code)
        assert not result.is_error, result.text

    @pytest.mark.parametrize("first", ["import numpy as np", "pass"])
    def test_numpy_is_there_whatever_the_first_call_was(
        self, session: SandboxSession, first: str
    ) -> None:
        assert not session.call(first).is_error
        code = "import numpy\nprint(numpy.asarray(image).shape, numpy.linalg.norm([3, 4]))"
        assert session.call(code).text == "(96, 96, 3) 5.0"

    @pytest.mark.parametrize(
        "code",
        [
            "import subprocess; print(subprocess.run(['cat'], input='42', text=True,"
            " capture_output=True).stdout)",
            "import asyncio\n"
            "async def main():\n"
            "  cat = await asyncio.create_subprocess_exec('cat', stdin=-1, stdout=-1)\n"
            "  print((await cat.communicate(b'42'))[0].decode())\n"
            "asyncio.run(main())",
            "import asyncio\nprint(asyncio.run(asyncio.to_thread(lambda: 42)))",
            "from concurrent.futures import ThreadPoolExecutor\n"
            "with ThreadPoolExecutor(4) as pool: print(sum(pool.map(int, '9999123')))",
            "import multiprocessing\n"
            "ours, theirs = multiprocessing.Pipe()\n"
            "child = multiprocessing.get_context('fork').Process(target=theirs.send, args=(42,))\n"
            "child.start(); print(ours.recv()); child.join()",
            "import socket\n"
            "one, other = socket.socketpair()\n"
            "with one.makefile('w') as out: out.write('42')\n"
            "one.close(); print(other.makefile().read())",
            "import shutil, sqlite3, zipfile\n"
            "open('a', 'w').write('42'); shutil.copytree('/tmp', '/tmp/b')\n"
            "zipfile.ZipFile('c', 'w').write('b/a'); zipfile.ZipFile('c').extractall('d')\n"
            "text = open('d/b/a').read()\n"
            "print(sqlite3.connect(':memory:').execute('select ' + text).fetchone()[0])",
        ],
    )
    def test_children_threads_sockets_and_files_work_as_anywhere(
        self, session: SandboxSession, code: str
    ) -> None:
        assert session.call(code).text == "42"

    def test_a_task_without_images_has_none(self, sandbox: LocalSandbox) -> None:
        session = sandbox.open([])
        assert session.call("print(image, images)").text == "None []"
        session.close()

    def test_a_corrupt_image_is_the_inputs_fault(self, sandbox: LocalSandbox) -> None:
        session = sandbox.open([png()[:200]])
        with pytest.raises(InputError, match="can't be decoded"):
            session.call("print(1)")


class TestBrokenCode:
    def test_an_exception_is_read_from_the_models_line_on(self, session: SandboxSession) -> None:
        result = session.call("def f():\n    return 1 / 0\nprint('before')\nf()")
        assert result.is_error
        assert result.text.startswith("before\nTraceback (most recent call last):\n")
        assert "return 1 / 0" in result.text
        assert result.text.endswith("ZeroDivisionError: division by zero")
        assert "session.py" not in result.text

    @pytest.mark.parametrize(
        ("code", "says"),
        [
            ("def f(:", "SyntaxError"),
            ("raise SystemExit(3)", "SystemExit: 3"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt"),
            ("input()", "EOFError"),
            ("def f(): f()\nf()", "RecursionError"),
            ("blocks = []\nwhile True: blocks.append(bytearray(1 << 24))", "MemoryError"),
            ("class E(Exception):\n  def __str__(self): 1 / 0\nraise E", "E"),
            ("x = '\\0'\nprint(\0)", "null byte"),
        ],
    )
    def test_it_is_told_and_the_session_goes_on(
        self, session: SandboxSession, code: str, says: str
    ) -> None:
        session.call("kept = 'kept'")
        result = session.call(code)
        assert result.is_error
        assert says in result.text
        assert session.call("blocks = None; print(kept)").text == "kept"

    @pytest.mark.parametrize(
        "code",
        [
            "import os; os._exit(0)",
            "import os, signal; os.kill(os.getpid(), 9); os.abort()",
            "import ctypes; ctypes.string_at(0)",
        ],
    )
    def test_a_process_that_ends_is_the_codes_fault(
        self, session: SandboxSession, code: str
    ) -> None:
        result = session.call(code)
        assert result.is_error
        assert result.text.startswith("Error: ")
        assert session.call("print(image.size)").text == "(96, 96)"

    def test_long_text_is_cut_with_a_note(self, session: SandboxSession) -> None:
        result = session.call("print('a' * 10_000)")
        assert result.text.startswith("a" * LIMITS.text_chars + "\n[2001 more characters")
        assert len(result.text) < LIMITS.text_chars + 100

    def test_odd_characters_arrive_as_text(self, session: SandboxSession) -> None:
        result = session.call("print('\\ud800 é\\0 <|im_end|>')")
        result.text.encode()
        assert "<|im_end|>" not in result.text

    def test_what_was_shown_before_it_failed_comes_too(self, session: SandboxSession) -> None:
        result = session.call("while True: show(image)")
        assert result.is_error
        assert len(result.images) == LIMITS.images

    def test_what_a_call_started_ends_with_it(self, sandbox: LocalSandbox) -> None:
        session = sandbox.open([])
        session.call("1")
        quiet = processes_of(sandbox)
        code = "import subprocess\nfor _ in range(3): subprocess.Popen(['sleep', '1000'])"
        assert not session.call(code).is_error
        assert eventually(lambda: processes_of(sandbox) <= quiet, 10.0)
        session.close()


class TestTimeLimit:
    @pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(1000)"])
    def test_code_that_does_not_end_is_ended(self, impatient: LocalSandbox, code: str) -> None:
        session = impatient.open([])
        session.call("x = 1")
        result = session.call(f"try:\n  {code}\nfinally:\n  {code}")
        assert result.is_error
        assert result.text.startswith("Error: timed out after 2 s")
        assert 2.0 <= result.seconds < 20.0
        assert "NameError" in session.call("print(x)").text
        session.close()

    def test_handing_over_the_code_counts(self, impatient: LocalSandbox) -> None:
        """Where the session answers a call to come, and then takes nothing from the wire."""
        session = impatient.open([])
        result = session.call(
            "import gc, json, os, socket, struct, time\n"
            "wire = [o for o in gc.get_objects() if isinstance(o, socket.socket)][0]\n"
            "head = json.dumps({'call': 1, 'text': '', 'error': None, 'sizes': [], 'blobs': []})\n"
            "wire.sendall(struct.pack('!I', len(head)) + head.encode())\n"
            "time.sleep(1000)"
        )
        assert result.text == ""
        late = session.call("x = '" + "y" * 4_000_000 + "'")
        assert late.text.startswith("Error: timed out after 2 s")
        assert 2.0 <= late.seconds < 3.5
        session.close()

    def test_others_go_on_meanwhile(self, sandbox: LocalSandbox) -> None:
        looping, other = sandbox.open([]), sandbox.open([])
        looping.call("1")
        thread = threading.Thread(target=looping.call, args=("while True: pass",))
        thread.start()
        assert other.call("print('here')").text == "here"
        assert thread.is_alive()
        looping.close()  # ends the call
        thread.join(20)
        assert not thread.is_alive()
        other.close()


class TestWalls:
    def test_neither_this_checkout_nor_its_environment_is_there(
        self, session: SandboxSession
    ) -> None:
        paths = [str(path) for path in (REPOSITORY, Path.home(), sys.prefix, "/etc/hostname")]
        code = f"import os; print([path for path in {paths} if os.path.exists(path)])"
        assert session.call(code).text == "[]"

    def test_only_tmp_can_be_written(self, session: SandboxSession) -> None:
        code = (
            "import os\nfor top in ('/', '/opt', '/usr', '/usr/lib', '/dev', '/proc', '/etc',\n"
            "            '/opt/toolwise/inside', '/opt/packages/PIL', '/tmp'):\n"
            "  try: open(f'{top}/new', 'w'); print(top)\n"
            "  except OSError: pass"
        )
        assert session.call(code).text == "/tmp"

    def test_no_session_runs_as_root_of_the_host(self, sandbox: LocalSandbox) -> None:
        sandbox.open([]).call("1")  # the worker is there
        before = processes_of(sandbox)
        session = sandbox.open([])
        session.call("1")
        (process,) = processes_of(sandbox) - before
        status = Path(f"/proc/{process}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert "0" not in fields["Uid"].split()
        assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == "2"
        limits = Path(f"/proc/{process}/limits").read_text()
        assert re.search(r"Max core file size +[01] +[01] ", limits)
        session.close()


class TestTheSandboxItself:
    def test_a_worker_that_died_is_replaced_without_a_trace(
        self, own_sandbox: LocalSandbox
    ) -> None:
        own_sandbox.open([]).call("1")
        send(signal.SIGKILL, processes_of(own_sandbox))
        assert own_sandbox.open([]).call("print('here')").text == "here"

    def test_a_worker_starts_while_more_than_a_thousand_files_are_open(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 2048 and hard != resource.RLIM_INFINITY:
            pytest.skip("2,048 files cannot be opened here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
        with contextlib.ExitStack() as opened:
            opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            while opened.enter_context(Path(os.devnull).open()).fileno() < 1024:
                pass
            pool = LocalSandbox(workers=1, limits=LIMITS)
            opened.callback(pool.close)
            assert pool.open([]).call("print('here')").text == "here"

    def test_code_under_which_a_worker_died_is_handed_to_no_other(self) -> None:
        """It may be why: the next worker's sessions must not pay for it too."""
        others = descendants()
        pool = LocalSandbox(workers=1, limits=LIMITS)
        session = pool.open([])
        pool.open([]).call("1")
        first = processes_of(pool)
        with ThreadPoolExecutor(1) as thread:
            calling = thread.submit(session.call, "import time; time.sleep(1000)")
            assert eventually(lambda: session._calls == 1)  # it has started
            send(signal.SIGKILL, first)
            with pytest.raises(BackendError, match="does not work here"):
                calling.result(60)
        assert eventually(lambda: descendants() <= others)  # no other worker was started
        assert pool.open([]).call("print('next')").text == "next"
        pool.close()

    def test_a_session_closed_while_it_starts_takes_no_other_along(
        self, own_sandbox: LocalSandbox
    ) -> None:
        bystander, closed = own_sandbox.open([]), own_sandbox.open([png()])
        bystander.call("x = 'kept'")
        worker = processes_of(own_sandbox)
        send(signal.SIGSTOP, worker)
        with ThreadPoolExecutor(1) as thread:
            calling = thread.submit(closed.call, "print('never')")
            assert eventually(lambda: closed._process is not None)
            closed.close()
            send(signal.SIGCONT, worker)
            with pytest.raises(BackendError, match="closed"):
                calling.result(60)
        assert bystander.call("print(x)").text == "kept"

    def test_a_session_that_cannot_start_says_why_and_leaves_the_worker(self) -> None:
        pool = LocalSandbox(workers=1, limits=SandboxLimits(disk_mb=-1))
        workers = descendants()
        with pytest.raises(BackendError, match=r"can't start a session: .*mount tmpfs on /tmp"):
            pool.open([png()]).call("1")
        assert workers <= descendants()
        pool.close()

    def test_where_no_host_name_may_be_given_it_does_without(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script = tmp_path / "bwrap"
        script.write_text(
            '#!/bin/sh\ncase " $* " in *" --hostname "*) exit 1; esac\n'
            f'exec {shutil.which("bwrap")} "$@"\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        pool = LocalSandbox(workers=1, limits=LIMITS)
        assert pool.open([]).call("print(6 * 7)").text == "42"
        pool.close()

    def test_a_session_for_which_there_is_no_process_costs_no_other(self) -> None:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            arguments = [str(theirs.fileno()), json.dumps(asdict(LIMITS))]
            supervisor = subprocess.Popen(
                [sys.executable, "-c", FORKS_ONCE, *arguments], pass_fds=[theirs.fileno()]
            )

        def start(name: str) -> tuple[socket.socket, dict[str, object]]:
            mine, its = socket.socketpair()
            with its:
                socket.send_fds(control, [f"start {name}".encode()], [its.fileno()])
            return mine, wire.receive(mine, 1000, 0, time.monotonic() + 30.0)[0]

        first, greeting = start("1")
        second, refusal = start("2")
        assert greeting == {"ready": True}
        assert "temporarily unavailable" in str(refusal["refused"])
        wire.send(first, {"sizes": []})
        wire.send(first, {"call": 1, "code": "print('here')"})
        assert wire.receive(first, 1000, 0, time.monotonic() + 30.0)[0]["text"] == "here\n"
        for end in (first, second, control):
            end.close()
        assert supervisor.wait(30) == 0

    def test_variables_lost_with_a_worker_stop_the_step(self, own_sandbox: LocalSandbox) -> None:
        session = own_sandbox.open([])
        session.call("x = 1")
        errors: list[BaseException] = []

        def call() -> None:
            try:
                session.call("import time; time.sleep(8)")
            except BackendError as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        send(signal.SIGKILL, processes_of(own_sandbox))
        thread.join(60)
        assert len(errors) == 1
        assert own_sandbox.open([]).call("print('next')").text == "next"

    def test_a_supervisor_that_does_not_answer_is_replaced(
        self, own_sandbox: LocalSandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own_sandbox.open([]).call("1")
        stuck = processes_of(own_sandbox)
        send(signal.SIGSTOP, stuck)
        monkeypatch.setattr(local_sandbox, "START_SECONDS", 10.0)
        assert own_sandbox.open([]).call("print('here')").text == "here"
        assert eventually(lambda: not stuck & descendants())

    def test_three_hundred_sessions_leave_nothing_behind(self, sandbox: LocalSandbox) -> None:
        sandbox.open([png()]).call("1")
        descriptors, processes = open_files(), len(processes_of(sandbox))
        for number in range(300):
            session = sandbox.open([png()])
            assert session.call(f"print({number})").text == str(number)
            session.close()
        assert open_files() <= descriptors
        assert eventually(lambda: len(processes_of(sandbox)) <= processes)

    def test_a_closed_sandbox_is_the_hosts_fault(self) -> None:
        pool = LocalSandbox(workers=1)
        started, new = pool.open([]), pool.open([])
        started.call("1")
        pool.close()
        for session in (started, new, pool.open([])):
            with pytest.raises(BackendError):
                session.call("1")
            session.close()

    def test_closing_ends_every_process(self) -> None:
        others = descendants()
        pool = LocalSandbox(workers=2)
        sessions = [pool.open([]) for _ in range(4)]
        for session in sessions:
            session.call("1")
        pool.close()
        assert descendants() <= others

    def test_processes_end_with_the_host(self) -> None:
        code = (
            "import os, signal\n"
            "from toolwise.tools.sandbox.local import LocalSandbox\n"
            "session = LocalSandbox(workers=1).open([])\n"
            "session.call('1')\n"
            "print('ready', flush=True)\n"
            "signal.pause()\n"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as host:
            assert host.stdout is not None
            assert host.stdout.readline() == b"ready\n"
            started = descendants(host.pid)
            assert len(started) >= 2
            host.kill()
        assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))

    def test_without_bubblewrap_the_message_names_the_command(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(BackendError, match="apt-get install bubblewrap"):
            open_sandbox("bubblewrap")

    def test_a_bubblewrap_that_fails_is_quoted(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        says = "bwrap: No permissions to create new namespace"
        bwrap = tmp_path / "bwrap"
        bwrap.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 1")
        bwrap.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        pool = open_sandbox("bubblewrap", workers=1)
        with pytest.raises(BackendError, match=says):
            pool.open([]).call("1")
        pool.close()

    def test_none_must_be_asked_for_by_name(self) -> None:
        pool = open_sandbox("none", workers=1)
        assert pool.isolation is Isolation.NONE
        session = pool.open([png()])
        assert session.call("print(image.size)").text == "(96, 96)"
        assert session.call("import os; print(os.path.exists('/etc'))").text == "True"
        pool.close()

    @pytest.mark.parametrize("isolation", ["", "docker", "gvisor"])
    def test_a_level_that_is_not_there_is_refused(self, isolation: str) -> None:
        with pytest.raises(InputError, match="isolation"):
            open_sandbox(isolation)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_it_works_for_an_ordinary_user_too(self, tmp_path: Path) -> None:
        # Interpreter and packages may lie in root's home: bound where anybody can read them.
        for name in ("python", "packages", "repository"):
            (tmp_path / name).mkdir()
        packages = Path(PIL.__file__).parents[1]
        code = (
            "import os; assert os.getuid() == 65534\n"
            "from toolwise.tools.sandbox.local import LocalSandbox\n"
            "session = LocalSandbox(workers=1).open([])\n"
            "print(session.call('import os; print(os.getpid(), os.getuid())').text)\n"
            "print(session.call('import os\\nwhile True: os.fork()').text[-60:])\n"
        )
        executable = Path(sys.executable).resolve().relative_to(Path(sys.base_prefix).resolve())
        script = f"""
            set -e
            cd {tmp_path}
            mount --bind {Path(sys.base_prefix).resolve()} python
            mount --bind {packages} packages
            mount --bind {REPOSITORY} repository
            exec env -i PATH=/usr/bin:/bin LD_LIBRARY_PATH={tmp_path}/python/lib \
                PYTHONPATH={tmp_path}/repository:{tmp_path}/packages PYTHONDONTWRITEBYTECODE=1 \
                setpriv --reuid 65534 --regid 65534 --clear-groups \
                python/{executable} -c "$CODE"
        """
        for folder in (tmp_path, *tmp_path.parents[:3]):
            if folder.stat().st_uid == os.geteuid() and folder != Path("/tmp"):
                folder.chmod(0o755)
        run = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script],
            env={**os.environ, "CODE": code},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith("1 1000\n")
        assert "BlockingIOError" in run.stdout
