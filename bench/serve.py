"""The endpoint beside what it stands in front of, and the frugal model beside the lavish one.

The last figures are of the checkpoints of a demo run.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from itertools import cycle
from typing import Any

import aiohttp
import httpx
import psutil

from bench.demo import demo_output
from bench.runner import answering_server
from toolwise.agent import user_message
from toolwise.data import Task, data_uri, grade
from toolwise.data.parquet import read_tasks

LATENCY_REQUESTS = 2000
CLIENTS, LOAD_SECONDS, SETTLED_SECONDS = 200, 60, 15
BATCH_CLIENTS, BATCH_ROUNDS, BATCH_SECONDS = 32, 3, 6
QUESTIONS = 200
NEEDS = {True: "calls_where_needed", False: "calls_where_not"}
"""What the calls on a question are counted as, by whether its author thinks it needs a tool."""
START_SECONDS = 300.0

Figures = dict[str, float]


def measure() -> Figures:
    """Latency and throughput of the endpoint, and what a model that calls less saves."""
    run = DemoRun()
    with answering_server() as port:
        upstream = f"http://127.0.0.1:{port}/v1"
        with endpoint("--upstream", upstream, "--concurrency", str(CLIENTS)) as served:
            figures = {**added_latency(port, served), **asyncio.run(load(served))}
    return figures | batching(run) | savings(run)


# Processes


class Served:
    """A running endpoint."""

    def __init__(self, port: int, process: psutil.Process) -> None:
        self.port = port
        self.process = process
        self.url = f"http://127.0.0.1:{port}/openai/v1/chat/completions"

    @property
    def mebibytes(self) -> float:
        """Memory the server process holds."""
        return self.process.memory_info().rss / 2**20


@contextmanager
def endpoint(*arguments: str) -> Iterator[Served]:
    """`python -m toolwise.serving` with these arguments, once it is ready."""
    from toolwise.serving.server import listen

    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "toolwise.serving", "--port", str(port), *arguments]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _ready(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(log.read().decode(errors="replace"))
                time.sleep(0.2)
            yield Served(port, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()


def _ready(port: int) -> bool:
    try:
        reply = httpx.get(f"http://127.0.0.1:{port}/v1/models/toolwise", trust_env=False)
    except httpx.HTTPError:
        return False
    return reply.status_code == 200


# An answer without a tool, beside the bare upstream


def request(content: Any, **fields: Any) -> bytes:
    """A chat request's body."""
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": "toolwise", "messages": messages, **fields}).encode()


PLAIN = request("Which of the two is in the picture?")


def added_latency(upstream: int, served: Served) -> Figures:
    """Milliseconds the endpoint adds, by asking it and its upstream in turn."""
    bare, through = HTTPConnection("127.0.0.1", upstream), HTTPConnection("127.0.0.1", served.port)
    seconds: dict[HTTPConnection, list[float]] = {bare: [], through: []}
    used = 0.0
    for number in range(LATENCY_REQUESTS + 100):
        if number == 100:
            used = sum(served.process.cpu_times()[:2])
        for connection, taken in seconds.items():
            started = time.perf_counter()
            connection.request(
                "POST", "/v1/chat/completions", PLAIN, {"content-type": "application/json"}
            )
            reply = connection.getresponse()
            assert reply.status == 200
            reply.read()
            if number >= 100:
                taken.append(1e3 * (time.perf_counter() - started))
    used = sum(served.process.cpu_times()[:2]) - used
    ours, theirs = (statistics.quantiles(seconds[c], n=100) for c in (through, bare))
    return {
        "upstream_p50_ms": theirs[49],
        "upstream_p99_ms": theirs[98],
        "added_p50_ms": ours[49] - theirs[49],
        "added_p99_ms": ours[98] - theirs[98],
        "endpoint_cpu_ms_per_request": 1e3 * used / LATENCY_REQUESTS,
    }


async def load(served: Served) -> Figures:
    """Many clients at once, each asking again as soon as it is answered."""
    answered = failed = 0
    ends = time.monotonic() + LOAD_SECONDS
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def client() -> None:
            nonlocal answered, failed
            while time.monotonic() < ends:
                try:
                    async with session.post(
                        served.url, data=PLAIN, headers={"content-type": "application/json"}
                    ) as reply:
                        content = await reply.read()
                    answered += 1
                    failed += reply.status != 200 or b'"content":"B"' not in content
                except (aiohttp.ClientError, TimeoutError):
                    failed += 1

        clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
        await asyncio.sleep(SETTLED_SECONDS)
        settled = served.mebibytes
        await asyncio.gather(*clients)
    return {
        "clients": CLIENTS,
        "load_seconds": LOAD_SECONDS,
        "load_requests_per_second": answered / LOAD_SECONDS,
        "load_errors": failed,
        "load_mib_settled": settled,
        "load_mib_grown": served.mebibytes - settled,
    }


