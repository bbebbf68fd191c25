"""Settings of the storage that cannot be used are named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kelpie_celery.checkpoints.storage import open_storage
from kelpie_celery.errors import StorageSetupError
from kelpie_celery.settings import Settings, load_settings
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.store import open_store

WRONG = [("AWS_REGION", "us east 1!"), ("AWS_CA_BUNDLE", "/nonexistent.pem")]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Settings]:
    def load(name: str, value: str) -> Settings:
        monkeypatch.setenv(name, value)
        env = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": "https://127.0.0.1:1"}
        return load_settings({**env, "KELPIE_REDIS_URL": "rediss://x/0", name: value})

    return load


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_command_names_the_setting(settings: Callable[[str, str], Settings], name: str, value: str) -> None:
    with pytest.raises(StorageSetupError, match=name):
        list(open_storage(settings(name, value)).list("b", "p/"))


@pytest.mark.parametrize(("name", "value"), WRONG)
async def test_a_worker_names_the_setting(settings: Callable[[str, str], Settings], name: str, value: str) -> None:
    with pytest.raises(StorageSetupError, match=name):
        async with open_store(StorageConfig.from_settings(settings(name, value))):
            pass
