"""Images are fetched from a real HTTP server, within limits."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from toolwise.errors import InputError
from toolwise.serving import images
from toolwise.serving.images import PixelBudget, read_image


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    return buffer.getvalue()


class _Site(BaseHTTPRequestHandler):
    let_go = threading.Event()

    def do_GET(self) -> None:
        kind, _, rest = self.path.lstrip("/").partition("/")
        if kind == "redirect":
            target = "file:///etc/passwd" if rest == "file" else f"/redirect/{int(rest) - 1}"
            self.send_response(302)
            self.send_header("location", "/image" if rest == "0" else target)
            self.end_headers()
            return
        self.send_response({"missing": 404, "nowhere": 302}.get(kind, 200))
        self.send_header("content-type", "text/html" if kind == "page" else "image/png")
        if kind == "bomb":
            self.send_header("content-encoding", "deflate")
        self.end_headers()
        if kind == "slow":
            self.let_go.wait()
        if kind == "bomb":
            self.wfile.write(zlib.compress(bytes(images.MAX_BYTES + 1)))
        elif kind == "host":
            self.wfile.write(self.headers["host"].encode())
        else:
            self.wfile.write(picture())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        _Site.let_go.set()
        server.shutdown()


async def test_an_image_is_fetched_where_private_addresses_are_allowed(site: str) -> None:
    assert await read_image(f"{site}/image", allow_private=True) == picture()


async def test_a_few_redirects_are_followed(site: str) -> None:
    assert await read_image(f"{site}/redirect/1", allow_private=True) == picture()


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("redirect/4", "3 redirects"),
        ("redirect/file", "not http or https"),
        ("nowhere/", "answers 302"),
        ("missing/", "404"),
        ("page/", "text/html"),
        ("bomb/", "larger than 20 MiB"),
        ("host/", "cannot be read as PNG"),
    ],
)
async def test_what_is_not_an_image_within_limits_is_refused(
    site: str, path: str, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        await read_image(f"{site}/{path}", allow_private=True)


async def test_a_slow_server_is_given_up(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_SECONDS", 0.2)
    with pytest.raises(InputError, match="did not arrive"):
        await read_image(f"{site}/slow/", allow_private=True)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0", "2130706433"])
async def test_hosts_that_resolve_to_private_addresses_are_refused(host: str) -> None:
    with pytest.raises(InputError, match="public internet"):
        await read_image(f"http://{host}:1/x.png")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("fec0::1", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b:1::10.0.0.1", False),
        ("::127.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("3fff::1", False),
        ("64:ff9b::93.184.215.14", True),
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
    ],
)
def test_only_addresses_of_the_public_internet_are_public(address: str, public: bool) -> None:
    assert images._is_public(address) is public


async def test_a_redirect_does_not_lead_to_a_private_address(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def first_is_public(address: str) -> bool:
        seen.append(address)
        return len(seen) == 1

    monkeypatch.setattr(images, "_is_public", first_is_public)
    with pytest.raises(InputError, match="public internet"):
        await read_image(f"{site}/redirect/0")
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("ftp://example.com/x.png", "data:, http: or https:"),
        ("x.png", "data:, http: or https:"),
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,@@@@", "base64"),
        ("data:image/png;base64,é", "base64"),
        ("data:image/png;base64,aGVsbG8=", "cannot be read"),
        ("http://", "not http or https"),
    ],
)
async def test_a_url_that_is_none_is_refused(uri: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        await read_image(uri)


async def test_a_truncated_image_is_refused() -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    half = base64.b64encode(buffer.getvalue()[: len(buffer.getvalue()) // 2]).decode()
    with pytest.raises(InputError, match="cannot be read"):
        await read_image(f"data:image/png;base64,{half}")


async def test_an_image_of_too_many_pixels_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("1", (10_000, 6_000)).save(buffer, "PNG")
    with pytest.raises(InputError, match="pixels"):
        await read_image(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}")


async def test_the_images_of_a_request_share_a_number_of_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "MAX_REQUEST_PIXELS", 40)
    uri = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    pixels = PixelBudget()
    for _ in range(2):
        await read_image(uri, pixels=pixels)
    with pytest.raises(InputError, match="together have more than 40 pixels"):
        await read_image(uri, pixels=pixels)


class Names:
    """A name server: each look-up gets the next of its addresses, and then the last.

    Args:
        monkeypatch: puts it in place of the machine's.
        addresses: what it answers; None hangs until the test ends.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str | None) -> None:
        self._addresses = list(addresses)
        self.asked = 0
        self.let_go = threading.Event()
        self._machines = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: Any, *arguments: Any, **named: Any) -> Any:
        if not str(host).endswith(".test"):
            return self._machines(host, *arguments, **named)
        self.asked += 1
        address = self._addresses.pop(0) if len(self._addresses) > 1 else self._addresses[0]
        if address is None:
            self.let_go.wait(60)
            raise socket.gaierror(-2, "Name or service not known")
        return self._machines(address, *arguments, **named)


async def test_a_name_that_leads_elsewhere_when_it_is_connected_to_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DNS rebinding: the first look-up gives a public address, later ones a private one."""
    with socket.create_server(("127.0.0.2", 0)) as meant:
        meant.settimeout(10)
        port = meant.getsockname()[1]
        with socket.create_server(("127.0.0.3", port)) as private:
            private.setblocking(False)
            names = Names(monkeypatch, "127.0.0.2", "127.0.0.3")
            monkeypatch.setattr(images, "_is_public", lambda address: address == "127.0.0.2")
            reading = asyncio.create_task(read_image(f"http://moving.test:{port}/x.png"))
            connection, _ = await asyncio.to_thread(meant.accept)
            with connection:
                request = (await asyncio.to_thread(connection.recv, 4096)).decode()
                assert f"host: moving.test:{port}" in request.lower()
                connection.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                with pytest.raises(InputError, match="404"):
                    await reading
            with pytest.raises(BlockingIOError):
                private.accept()
    assert names.asked == 1


async def test_names_that_are_looked_up_for_ever_hold_up_no_other_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch, None)
    hanging = [asyncio.create_task(read_image(f"http://h{i}.test/x.png")) for i in range(40)]
    try:
        while names.asked == 0:
            await asyncio.sleep(0)
        uri = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
        async with asyncio.timeout(5):
            assert await read_image(uri) == picture()
            assert await asyncio.to_thread(lambda: "another's work") == "another's work"
    finally:
        names.let_go.set()
        await asyncio.gather(*hanging, return_exceptions=True)
