"""Runs the job of two commits in processes that may be killed: forks one for each line of JSON on its standard input.

It imports everything once, so that a process takes no second to start; it prints the pid of each.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from kelpie_celery.ledger.types import FencingToken
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.store import open_store
from tests.contract.fakes_s3 import HandFence
from tests.integration.commit_cases import Place, ledger_at, prepare, session, states, two_commits


async def run(job: dict[str, str]) -> None:
    config = StorageConfig(
        endpoint_url=job["proxy"], access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    place = Place(job["endpoint"], job["bucket"], job["prefix"])
    token = FencingToken(job["job_id"], int(job["attempt"]), job["nonce"])
    sync, directory, _ = session(
        place, ledger_at(job["redis"]), token, HandFence(), Path(job["home"]), partial(open_store, config)
    )
    async with sync:
        await two_commits(sync, directory, states())
        await sync.end_watch()


def main() -> None:
    prepare(pytest.MonkeyPatch())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                asyncio.run(run(json.loads(line)))
                status = 0
            finally:
                os._exit(status)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
