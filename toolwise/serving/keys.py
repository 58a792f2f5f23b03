"""API keys: who may ask, and how much; read from a file that a secret is mounted as."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from pathlib import Path

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from toolwise.errors import InputError
from toolwise.serving.openai_api import RequestError

_log = logging.getLogger("toolwise.serving")


class ApiKey(BaseModel):
    """One caller.

    Args:
        name: what logs, traces and metrics call it.
        key: the secret, sent as `Authorization: Bearer …`.
        requests_per_minute: requests let in on average; as many may come at once.
        concurrent: requests at a time: being sent, waiting, or being answered.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.@-]+$")
    key: SecretStr = Field(min_length=16)
    requests_per_minute: int | None = Field(default=None, ge=1)
    concurrent: int | None = Field(default=None, ge=1)

    @field_validator("key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[!-~]+", key.get_secret_value()):
            raise ValueError("a key is ASCII without spaces, for it is sent in a header")
        return key


ANYONE = ApiKey(name="anyone", key=SecretStr("no-key-is-asked-for"))
"""The caller where there are no keys."""

_KEYS = TypeAdapter(list[ApiKey])


class KeyFile:
    """A YAML list of `ApiKey`, read again when it changes.

    A change that cannot be read leaves the keys as they were: a typo must neither lock everybody
    out nor let anybody in.

    Args:
        path: the file.

    Raises:
        InputError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._version()
        self._keys = self._read()

    def caller(self, authorization: str | None) -> ApiKey:
        """Whose key an `Authorization` header carries.

        Raises:
            RequestError: 401, it carries none that is known.
        """
        self._refresh()
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise RequestError(
                "an API key is needed: `Authorization: Bearer …`", status=401, code="missing_key"
            )
        # Every key is compared, each in constant time: how long it takes tells nothing.
        digest = _digest(secret.strip())
        found = [key for known, key in self._keys if hmac.compare_digest(known, digest)]
        if not found:
            raise RequestError("this API key is not known", status=401, code="invalid_api_key")
        return found[0]

    def _refresh(self) -> None:
        version = self._version()
        if version == self._seen:
            return
        self._seen = version
        try:
            self._keys = self._read()
            _log.info("API keys read again from %s", self._path)
        except InputError as error:
            _log.error("the API keys stay as they were: %s", error)

    def _version(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _read(self) -> list[tuple[bytes, ApiKey]]:
        try:
            keys = _KEYS.validate_python(yaml.safe_load(self._path.read_text()))
        except OSError as error:
            raise InputError(f"the key file {self._path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError):
            # The parser's message would quote the secret.
            raise InputError(f"the key file {self._path} is not valid YAML") from None
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = "".join(f"[{step!r}]" for step in first["loc"])
            raise InputError(f"the key file {self._path}, {where}: {first['msg']}") from None
        if not keys or len({key.name for key in keys}) < len(keys):
            raise InputError(f"the key file {self._path} must list keys, each under its own name")
        digests = [_digest(key.key.get_secret_value()) for key in keys]
        if len(set(digests)) < len(digests):
            raise InputError(f"the key file {self._path} has one key under two names")
        return list(zip(digests, keys, strict=True))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
