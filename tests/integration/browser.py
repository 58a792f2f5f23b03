"""Headless Chromium for tests of pages, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (make browser installs it)"
)

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
_SECONDS = 120.0


class Browser:
    """One page of a Chromium of its own."""

    def __enter__(self) -> Browser:
        assert CHROMIUM is not None
        self._profile = tempfile.mkdtemp()
        self._process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        port = self._port()
        pages = httpx.get(f"http://127.0.0.1:{port}/json", timeout=_SECONDS).json()
        url = next(page for page in pages if page["type"] == "page")["webSocketDebuggerUrl"]
        self._socket = connect(url, max_size=None, open_timeout=_SECONDS)
        self._numbers = itertools.count(1)
        self._loaded = 0
        self.complaints: list[str] = []
        """What the page wrote to its console as an error, refused resources included."""
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        os.killpg(self._process.pid, 9)
        self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def _port(self) -> str:
        """Chromium writes into its profile where it listens."""
        told, deadline = Path(self._profile, "DevToolsActivePort"), time.monotonic() + _SECONDS
        while not (told.exists() and (lines := told.read_text().splitlines())):
            assert self._process.poll() is None, "Chromium ended at its start"
            assert time.monotonic() < deadline, "Chromium does not say where it listens"
            time.sleep(0.05)
        return lines[0]

    def send(self, method: str, **params: Any) -> Any:
        """One command of the protocol."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        deadline = time.monotonic() + _SECONDS
        while True:
            message = self._receive(deadline)
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]

    def open(self, url: str, scheme: str = "light", width: int = 900, height: int = 1000) -> None:
        """Go to a page, with that colour scheme."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        loaded, deadline = self._loaded, time.monotonic() + _SECONDS
        self.send("Page.navigate", url=url)
        while self._loaded == loaded:
            self._receive(deadline)

    def run(self, expression: str) -> Any:
        """The value of an expression in the page."""
        given = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        result = self.send("Runtime.evaluate", **given)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression holds in the page, which looks for itself."""
        look = f"const look = () => ({expression}) ? resolve() : setTimeout(look, 30)"
        self.run(f"new Promise((resolve) => {{ {look}; look(); }})")

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key (`Tab`, `Enter`, `Escape`, `Space`); modifier 2 is Ctrl, 8 Shift."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27, "Space": 32}[key]
        given: dict[str, Any] = {
            "key": " " if key == "Space" else key,
            "code": key,
            "windowsVirtualKeyCode": code,
            "modifiers": modifiers,
        }
        text = {"Enter": "\r", "Space": " "}.get(key)
        typed = {"text": text} if text else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **given, **typed)
        self.send("Input.dispatchKeyEvent", type="keyUp", **given)

    def choose_files(self, selector: str, *paths: Path) -> None:
        """Give files to a file input, as its dialog does."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path) for path in paths], nodeId=node)

    def screenshot(self, path: Path) -> None:
        """The page as a PNG file."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def _receive(self, deadline: float) -> dict[str, Any]:
        """What the page says next; a page may go on talking and never say what one waits for."""
        message = json.loads(self._socket.recv(timeout=max(0.0, deadline - time.monotonic())))
        match message:
            case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
                self.complaints.append(json.dumps(details))
            case {"method": "Page.loadEventFired"}:
                self._loaded += 1
            case {"method": "Log.entryAdded", "params": {"entry": {"level": "error"} as entry}}:
                self.complaints.append(entry["text"])
        return message
