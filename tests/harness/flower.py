"""Flower as its users meet it: pages and API over HTTP."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from typing import Any

from kelpie_celery.local.flower import FlowerServer

COLUMNS = ("uuid", "args", "state", "result")


class Visitor:
    """Somebody with the password, or without one."""

    def __init__(self, flower: FlowerServer, credentials: str | None = None) -> None:
        self.url = flower.url
        self.credentials = flower.env()["FLOWER_BASIC_AUTH"] if credentials is None else credentials

    def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Status and text of an answer."""
        token = base64.b64encode(self.credentials.encode()).decode()
        headers = {"Authorization": f"Basic {token}"} if self.credentials else {}
        request = urllib.request.Request(f"{self.url}{path}", method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def page(self, path: str) -> str:
        """A page's text."""
        status, text = self.ask(path)
        assert status == 200, (path, status, text)
        return text

    def task(self, job_id: str) -> dict[str, Any]:
        """What Flower knows of a task; empty when nothing."""
        status, text = self.ask(f"/api/task/info/{job_id}")
        return dict(json.loads(text)) if status == 200 else {}

    def table(self) -> str:
        """What the page of all tasks fetches."""
        columns = "&".join(f"columns[{n}][data]={name}" for n, name in enumerate(COLUMNS))
        return self.page(f"/tasks/datatable?draw=1&start=0&length=100&order[0][column]=0&order[0][dir]=asc&{columns}")

    def queue_lengths(self) -> dict[str, int]:
        """Messages by queue, as the broker page counts them."""
        found = json.loads(self.page("/api/queues/length"))["active_queues"]
        return {queue["name"]: queue["messages"] for queue in found}

    def revoke(self, job_id: str, *, terminate: bool) -> None:
        """What the buttons Revoke and Terminate do."""
        status, text = self.ask(f"/api/task/revoke/{job_id}?terminate={str(terminate).lower()}", "POST")
        assert status == 200, text