# Trained models


class DemoRun:
    """What a demo run has left: two checkpoints, the benchmark, the corpus."""

    def __init__(self) -> None:
        data = demo_output("prepare-data", "data")
        self.sft = demo_output("train-sft", "checkpoint")
        self.hdpo = demo_output("train-hdpo", "checkpoint")
        self.corpus = data / "corpus.jsonl"
        # Abilities and needs alternate; signs between small and large are neither needed nor not.
        items = read_tasks(data / "benchmark.parquet")
        plain = [task for task in items if task.metadata.get("needs_tool") is not None]
        self.tasks: Sequence[Task] = plain[:QUESTIONS]


def asked(task: Task) -> bytes:
    """A task as a chat request."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_uri(image)}} for image in task.images
    ]
    parts.append({"type": "text", "text": user_message(task)["content"][-1]["text"]})
    return request(parts)


def batching(run: DemoRun) -> Figures:
    """Requests a second of one model in process, together and one at a time."""
    model = ("--model-dir", str(run.hdpo), "--corpus", str(run.corpus))
    rates: dict[str, list[float]] = {"continuous": [], "one_at_a_time": []}
    with endpoint(*model) as together, endpoint(*model, "--concurrency", "1") as alone:
        for _ in range(BATCH_ROUNDS):
            for name, served in zip(rates, (together, alone), strict=True):
                rates[name].append(asyncio.run(_throughput(served, run.tasks)))
    continuous, one = (statistics.median(rates[name]) for name in rates)
    return {
        "batch_clients": BATCH_CLIENTS,
        "continuous_requests_per_second": continuous,
        "one_at_a_time_requests_per_second": one,
        "continuous_times_one_at_a_time": continuous / one,
    }


async def _throughput(served: Served, tasks: Sequence[Task]) -> float:
    bodies = cycle([asked(task) for task in tasks])
    answered = 0
    async with aiohttp.ClientSession() as session:

        async def client() -> None:
            nonlocal answered
            while True:
                async with session.post(served.url, data=next(bodies)) as reply:
                    reply.raise_for_status()
                    await reply.read()
                answered += 1

        clients = [asyncio.create_task(client()) for _ in range(BATCH_CLIENTS)]
        await asyncio.sleep(BATCH_SECONDS)
        for one in clients:
            one.cancel()
        for outcome in await asyncio.gather(*clients, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
    return answered / BATCH_SECONDS


def savings(run: DemoRun) -> Figures:
    """Time, tokens and calls of the HDPO model beside the SFT model, on the same questions."""
    counted = ("seconds", "tokens", "calls", "right", *NEEDS.values())
    totals = {name: dict.fromkeys(counted, 0.0) for name in ("sft", "hdpo")}
    needs = {task.id: NEEDS[task.metadata["needs_tool"]] for task in run.tasks}
    of = dict.fromkeys(counted, len(run.tasks)) | Counter(needs.values())
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                endpoint("--model-dir", str(getattr(run, name)), "--corpus", str(run.corpus))
            )
            for name in totals
        }
        client = stack.enter_context(httpx.Client(timeout=120, trust_env=False))
        for task in run.tasks:
            for name, served in servers.items():
                started = time.perf_counter()
                reply = client.post(served.url, content=asked(task)).raise_for_status().json()
                totals[name]["seconds"] += time.perf_counter() - started
                totals[name]["tokens"] += reply["usage"]["total_tokens"]
                calls = reply["toolwise"]["tool_calls"]
                totals[name]["calls"] += calls
                totals[name][needs[task.id]] += calls
                answer = reply["choices"][0]["message"]["content"]
                totals[name]["right"] += grade(task, answer)
    sft, hdpo = totals["sft"], totals["hdpo"]
    return {
        "questions": len(run.tasks),
        **{f"questions_{need}": of[need] for need in NEEDS.values()},
        **{f"sft_{name}_per_answer": value / of[name] for name, value in sft.items()},
        **{f"hdpo_{name}_per_answer": value / of[name] for name, value in hdpo.items()},
        "share_of_latency_saved": 1 - hdpo["seconds"] / sft["seconds"],
        "share_of_tokens_saved": 1 - hdpo["tokens"] / sft["tokens"],
    }
