"""Take the pictures of MLflow in docs/: `python docs/screenshots.py http://127.0.0.1:5000 demo`.

Opens pages of a running MLflow UI (`make mlflow-ui`) in headless Chromium, waits until they show
what they are about, and saves them as PNG.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from mlflow.tracking import MlflowClient
from PIL import Image
from websockets.sync.client import ClientConnection, connect

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 1400, 900
SECONDS = 300.0
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--remote-debugging-port=0", f"--window-size={WIDTH},{HEIGHT}"),
)
DRAWN = "document.querySelector('.ytitle')?.textContent === 'greedy/overall/accuracy'"


def main(uri: str, experiment: str) -> None:
    """Both pictures, of the newest evaluations and of a trace in which a tool was called."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        sys.exit(f"{uri} has no experiment {experiment!r}")
    number = found.experiment_id
    stages = [
        client.search_runs(
            [number],
            f"tags.`toolwise.step` = 'evaluate {stage}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        for stage in ("base", "sft", "hdpo")
    ]
    runs = [run.info.run_id for (run,) in stages]
    python = "tags.tool_calls = '1' and tags.ability = 'math'"
    traces = client.search_traces(locations=[number], filter_string=python)
    with browser() as page:
        query = urllib.parse.urlencode({"runs": json.dumps(runs), "experiments": f'["{number}"]'})
        page.open(f"{uri}/#/compare-runs?{query}")
        page.click("Scatter Plot")
        page.choose("x-axis-selector", "greedy/overall/tool_call_rate")
        page.choose("y-axis-selector", "greedy/overall/accuracy")
        page.close_assistant()
        page.wait(DRAWN)
        page.save("mlflow-comparison.png")

        trace = traces[0].info.trace_id
        page.open(f"{uri}/#/experiments/{number}/traces?selectedEvaluationId={trace}")
        page.wait("document.body.innerText.includes('model turn')")
        page.close_assistant()
        page.click("python")
        page.wait("document.body.innerText.includes('print(')")
        page.save("mlflow-trace.png")


class Page:
    """A browser tab, told what to do over the DevTools protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self._tell("Emulation.setDeviceMetricsOverride", **size)

    def open(self, address: str) -> None:
        """Go there, afresh."""
        self._tell("Page.navigate", url="about:blank")
        self._tell("Page.navigate", url=address)

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + SECONDS
        while not self._value(condition):
            if time.monotonic() > end:
                text = self._value("document.body.innerText")
                sys.exit(f"after {SECONDS:g} s still not: {condition}\n{text}")
            time.sleep(0.25)

    def click(self, text: str) -> None:
        """Click on what says exactly this."""
        self._click(
            "[...document.querySelectorAll('button, [role=tab], [role=option], span, div')]"
            f".findLast(e => e.innerText && e.innerText.trim() === {json.dumps(text)})"
        )

    def choose(self, selector: str, option: str) -> None:
        """Choose from the list with this id."""
        self._click(f"document.getElementById({json.dumps(selector)})")
        self._click(
            "[...document.querySelectorAll('[role=option]')]"
            f".find(e => e.innerText.trim() === {json.dumps(option)})"
        )
        self.wait(f"document.getElementById({json.dumps(selector)}).innerText === '{option}'")

    def close_assistant(self) -> None:
        """Close the panel at the right, where it is open."""
        find = "document.querySelector('[data-component-id*=assistant][data-component-id*=close]')"
        if self._value(f"!!{find}"):
            self._click(find)
            self.wait(f"!{find}")

    def _click(self, find: str) -> None:
        self.wait(f"!!({find})")
        place = self._value(
            f"(() => {{ const e = {find}; e.scrollIntoView({{block: 'nearest'}}); "
            "const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            self._tell(
                "Input.dispatchMouseEvent",
                type=kind,
                x=place[0],
                y=place[1],
                button=button,
                clickCount=1,
            )

    def save(self, name: str) -> None:
        """Save what is seen in docs/, with few colours, which is small."""
        picture = base64.b64decode(self._tell("Page.captureScreenshot", format="png")["data"])
        with Image.open(io.BytesIO(picture)) as image:
            image.convert("RGB").quantize(128).save(FOLDER / name, optimize=True)
        print(f"wrote {FOLDER / name}")

    def _value(self, expression: str) -> Any:
        reply = self._tell("Runtime.evaluate", expression=expression, returnByValue=True)
        return reply["result"].get("value")

    def _tell(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            reply = json.loads(self._socket.recv(SECONDS))
            if reply.get("id") == number:
                if "error" in reply:
                    sys.exit(f"{method}: {reply['error']}")
                return reply["result"]


@contextmanager
def browser() -> Iterator[Page]:
    """A tab of a headless Chromium with a profile of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = ["chromium", *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            told = Path(profile) / "DevToolsActivePort"
            end = time.monotonic() + SECONDS
            while not (told.exists() and told.read_text()):
                if time.monotonic() > end:
                    sys.exit("Chromium did not start")
                time.sleep(0.1)
            port = told.read_text().splitlines()[0]
            tabs = httpx.get(f"http://127.0.0.1:{port}/json", timeout=SECONDS).json()
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(address, max_size=None, open_timeout=SECONDS) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
