"""Every block of README and docs that can be run on this machine, run as its reader would.

How blocks are marked is told in ``tests/harness/pages.py``, and by each failure.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kelpie_celery.local import envfile
from kelpie_celery.local.servers import SeaweedServer
from kelpie_celery.local.stack import BUCKET, LocalStack
from tests.harness.doc_session import BlockFailed, DocSession, lay_out
from tests.harness.page_checks import commands
from tests.harness.pages import Block, Page, pages
from tests.harness.stack import FAST
from tests.harness.waiting import eventually

GROUP = "local"  # what `kelpie up` calls it
PAGES = [page for page in pages() if any(block.is_run for block in page.blocks)]


@pytest.fixture(scope="module")
def running_stack(servers_directory: Path, s3_server: SeaweedServer) -> Iterator[LocalStack]:
    """What ``kelpie up --workers 2`` runs, for all pages that say that it runs."""
    directory = servers_directory / "docs"
    env = {name: value for name, value in FAST.items() if name != "KELPIE_MIN_LEASE_S"}
    stack = LocalStack(
        directory, workers=2, group=GROUP, appendfsync="everysec", s3=s3_server, bucket=BUCKET, env=env
    )  # fmt: skip
    stack.start()
    yield stack
    stack.kill()


def starts_its_own(page: Page) -> bool:
    return any(call[0] == "up" for block in page.blocks if block.is_run for call in commands(block.text))


@pytest.mark.parametrize("page", PAGES, ids=str)
@pytest.mark.timeout(900)
def test_a_reader_who_types_what_a_page_says_gets_what_it_says(
    page: Page, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    session = DocSession(page, tmp_path, FAST)
    try:
        if not starts_its_own(page):
            stack: LocalStack = request.getfixturevalue("running_stack")
            envfile.write(session.checkout / ".kelpie" / "env", stack.env())
            session.source(".kelpie/env")
        for block in page.blocks:
            if block.is_run:
                session.run(block)
        session.expect_terminals()
    finally:
        session.close()


@pytest.mark.parametrize("page", pages(), ids=str)
def test_what_is_only_shown_is_a_script_all_the_same(page: Page) -> None:
    shown = [block for block in page.blocks if block.language == "sh" and not block.is_run]
    faults = [f"{block.place}: {fault}" for block in shown if (fault := syntax_fault(block.text))]
    assert not faults, "\n".join(faults)


def syntax_fault(script: str) -> str:
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=30, check=False)
    return checked.stderr if checked.returncode else ""


# -- of the harness itself: none of its checks may be one that cannot fail -------------------------------------------


@pytest.fixture
def session(tmp_path: Path) -> Iterator[DocSession]:
    (tmp_path / "page.md").write_text("serve --port 8480\n")
    session = DocSession(Page(tmp_path / "page.md", tmp_path), tmp_path / "session", {})
    yield session
    session.close()


def block(text: str, info: str = "sh", line: int = 7) -> Block:
    return Block("page.md", line, info, text)


def test_a_block_that_fails_is_named_by_file_and_line_with_what_it_said(session: DocSession) -> None:
    session.run(block("echo fine\n"))
    with pytest.raises(BlockFailed, match=r"page.md:12: ended with exit code 3[\s\S]*no such thing[\s\S]*sh shown"):
        session.run(block("echo no such thing >&2\n(exit 3)\necho never\n", line=12))


def test_a_failure_inside_a_pipe_or_before_the_last_line_is_one(session: DocSession) -> None:
    with pytest.raises(BlockFailed, match="exit code 1"):
        session.run(block("false | cat\ntrue\n"))


def test_blocks_of_a_page_share_their_variables_and_directory(session: DocSession) -> None:
    session.run(block("NAME=kelpie; mkdir -p here; cd here\n"))
    session.run(block('import os\nassert os.getcwd().endswith("here")\n', "python", 8))
    session.run(block('[ "$NAME" = kelpie ]\n', line=9))
    with pytest.raises(BlockFailed, match="AssertionError"):
        session.run(block('assert not "here"\n', "python", 10))


def test_a_port_that_a_page_names_is_a_free_one(session: DocSession) -> None:
    session.run(block("[ 8480 -ne $((8400 + 80)) ]\n"))


def test_what_is_marked_eventually_is_tried_until_it_succeeds_and_then_is_strict_again(session: DocSession) -> None:
    session.run(block("test -e twice || { test ! -e once || touch twice; touch once; false; }\n", "sh eventually"))
    with pytest.raises(BlockFailed, match="exit code 1"):
        session.run(block("false\n", line=9))


def test_a_terminal_that_ends_by_itself_is_a_failure(session: DocSession) -> None:
    session.run(block("sleep 600\n", "sh terminal"))
    session.run(block("until [ -e go ]; do sleep 0.05; done; touch gone; exit 2\n", "sh terminal", 9))
    session.expect_terminals()
    session.run(block("touch go; until [ -e gone ]; do sleep 0.05; done\n", line=11))
    told = eventually("it is noticed", lambda: why_not(session), 10)
    assert told.startswith("page.md:9: is a terminal of its own, and ended with exit code 2")


def why_not(session: DocSession) -> str:
    try:
        session.expect_terminals()
    except BlockFailed as error:
        return str(error)
    return ""


def test_a_reader_has_a_checkout_an_empty_home_and_no_network(session: DocSession) -> None:
    session.run(block('test -f README.md; test -x .venv/bin/kelpie; test -z "$(ls -A "$HOME")"\n'))
    session.run(
        block("! python -c 'import urllib.request as u; u.urlopen(\"http://example.com\", timeout=5)'\n", line=8)
    )


def test_what_a_block_writes_is_not_written_into_the_real_checkout(tmp_path: Path) -> None:
    lay_out(tmp_path / "checkout")
    (tmp_path / "checkout" / "README.md").write_text("x")
    assert all(page.text != "x" for page in pages())


def test_a_script_that_is_none_is_told() -> None:
    assert "syntax error" in syntax_fault("for x in; do")
    assert not syntax_fault("for x in 1 2; do kelpie get $x; done")
