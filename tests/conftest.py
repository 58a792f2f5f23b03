import pytest


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test finds what another, or a user, has left in the cache or has not yet sent."""
    monkeypatch.setenv("TOOLWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("TOOLWISE_SPOOL", str(tmp_path_factory.mktemp("spool")))
