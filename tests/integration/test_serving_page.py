"""The page at `/`, in a real browser: pictures, a question, the answer, calls and time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser import Browser, needs_chromium
from PIL import Image
from served import ServedProcess
from streaming_server import StreamingServer

pytestmark = needs_chromium

KEY = "page-0123456789abcdef"
BUSY = "document.querySelector('#reply.busy')"


@pytest.fixture(scope="module")
def upstream() -> Iterator[StreamingServer]:
    with StreamingServer() as running:
        yield running


@pytest.fixture(scope="module")
def server(
    upstream: StreamingServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedProcess]:
    folder = tmp_path_factory.mktemp("server")
    keys = folder / "keys.yaml"
    keys.write_text(f"- {{name: page, key: {KEY}}}\n")
    arguments = ("--upstream", upstream.url, "--keys", str(keys))
    with ServedProcess(folder / "log", *arguments) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, server: ServedProcess) -> Browser:
    """The page, opened with its key given by keyboard."""
    browser.open(f"{server.origin}/")
    browser.wait("!document.getElementById('key-field').hidden")
    browser.run("document.getElementById('key').focus()")
    browser.type(KEY)
    browser.run("document.getElementById('question').focus()")
    browser.complaints.clear()  # the 401 that made it ask for the key
    return browser


def text(browser: Browser, selector: str) -> str:
    return browser.run(f"document.querySelector({selector!r}).innerText")


def ask(browser: Browser, question: str) -> None:
    browser.type(question)
    browser.press("Enter", modifiers=2)
    browser.wait(f"!{BUSY} && document.querySelector('#facts dd')")


def test_a_question_asked_by_keyboard_shows_answer_call_and_time(page: Browser) -> None:
    ask(page, "call print(6 * 7)")
    assert text(page, "#answer") == "done"
    assert text(page, "#calls summary code") == "python"
    assert text(page, "#calls summary .what") == "print(6 * 7)"
    assert text(page, "#calls summary time").endswith(" s")
    assert text(page, "#facts").split()[0] == "Time"
    assert "1 called" in text(page, "#facts")
    assert text(page, "#model") == "toolwise"
    page.run("document.querySelector('#calls summary').focus()")
    page.press("Enter")
    page.wait("document.querySelector('#calls details').open")
    assert "42" in text(page, "#calls pre:last-child")
    assert page.complaints == []


def test_chosen_pictures_are_shown_sent_and_can_be_taken_back(
    page: Browser, upstream: StreamingServer, tmp_path: Path
) -> None:
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{colour}.png")
    page.choose_files("#file", tmp_path / "red.png", tmp_path / "blue.png")
    page.wait("document.querySelectorAll('#pictures img').length == 2")
    page.run("document.querySelector('#pictures button').focus()")
    page.press("Enter")
    page.wait("document.querySelectorAll('#pictures img').length == 1")
    page.run("document.getElementById('question').focus()")
    ask(page, "say <answer>a picture</answer>")
    assert text(page, "#answer") == "a picture"
    parts = upstream.requests[-1]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "text"]


def test_a_dropped_picture_is_taken(page: Browser) -> None:
    page.run(
        """(async () => {
          const canvas = new OffscreenCanvas(20, 20);
          canvas.getContext('2d').fillRect(0, 0, 20, 20);
          const data = new DataTransfer();
          const blob = await canvas.convertToBlob();
          data.items.add(new File([blob], 'black.png', {type: 'image/png'}));
          document.getElementById('drop').dispatchEvent(
            new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
        })()"""
    )
    page.wait("document.querySelector('#pictures img')?.alt == 'black.png'")


def test_an_error_is_told_and_the_page_goes_on(page: Browser) -> None:
    ask(page, "garbage")
    assert "chunks" in text(page, "#error")
    page.run("document.getElementById('question').value = ''")
    page.run("document.getElementById('question').focus()")
    ask(page, "say <answer>4</answer>")
    assert text(page, "#answer") == "4"
    assert page.run("document.getElementById('error').hidden")


def test_markup_in_an_answer_stays_text(page: Browser) -> None:
    ask(page, "say <answer><img src=x onerror=alert(1)></answer>")
    assert text(page, "#answer") == "<img src=x onerror=alert(1)>"
    assert page.run("document.querySelector('#answer img')") is None


def test_escape_stops_an_answer_and_the_work_behind_it(
    page: Browser, upstream: StreamingServer
) -> None:
    page.type("wait")
    page.press("Enter", modifiers=2)
    page.wait("document.getElementById('answer').innerText == 'first'")
    page.press("Escape")
    page.wait(f"!{BUSY}")
    assert text(page, "#error") == "Stopped."
    assert upstream.gone.wait(60)


def test_tab_reaches_everything_in_order(page: Browser) -> None:
    page.run("document.getElementById('file').focus()")
    order = []
    for _ in range(4):
        page.press("Tab")
        order.append(page.run("document.activeElement.id"))
    assert order == ["question", "key", "tools", "send"]


@pytest.mark.parametrize(("scheme", "light"), [("light", True), ("dark", False)])
def test_the_page_follows_the_colour_scheme_with_enough_contrast(
    browser: Browser, server: ServedProcess, scheme: str, light: bool
) -> None:
    browser.open(f"{server.origin}/", scheme=scheme)
    browser.wait("!document.getElementById('key-field').hidden")
    for selector in ("body", "header p", "#send", "#hint", ".choice"):
        ink, paper = (rgb(browser, selector, kind) for kind in ("color", "background"))
        assert contrast(ink, paper) >= 4.5, selector
    assert (luminance(rgb(browser, "body", "background")) > 0.5) is light


def test_who_does_not_ask_for_html_is_told_that_the_server_lives(server: ServedProcess) -> None:
    assert httpx.get(f"{server.origin}/").json() == {"status": "alive"}
    assert httpx.get(f"{server.origin}/page/server.py").status_code == 404


def rgb(browser: Browser, selector: str, kind: str) -> tuple[int, int, int]:
    """A computed colour; a transparent background is that of what lies behind it."""
    name = "color" if kind == "color" else "backgroundColor"
    found = browser.run(
        f"""(() => {{
          let at = document.querySelector({selector!r});
          while (getComputedStyle(at).{name} == 'rgba(0, 0, 0, 0)') at = at.parentElement;
          return getComputedStyle(at).{name}.match(/\\d+/g).slice(0, 3).map(Number);
        }})()"""
    )
    return tuple(found)


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance, from 0 to 1 (WCAG 2)."""
    channels = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), channels, strict=True))


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Contrast ratio of two colours, from 1 to 21 (WCAG 2)."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
