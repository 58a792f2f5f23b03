import os
from collections.abc import Iterator

import pytest

# Rich and Typer read these as they are imported: what tests read has no colour and a known width.
for name in ("FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "GITHUB_ACTIONS", "COLUMNS"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test finds what another, or a user, has left in the cache."""
    monkeypatch.setenv("TOOLWISE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session", autouse=True)
def _own_spool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What MLflow has not yet been told is never a user's."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TOOLWISE_SPOOL", str(tmp_path_factory.mktemp("spool")))
        yield
