"""The Helm chart, linted and rendered as a cluster would get it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

from tests.manifests.manifests import Document, read

CHART = Path(__file__).parents[2] / "charts" / "toolwise"
OUTSIDE = frozenset(
    {
        "Secret/toolwise-storage/AWS_ACCESS_KEY_ID",
        "Secret/toolwise-storage/AWS_ENDPOINT_URL_S3",
        "Secret/toolwise-storage/AWS_SECRET_ACCESS_KEY",
        "ServingRuntime/kserve-huggingfaceserver",
    }
)
"""What a release refers to and does not make."""
VALUES = {path.stem: path for path in sorted(CHART.glob("values-*.yaml"))}
"""The values files that come with the chart; `values.yaml` alone is refused for its sandbox."""
_WARNING = 2


def values(name: str) -> dict[str, Any]:
    """The content of a values file."""
    return yaml.safe_load(VALUES[name].read_text(encoding="utf-8"))


def lint(given: dict[str, Any] | None = None, chart: Path = CHART) -> list[str]:
    """What `helm lint --strict` says; empty where nothing is wrong."""
    report = helm.lint(chart, given, strict=True, namespace="toolwise")
    warnings = [m["error"] for m in report["messages"] if m["severity"] >= _WARNING]
    return [*warnings, *report["errors"]]


def render(given: dict[str, Any], chart: Path = CHART) -> list[Document]:
    """The manifests of `helm install toolwise charts/toolwise -n toolwise`, its tests included.

    Raises:
        helm.HelmError: the values are against the schema, or refused by a template.
    """
    files = helm.Chart.load(chart).render(given, name="toolwise", namespace="toolwise")
    return [
        document
        for name, text in files.items()
        if name.endswith(".yaml")
        for document in read(text)
    ]
