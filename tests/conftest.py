import functools
import inspect
import os
import sys
from collections.abc import Iterator

import pytest

# Rich and Typer read these as they are imported: what tests read has no colour and a known width.
for name in ("FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "GITHUB_ACTIONS", "COLUMNS"):
    os.environ.pop(name, None)
os.environ.pop("MLFLOW_EXPERIMENT_NAME", None)  # a user's


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """A command run in this process may name its profile's MLflow in the environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module", autouse=True)
def _own_mlflow() -> Iterator[None]:
    """MLflow's address for the whole process is set by a module for itself."""
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)


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


@pytest.fixture(scope="session", autouse=True)
def _quick_compiler() -> Iterator[None]:
    """KFP asks for its caller's name with the source lines of every frame, which takes ten times
    as long as all else in a process as full as this one."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(inspect, "stack", functools.partial(inspect.stack, 0))
        yield
