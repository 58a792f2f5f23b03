"""Whether an image can be pulled, asked of its registry (OCI Distribution, "Pulling manifests")."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from pipelines.preflight.finding import Answer

_MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)
_SECONDS = 15.0
_HUB = ("registry-1.docker.io", "index.docker.io", "docker.io")
"""Docker Hub's registry, and what pull secrets call it."""


class Login(NamedTuple):
    """Who asks a registry."""

    username: str
    password: str


class Image(NamedTuple):
    """An image's name, in its parts."""

    registry: str
    repository: str
    reference: str

    @classmethod
    def parse(cls, name: str) -> Image:
        """Docker's reading of a name: without a registry it is on Docker Hub."""
        bare, at, digest = name.partition("@")
        first, slash, rest = bare.partition("/")
        if not slash or not (set(".:") & set(first) or first == "localhost"):
            first, rest = "docker.io", bare
        path, colon, tag = rest.rpartition(":")
        path, tag = (path, tag) if colon else (rest, "latest")
        if first == "docker.io":
            first = _HUB[0]
            path = path if "/" in path else f"library/{path}"
        return cls(first, path, digest if at else tag)


def look_up(image: str, logins: Mapping[str, Login]) -> Answer:
    """Ask an image's registry for its manifest.

    Args:
        image: its name.
        logins: registry → who asks there.
    """
    name = Image.parse(image)
    login = login_at(name.registry, logins)
    try:
        with httpx.Client(timeout=_SECONDS, follow_redirects=True) as client:
            reply = _manifest(client, name, login)
    except (httpx.HTTPError, ValueError) as error:
        return Answer(None, f"{name.registry} could not be asked from here ({error})")
    if reply.is_success:
        return Answer(True, f"{name.registry} has it")
    if reply.status_code == 404:
        return Answer(False, f"{name.registry} does not have it")
    if reply.status_code in (401, 403):
        who = f"to {login.username}" if login else "without credentials"
        return Answer(False, f"{name.registry} does not give it {who}")
    return Answer(None, f"{name.registry} answers {reply.status_code}")


def _manifest(client: httpx.Client, name: Image, login: Login | None) -> httpx.Response:
    local = name.registry.split(":")[0] in ("localhost", "127.0.0.1")
    address = f"{'http' if local else 'https'}://{name.registry}/v2/{name.repository}"
    url = f"{address}/manifests/{name.reference}"
    headers = {"Accept": _MANIFESTS}
    reply = client.head(url, headers=headers)
    if reply.status_code != 401:
        return reply
    challenge = reply.headers.get("WWW-Authenticate", "")
    asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if challenge.lower().startswith("bearer") and "realm" in asked:
        token = _token(client, asked, name, login)
        if token is None:
            return reply
        return client.head(url, headers={**headers, "Authorization": f"Bearer {token}"})
    if login is not None:
        return client.head(url, headers=headers, auth=(login.username, login.password))
    return reply


def _token(
    client: httpx.Client, asked: Mapping[str, str], name: Image, login: Login | None
) -> str | None:
    """A token of the registry's own authority (Docker's token authentication); None without one."""
    query = {
        "service": asked.get("service", ""),
        "scope": asked.get("scope") or f"repository:{name.repository}:pull",
    }
    auth = (login.username, login.password) if login else None
    answer = client.get(asked["realm"], params=query, auth=auth)
    if not answer.is_success:
        return None
    body = answer.json()
    return body.get("token") or body.get("access_token")


def login_at(registry: str, logins: Mapping[str, Login]) -> Login | None:
    """Who asks a registry; Docker Hub's login, under whichever of its names, is for it alone."""
    names = _HUB if registry == _HUB[0] else (registry,)
    return next((logins[name] for name in names if name in logins), None)


def logins_of(secret: Mapping[str, str]) -> dict[str, Login]:
    """Registry → login, as a secret of type `kubernetes.io/dockerconfigjson` holds them.

    Raises:
        ValueError: it holds none.
    """
    config: Any = json.loads(secret[".dockerconfigjson"])
    found = {}
    for address, entry in config["auths"].items():
        registry = re.sub(r"^https?://", "", address).split("/")[0]
        if "auth" in entry:
            username, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        else:
            username, password = entry["username"], entry["password"]
        found[registry] = Login(username, password)
    return found
