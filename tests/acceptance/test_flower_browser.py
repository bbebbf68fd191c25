"""Flower's pages in a real browser: what is seen of jobs, and what its buttons do.

Not part of the default run: ``make test-browser``. It needs Chromium and its driver, and fails where there are none.
``DOC_IMAGES=docs/images`` has the pictures of docs/flower.md made anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kelpie_celery.local.flower import FlowerServer
from tests.harness.browser import Browser, browsing
from tests.harness.stack import Stack

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SECRET = "canary-1f0e7c55"
MAX_PICTURE_BYTES = 200_000
TABLE_ROW, CARD = "#tasks-table tr[id]", ".task-details-card"


@pytest.fixture
def flower(flower_stack: Stack) -> FlowerServer:
    assert flower_stack.local.flower is not None
    return flower_stack.local.flower


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where pictures go; each must be one that a repository can bear."""
    wanted = os.environ.get("DOC_IMAGES")
    directory = Path(wanted).absolute() if wanted else tmp_path_factory.mktemp("pictures")
    directory.mkdir(parents=True, exist_ok=True)
    yield directory
    for picture in directory.glob("flower-*.png"):
        assert 5_000 < picture.stat().st_size < MAX_PICTURE_BYTES, picture


@pytest.fixture
def browser(flower: FlowerServer, pictures: Path, tmp_path: Path) -> Iterator[Browser]:
    """A browser whose user has typed the password."""
    with browsing(tmp_path / "profile", pictures) as made:
        made.open(flower.url.replace("://", f"://{flower.env()['FLOWER_BASIC_AUTH']}@"))
        yield made


def named(stack: Stack, name: str, script: str, **fields: object) -> str:
    return stack.submit(stack.shell(script, tags={"name": name}, environment={"TOKEN": SECRET}, **fields))


def row_of(browser: Browser, job_id: str) -> str:
    return browser.text(f"#tasks-table tr[id='{job_id}']")


def state_of(browser: Browser) -> str:
    return browser.text(f"{CARD} .badge")


def test_a_running_job_is_found_watched_and_terminated(
    flower_stack: Stack, flower: FlowerServer, browser: Browser, tmp_path: Path
) -> None:
    stack, go = flower_stack, tmp_path / "go"
    stack.wait_status(named(stack, "minimise", "true"), "completed")
    stack.wait_status(named(stack, "mistyped", "exit 127", max_failures=1), "failed")
    script = f"""
        echo '{{"progress": 0.42, "message": "step 2100000 of 5000000"}}' >> $KELPIE_REPORT
        until [ -e {go} ]; do sleep 0.1; done
        echo '{{"progress": 0.8, "message": "step 4000000 of 5000000"}}' >> $KELPIE_REPORT
        while :; do sleep 0.1; done # {SECRET}
    """
    job_id = named(stack, "md 7", script)
    stack.wait_executing(job_id)

    browser.open(f"{flower.url}/tasks")
    browser.wait("the table shows progress", lambda: "42 %" in row_of(browser, job_id), reload=TABLE_ROW)
    row = row_of(browser, job_id)
    assert "name 'md 7', command 'sh'" in row
    assert "STARTED" in row
    assert "step 2100000 of 5000000" in row
    assert f"kelpie@{stack.get(job_id).machine_id}" in row.replace("\n", "")
    browser.photograph("flower-tasks")

    browser.click(f"#tasks-table tr[id='{job_id}'] a[href$='/task/{job_id}']")
    browser.wait("the task's page", lambda: job_id in browser.driver.current_url)
    assert state_of(browser) == "STARTED"
    assert "attempt 1, executing: 42 %" in browser.text(CARD)
    browser.photograph("flower-task")
    go.touch()
    browser.wait("news", lambda: "80 %: step 4000000" in browser.text(CARD), reload=CARD)
    assert state_of(browser) == "STARTED"
    assert SECRET not in browser.driver.page_source
    assert [source for source in browser.sources() if not source.startswith(f"{flower.url}/")] == []

    browser.click("#task-terminate")
    record = stack.wait_status(job_id, "canceled")
    assert [a.outcome for a in record.attempts] == ["canceled"]
    # The page asks anew by itself.
    browser.wait("the page says so", lambda: state_of(browser) == "REVOKED")
    assert not browser.find("#task-terminate")


def test_a_job_that_waits_for_its_next_try_is_revoked(
    flower_stack: Stack, flower: FlowerServer, browser: Browser
) -> None:
    stack = flower_stack
    job_id = named(stack, "md 8", "exit 3", max_failures=3)
    stack.wait("the first try failed", lambda: stack.get(job_id).num_failures == 1)
    browser.open(f"{flower.url}/task/{job_id}")
    browser.wait("the page says why", lambda: "exit_code" in browser.text(CARD), reload=CARD)
    assert state_of(browser) == "RETRY"
    assert stack.get(job_id).status == "pending"
    browser.photograph("flower-retry")
    browser.click("#task-revoke")
    stack.wait_status(job_id, "canceled")
    browser.wait("the page says so", lambda: state_of(browser) == "REVOKED")


def test_queues_and_workers_are_seen_as_they_are(flower_stack: Stack, flower: FlowerServer, browser: Browser) -> None:
    stack = flower_stack
    waiting = [
        stack.submit(stack.shell("true", container_group_id="gpu-b", priority=priority)) for priority in (0, 3, 9, 9)
    ]
    browser.open(f"{flower.url}/broker")
    # What only other brokers tell is a dash.
    lines = [line.split() for line in browser.text().splitlines() if line.startswith("kelpie.gpu-b")]
    assert [line[:2] for line in lines] == [["kelpie.gpu-b", "4"]]
    browser.photograph("flower-broker")
    browser.open(f"{flower.url}/workers")
    machine = next(iter(stack.local.machines.values())).machine_id
    browser.wait("the worker's row", lambda: machine in browser.text("#workers-table").replace("\n", ""))
    browser.photograph("flower-workers")
    for job_id in waiting:
        stack.ledger.cancel(job_id)
