"""Fields of settings that Kubernetes takes, refused where it would refuse them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator


def _matching(pattern: str, what: str) -> AfterValidator:
    """Refuse text that does not match the whole of `pattern`."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"is not {what}")
        return value

    return AfterValidator(check)


_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_COMPONENT = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_REGISTRY = r"[a-zA-Z0-9][a-zA-Z0-9.-]*(?::\d+)?"

Name = Annotated[
    str, _matching(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*", "a name of an object, like my-object")
]
"""Name of an object: a DNS subdomain (RFC 1123)."""

Namespace = Annotated[str, _matching(_LABEL, "a name of a namespace, like my-namespace")]
"""Name of a namespace: a DNS label (RFC 1123)."""

Cores = Annotated[
    str, _matching(r"(?=.*[1-9])\d+(\.\d+)?|(?=.*[1-9])\d+m", "an amount of cores, like 16 or 500m")
]
"""An amount of cores."""

Memory = Annotated[
    str, _matching(r"[1-9]\d*(\.\d+)?([KMGTPE]i|[kMGTPE])?", "an amount of memory, like 64Gi")
]
"""An amount of memory."""

ImageName = Annotated[
    str,
    _matching(
        rf"(?:{_REGISTRY}/)?{_COMPONENT}(?:/{_COMPONENT})*"
        r"(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?",
        "a name of an image, like registry.example.com/team/image:1.0",
    ),
]
"""Name of a container image (OCI Distribution)."""

ResourceName = Annotated[
    str, _matching(rf"{_LABEL}(\.{_LABEL})*/[\w.-]+", "a name of a resource, like nvidia.com/gpu")
]
"""Name of a resource that devices offer."""
