"""Signing in at a Kubeflow Pipelines server: by token, by session cookie, or at its Dex."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httpx

from pipelines.submission.server import is_loopback
from toolwise.errors import BackendError, InputError

TOKEN_PATH = "/var/run/secrets/kubeflow/pipelines/token"
"""Where a pod has the service-account token that Kubeflow projects for it."""

ADVICE = (
    "Sign in with one of\n"
    "    KFP_TOKEN=…                          a token\n"
    "    KFP_COOKIE='name=value'              the cookie of a browser that has signed in\n"
    "    KFP_USERNAME=… KFP_PASSWORD=…        a user of the server's Dex\n"
    "    KF_PIPELINES_SA_TOKEN_PATH=…         a projected service-account token"
)


class Credentials(Protocol):
    """What a request carries so that the server knows who asks."""

    @property
    def name(self) -> str:
        """What people call them."""
        ...

    def headers(self) -> dict[str, str]:
        """The headers of the next request; raises `BackendError` where there are none to be had."""
        ...

    def renew(self) -> bool:
        """Sign in again, after the server has turned a request away; whether that can help."""
        ...


@dataclass(frozen=True, slots=True)
class Anonymous:
    """No credentials: the server is behind a port-forward, or asks for none."""

    name: str = "no credentials"

    def headers(self) -> dict[str, str]:
        return {}

    def renew(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Token:
    """A token that somebody else has got."""

    token: str = field(repr=False)
    name: str = "KFP_TOKEN"

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def renew(self) -> bool:
        return False


@dataclass(slots=True)
class ProjectedToken:
    """A service-account token in a file that the kubelet writes anew before it expires."""

    path: Path
    name: str = "the service-account token"
    _used: str = field(default="", repr=False)

    def headers(self) -> dict[str, str]:
        try:
            self._used = self.path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise BackendError(f"{self.path} cannot be read: {error.strerror}") from None
        return {"Authorization": f"Bearer {self._used}"}

    def renew(self) -> bool:
        before = self._used
        self.headers()
        return self._used != before


@dataclass(frozen=True, slots=True)
class Cookie:
    """The session of a browser that has signed in."""

    cookie: str = field(repr=False)
    name: str = "KFP_COOKIE"

    def headers(self) -> dict[str, str]:
        return {"Cookie": self.cookie}

    def renew(self) -> bool:
        return False


@dataclass(slots=True)
class DexSession:
    """A session got by filling in the form of the server's Dex, as a browser would.

    Kubeflow puts oauth2-proxy in front of the server: a request without a session is led to Dex,
    whose form leads back with a code that becomes the session cookie.

    Args:
        url: address of the server.
        username, password: of a user in Dex's own list, or in the directory it asks.
        connector: Dex's name of where users are: `local` or `ldap`.
    """

    url: str
    username: str
    password: str = field(repr=False)
    connector: str = "local"
    name: str = "Dex"
    _cookie: str = field(default="", repr=False)

    def headers(self) -> dict[str, str]:
        if not self._cookie:
            self._cookie = self._sign_in()
        return {"Cookie": self._cookie}

    def renew(self) -> bool:
        self._cookie = self._sign_in()
        return True

    def _sign_in(self) -> str:
        try:
            own = is_loopback(self.url)
            with httpx.Client(follow_redirects=True, timeout=30, trust_env=not own) as browser:
                return self._browse(browser)
        except httpx.HTTPError as error:
            raise BackendError(f"signing in at {self.url} failed: {error}") from None

    def _browse(self, browser: httpx.Client) -> str:
        page = browser.get(self.url)
        if page.status_code in (401, 403):
            # oauth2-proxy shows a page with a button; this is where the button leads.
            back = urlsplit(self.url).path or "/"
            page = browser.get(httpx.URL(self.url).join("/oauth2/start"), params={"rd": back})
        if not page.history and page.is_success:
            raise InputError(
                f"{self.url} has no form to sign in with. Dex is at the gateway: give its address "
                "in KFP_HOST, such as https://kubeflow.example.com/pipeline, or "
                "http://localhost:8080/pipeline behind `kubectl -n istio-system port-forward "
                "svc/istio-ingressgateway 8080:80`. A server for a single user asks nobody: leave "
                "KFP_USERNAME out"
            )
        if page.url.path.endswith("/auth"):
            # Dex offers several places where users may be.
            chosen = page.url.copy_with(path=f"{page.url.path}/{self.connector}")
            page = browser.get(chosen)
        if not (page.is_success and page.url.path.endswith("/login")):
            raise BackendError(
                f"{self.url} leads to {page.url.copy_with(query=None)} ({page.status_code}), which "
                "is no form of Dex; sign in with a browser and give its cookie in KFP_COOKIE"
            )
        form = {"login": self.username, "password": self.password}
        page = browser.post(page.url, data=form)
        if page.url.path.endswith("/login"):
            raise InputError(
                f"Dex at {page.url.host} does not take KFP_USERNAME={self.username} with that "
                "KFP_PASSWORD"
            )
        if page.url.path.endswith("/approval"):
            page = browser.post(page.url, data={"approval": "approve"})
        cookies = {cookie.name: cookie.value for cookie in browser.cookies.jar}
        if not cookies:
            raise BackendError(f"{self.url} gave no session after signing in ({page.status_code})")
        return "; ".join(f"{name}={value}" for name, value in cookies.items())


def credentials(url: str, environment: Mapping[str, str] = os.environ) -> Credentials:
    """The credentials that the environment has for the server at `url`.

    Raises:
        InputError: a user without a password, or a path at which there is no token.
    """
    if token := environment.get("KFP_TOKEN"):
        return Token(token)
    if cookie := environment.get("KFP_COOKIE"):
        return Cookie(cookie)
    if username := environment.get("KFP_USERNAME"):
        password = environment.get("KFP_PASSWORD")
        if not password:
            raise InputError("KFP_USERNAME is given without KFP_PASSWORD")
        return DexSession(url, username, password, environment.get("KFP_CONNECTOR") or "local")
    if named := environment.get("KF_PIPELINES_SA_TOKEN_PATH"):
        if not Path(named).exists():
            raise InputError(f"KF_PIPELINES_SA_TOKEN_PATH={named}: there is no such file")
        return ProjectedToken(Path(named))
    path = Path(TOKEN_PATH)
    return ProjectedToken(path) if path.exists() else Anonymous()
