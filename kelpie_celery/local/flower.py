"""Flower, Celery's own web page, on loopback and behind a password.

Limits: without a password Flower would show its pages to everybody, so there always is one; it is in the
stack's ``env`` file.
"""

from __future__ import annotations

import http.client
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from kelpie_celery.clock import Clock
from kelpie_celery.local.credentials import load_or_make
from kelpie_celery.local.ports import LOOPBACK
from kelpie_celery.local.processes import ManagedProcess
from kelpie_celery.local.server import Server


class FlowerServer(Server):
    """Flower for the Celery app of this distribution."""

    name = "flower"
    ready_timeout_s = 60.0

    def __init__(
        self, directory: Path, process_env: Callable[[], Mapping[str, str]], clock: Clock | None = None
    ) -> None:
        """A Flower that is not started yet.

        Args:
            directory: Where to keep its password and its log.
            process_env: Gives its environment, once the Redis server has a port.
            clock: Where time comes from.
        """
        super().__init__(directory, clock=clock)
        self._process_env = process_env

    @property
    def url(self) -> str:
        """``http://`` URL of its pages and its API."""
        return f"http://{LOOPBACK}:{self.port}"

    def env(self) -> dict[str, str]:
        """What a client needs, as in ``curl -u "$FLOWER_BASIC_AUTH" $FLOWER_URL/api/workers``; a secret."""
        return {"FLOWER_URL": self.url, "FLOWER_BASIC_AUTH": ":".join(load_or_make(self._password_file))}

    @property
    def _password_file(self) -> Path:
        return self.directory / "credentials.json"

    def _make_process(self) -> ManagedProcess:
        # The password goes by the environment: a command line can be read by every user of the machine.
        env = {**self._process_env(), "FLOWER_BASIC_AUTH": self.env()["FLOWER_BASIC_AUTH"]}
        options = [f"--address={LOOPBACK}", f"--port={self.port}"]
        argv = [sys.executable, "-m", "celery", "-A", "kelpie_celery", "flower", *options]
        return ManagedProcess(self.name, argv, env=env, cwd=self.directory, log=self.log, clock=self._clock)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=2)
        try:
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
