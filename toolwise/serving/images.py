"""Images of a request: data URIs and URLs, fetched within limits."""

from __future__ import annotations

import asyncio
import base64
import functools
import ipaddress
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote_to_bytes, urljoin

import httpx

from toolwise.data import CorruptImage, open_image
from toolwise.errors import InputError

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
MAX_REQUEST_PIXELS = 200_000_000
"""Of all images of a request together."""
MAX_SECONDS = 10.0
MAX_REDIRECTS = 3
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

_DECODING = ThreadPoolExecutor(2, "decoding")
"""Few: an image of `MAX_PIXELS` takes 200 MB while it is decoded."""
_LOOKING_UP = ThreadPoolExecutor(8, "looking-up")
"""Its own: a name server that hangs must hold up nothing else."""
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_DOCUMENTATION = ipaddress.ip_network("3fff::/20")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class PixelBudget:
    """The pixels that the images of one request may have together."""

    def __init__(self) -> None:
        self._left = MAX_REQUEST_PIXELS
        self._taking = threading.Lock()

    def take(self, pixels: int) -> None:
        """Count an image; raises `InputError` where that is too many."""
        with self._taking:
            self._left -= pixels
            if self._left < 0:
                raise InputError(
                    f"the images together have more than {MAX_REQUEST_PIXELS:,} pixels"
                )


async def read_image(
    url: str, allow_private: bool = False, pixels: PixelBudget | None = None
) -> bytes:
    """The encoded image behind a `data:`, `http:` or `https:` URL, checked to be decodable.

    Args:
        url: where it is.
        allow_private: also fetch from addresses that are not on the public internet.
        pixels: what it and others may have together.

    Raises:
        InputError: not reachable within the limits above, or not an image.
    """
    loop = asyncio.get_running_loop()
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        data = await loop.run_in_executor(_DECODING, _decode_data_uri, url)
    elif scheme in ("http", "https"):
        try:
            async with asyncio.timeout(MAX_SECONDS):
                data = await _fetch(url, allow_private)
        except TimeoutError:
            raise InputError(f"the image did not arrive within {MAX_SECONDS:.0f} s") from None
    else:
        raise InputError("an image is given as a data:, http: or https: URL")
    await loop.run_in_executor(_DECODING, _check, data, pixels or PixelBudget())
    return data


def _decode_data_uri(uri: str) -> bytes:
    header, comma, payload = uri.partition(",")
    if not comma:
        raise InputError("the data URI has no comma before its content")
    if len(payload) > MAX_BYTES * 4 // 3 + 4:
        raise InputError(f"the image is larger than {MAX_BYTES >> 20} MiB")
    if not header.endswith(";base64"):
        return unquote_to_bytes(payload)
    try:
        return base64.b64decode(payload, validate=True)
    except ValueError as error:  # not base64, or not even ASCII
        raise InputError(f"the data URI is not valid base64: {error}") from None


async def _fetch(url: str, allow_private: bool) -> bytes:
    # Proxies from the environment would look the name up again, past the check of its address.
    async with httpx.AsyncClient(trust_env=False, verify=_certificates()) as client:
        for _ in range(MAX_REDIRECTS + 1):
            request = await _pinned_request(client, url, allow_private)
            try:
                response = await client.send(request, stream=True)
                if response.has_redirect_location:
                    url = urljoin(url, response.headers["location"])
                    await response.aclose()
                    continue
                if not response.is_success:
                    raise InputError(f"the image's server answers {response.status_code}")
                return await _limited_body(response)
            except httpx.HTTPError as error:
                raise InputError(f"the image cannot be fetched: {error}") from error
    raise InputError(f"the image is behind more than {MAX_REDIRECTS} redirects")


async def _pinned_request(
    client: httpx.AsyncClient, url: str, allow_private: bool
) -> httpx.Request:
    """A request to the very address that was checked: a second look-up could give another one."""
    try:
        target = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InputError(f"the image's URL is not valid: {error}") from None
    if target.scheme not in ("http", "https") or not target.host:
        raise InputError("the image's URL leads to something that is not http or https")
    address = await _resolve(target.host, target.port or (443 if target.scheme == "https" else 80))
    if not allow_private and not _is_public(address):
        raise InputError(f"the image's host {target.host} is not on the public internet")
    return client.build_request(
        "GET",
        target.copy_with(host=address),
        headers={
            "host": target.netloc.decode(),
            "accept": "image/*",
            "accept-encoding": "identity",
        },
        extensions={"sni_hostname": target.host},
    )


async def _resolve(host: str, port: int) -> str:
    try:
        look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(_LOOKING_UP, look_up)
    except (OSError, UnicodeError):
        raise InputError(f"the image's host {host} is not known") from None
    return str(found[0][4][0])


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        carried = _carried(parsed)
        if carried is not None:
            return _is_public(str(carried))
        if parsed not in _GLOBAL_UNICAST or parsed in _DOCUMENTATION:
            return False
    return parsed.is_global and not parsed.is_multicast


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address a gateway would send this one on to."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Reading them takes a good part of what fetching an image takes."""
    return httpx.create_ssl_context(trust_env=False)


async def _limited_body(response: httpx.Response) -> bytes:
    kind = response.headers.get("content-type", "")
    if not kind.startswith("image/"):
        await response.aclose()
        raise InputError(f"the image's server sends {kind or 'no content type'}, not an image")
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_BYTES:
                raise InputError(f"the image is larger than {MAX_BYTES >> 20} MiB")
    finally:
        await response.aclose()
    return bytes(body)


def _check(data: bytes, pixels: PixelBudget) -> None:
    try:
        with open_image(data, FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"the image has more than {MAX_PIXELS:,} pixels")
            pixels.take(image.width * image.height)
            image.load()
    except CorruptImage as error:
        raise InputError(
            f"the image cannot be read as {', '.join(FORMATS)}: {error.reason}"
        ) from None
