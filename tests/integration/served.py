"""The model server as a real process, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import openai

START_SECONDS = 600


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ServedProcess:
    """`python -m toolwise.serving` with these arguments, ready when the block begins."""

    def __init__(
        self,
        log: Path,
        *arguments: str,
        env: Mapping[str, str] = {},
        program: Sequence[str] = ("-m", "toolwise.serving"),
    ) -> None:
        self.port = free_port()
        self.origin = f"http://127.0.0.1:{self.port}"
        self.client = openai.OpenAI(
            base_url=f"{self.origin}/openai/v1", api_key="none", max_retries=0, timeout=120
        )
        self._log = log
        self._command = [sys.executable, *program, "--port", str(self.port), *arguments]
        self._env = {**os.environ, "OMP_NUM_THREADS": "1", **env}

    def __enter__(self) -> ServedProcess:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=self._env
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(120)
        finally:
            self.process.kill()

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.origin}/v1/models/toolwise", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def metric(self, name: str, **labels: str) -> float:
        """A sample of /metrics; 0 where it is not there yet."""
        from prometheus_client.parser import text_string_to_metric_families

        text = httpx.get(f"{self.origin}/metrics").text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0
