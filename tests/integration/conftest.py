import os
from collections.abc import Iterator

import pytest
from mlflow_server import MlflowServer


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One for all tests: it takes long to start."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow-server"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def mlflow_uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLflow on an SQLite file; under `make test-services` a server on PostgreSQL and S3."""
    if os.environ.get("TOOLWISE_TEST_POSTGRES"):
        return request.getfixturevalue("mlflow_server").uri
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/runs/mlflow.db"


@pytest.fixture(scope="session", autouse=True)
def _hurried_steps() -> Iterator[None]:
    """Steps open their parent run one after another here, and have nobody to wait for."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("toolwise.tracking.delivery.SETTLING_SECONDS", 0.0)
        yield
