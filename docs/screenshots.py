"""Take the pictures of MLflow in docs/: `python docs/screenshots.py http://127.0.0.1:5000 demo`.

Opens pages of a running MLflow UI (`make mlflow-ui`) in headless Chromium, waits until they show
what they are about, and saves them as PNG.
"""

from __future__ import annotations

import json
import sys
import urllib.parse
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient
from PIL import Image

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent / "tests" / "integration"))
from browser import Browser  # noqa: E402  # the tests' own

WIDTH, HEIGHT = 1400, 900
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
    traces = client.search_traces(
        locations=[number], filter_string="tags.tool_calls = '1' and tags.ability = 'perception'"
    )
    with Page() as page:
        query = urllib.parse.urlencode({"runs": json.dumps(runs), "experiments": f'["{number}"]'})
        page.go(f"{uri}/#/compare-runs?{query}")
        page.click("Scatter Plot")
        page.choose("x-axis-selector", "greedy/overall/tool_call_rate")
        page.choose("y-axis-selector", "greedy/overall/accuracy")
        page.close_assistant()
        page.wait(DRAWN)
        page.save("mlflow-comparison.png")

        trace = traces[0].info.trace_id
        page.go(f"{uri}/#/experiments/{number}/traces?selectedEvaluationId={trace}")
        page.wait_for_all("model turn", "python")
        page.close_assistant()
        page.wait("[...document.images].some(i => i.naturalWidth && i.src.startsWith('blob:'))")
        page.save("mlflow-trace.png")


class Page(Browser):
    """A page that is used by what it shows."""

    def go(self, address: str) -> None:
        """Go there, afresh."""
        self.open("about:blank", width=WIDTH, height=HEIGHT)
        self.open(address, width=WIDTH, height=HEIGHT)

    def wait_for_all(self, *texts: str) -> None:
        """Until the page shows all of these."""
        self.wait(f"{json.dumps(texts)}.every(text => document.body.innerText.includes(text))")

    def click(self, text: str) -> None:
        """Click on what says exactly this."""
        self.mouse(
            "[...document.querySelectorAll('button, [role=tab], [role=option], span, div')]"
            f".findLast(e => e.innerText && e.innerText.trim() === {json.dumps(text)})"
        )

    def choose(self, selector: str, option: str) -> None:
        """Choose from the list with this id."""
        self.mouse(f"document.getElementById({json.dumps(selector)})")
        self.mouse(
            "[...document.querySelectorAll('[role=option]')]"
            f".find(e => e.innerText.trim() === {json.dumps(option)})"
        )
        self.wait(f"document.getElementById({json.dumps(selector)}).innerText === '{option}'")

    def mouse(self, find: str) -> None:
        """Click on an element."""
        self.wait(f"!!({find})")
        x, y = self.run(
            f"(() => {{ const e = {find}; e.scrollIntoView({{block: 'nearest'}}); "
            "const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
            self.send("Input.dispatchMouseEvent", **event)

    def move(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def close_assistant(self) -> None:
        """Close the panel at the right, where it is open."""
        find = "document.querySelector('[data-component-id*=assistant][data-component-id*=close]')"
        self.run(f"{find}?.click()")
        self.wait(f"!{find}")

    def save(self, name: str) -> None:
        """Save what is seen in docs/, with few colours, which is small."""
        path = FOLDER / name
        self.screenshot(path)
        with Image.open(path) as image:
            small: Any = image.convert("RGB").quantize(128)
        small.save(path, optimize=True)
        print(f"wrote {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
