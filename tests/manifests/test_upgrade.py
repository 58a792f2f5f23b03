"""Helm installs, upgrades and removes the chart at a local API server: what data needs is kept."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest

from tests.manifests.chart import CHART, VALUES, values
from tests.manifests.cluster import LocalCluster

SEARCHING = {**values("values-small"), "searxng": {"enabled": True}}
MADE_ONCE = {"toolwise-postgresql": "password", "toolwise-searxng": "secret"}
"""Secrets that the chart makes, and the key of each."""


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster() as started:
        yield started


@pytest.fixture
def releases(cluster: LocalCluster) -> Iterator[helm.Config]:
    with helm.Config(
        kubeconfig_content=cluster.kubeconfig(), namespace="toolwise", storage_driver="memory"
    ) as config:
        yield config


def install(releases: helm.Config, given: dict[str, Any], chart: Path = CHART) -> None:
    releases.install(chart, "toolwise", given, namespace="toolwise", timeout=60)


def upgrade(releases: helm.Config, given: dict[str, Any], chart: Path = CHART) -> None:
    releases.upgrade(chart, "toolwise", given, namespace="toolwise", timeout=60)


def generated(cluster: LocalCluster) -> dict[str, str]:
    return {name: cluster.the("Secret", name)["data"][key] for name, key in MADE_ONCE.items()}


def test_an_upgrade_keeps_what_was_generated(cluster: LocalCluster, releases: helm.Config) -> None:
    install(releases, SEARCHING)
    before = generated(cluster)
    assert len(set(before.values())) == 2
    upgrade(releases, {**SEARCHING, "podDisruptionBudgets": False})
    assert generated(cluster) == before
    assert not any("poddisruptionbudgets" in path for path in cluster.objects)


def test_an_install_after_an_uninstall_takes_up_volume_and_password(
    cluster: LocalCluster, releases: helm.Config
) -> None:
    given = values("values-small")
    install(releases, given)
    secret = cluster.the("Secret", "toolwise-postgresql")
    claim = cluster.the("PersistentVolumeClaim", "toolwise-postgresql")
    releases.uninstall("toolwise", timeout=60)
    assert [*cluster.objects.values()] == [secret, claim]
    install(releases, given)
    assert cluster.the("Secret", "toolwise-postgresql")["data"] == secret["data"]


@pytest.mark.parametrize(
    ("right", "typo"),
    [
        ('lookup "v1" "Secret"', 'lookup "v1" "Secrets"'),
        ("$root.Release.Namespace (index . 1)", "$root.Release.Name (index . 2)"),
        ('dig "data" (index . 2)', 'dig "date" (index . 2)'),
        ("$kept | default", '"" | default'),
    ],
)
def test_a_typo_that_loses_the_password_is_caught(
    cluster: LocalCluster, releases: helm.Config, tmp_path: Path, right: str, typo: str
) -> None:
    chart = shutil.copytree(CHART, tmp_path / "toolwise")
    template = chart / "templates" / "_names.tpl"
    text = template.read_text()
    assert right in text
    template.write_text(text.replace(right, typo, 1))
    install(releases, SEARCHING, chart)
    before = generated(cluster)
    upgrade(releases, SEARCHING, chart)
    assert generated(cluster) != before


@pytest.mark.parametrize(
    ("endpoint", "refused"),
    [
        ("http://minio.storage.svc:9000", True),
        ("https://[fd00::1]:9000/", True),
        ("http://minio.storage.svc:443", False),
        ("https://s3.example.com", False),
        ("https://[fd00::9000]", False),
    ],
)
def test_an_install_is_refused_where_its_policies_would_close_the_port_of_s3(
    cluster: LocalCluster, releases: helm.Config, endpoint: str, refused: bool
) -> None:
    cluster.objects["/api/v1/namespaces/toolwise/secrets/toolwise-storage"] = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "toolwise-storage", "namespace": "toolwise"},
        "data": {"AWS_ENDPOINT_URL_S3": base64.b64encode(endpoint.encode()).decode()},
    }
    given = {**SEARCHING, "networkPolicy": {"storagePorts": [443]}}
    if refused:
        with pytest.raises(helm.HelmError, match=r"'networkPolicy\.storagePorts=\{443,9000\}'"):
            install(releases, given)
        given["networkPolicy"] = {"storagePorts": [443, 9000]}
    install(releases, given)
    assert cluster.the("Deployment", "toolwise-mlflow")


@pytest.mark.parametrize("name", VALUES)
def test_a_values_file_needs_no_kind_of_an_optional_operator(
    cluster: LocalCluster, releases: helm.Config, name: str
) -> None:
    install(releases, values(name))
    assert cluster.the("Deployment", "toolwise-mlflow")


def test_a_service_monitor_needs_the_prometheus_operator(
    cluster: LocalCluster, releases: helm.Config
) -> None:
    given = {**values("values-gpu"), "monitoring": {"serviceMonitor": True}}
    with pytest.raises(helm.HelmError, match='no matches for kind "ServiceMonitor"'):
        install(releases, given)
