"""What is heard of a program's files: real inotify, a real process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

from kelpie_celery.clock import SystemClock
from kelpie_worker.preflight.listening import APPENDED, IN_PLACE, NEW, RENAMED, Heard, Listener, Root
from tests.harness.waiting import eventually

BOUND_S = 30.0


class Hear(Protocol):
    """Runs a program and listens to it; one that ``waits`` gets a second line when its report has been heard."""

    def __call__(self, program: str, *, waits: bool = False) -> Heard: ...


@pytest.fixture
def hear(tmp_path: Path) -> Hear:
    """Runs a Python program in a directory with ``state/old.bin`` and ``state/log``, and listens to it."""
    state, said = tmp_path / "state", tmp_path / "said"
    state.mkdir()
    said.mkdir()
    (state / "old.bin").write_bytes(b"x" * 100_000)
    (state / "log").write_text("line 1\n")
    (said / "report.jsonl").touch()

    def run(program: str, *, waits: bool = False) -> Heard:
        waiting = f"import json, os, sys; sys.stdin.readline()\n{program}"
        with subprocess.Popen([sys.executable, "-c", waiting], cwd=tmp_path, stdin=subprocess.PIPE) as process:
            listener = Listener([Root(state, "state")], said / "report.jsonl", process.pid, SystemClock())
            listener.start()
            if waits and process.stdin:
                process.stdin.write(b"\n")
                process.stdin.flush()
                eventually("its report is heard", lambda: listener._said, BOUND_S)
            process.communicate(b"\n", timeout=BOUND_S)
            assert process.returncode == 0
        return listener.stop()

    return run


def hows(heard: Heard) -> list[tuple[str, str]]:
    return [(one.path, one.how) for one in heard.writes]


def test_nothing_is_heard_of_a_program_that_only_looks_for_names(hear: Hear) -> None:
    heard = hear("os.listdir('state'); os.stat('state/old.bin'); os.path.exists('state/old.bin')")
    assert set(heard.restored) == {"state/old.bin", "state/log"}
    assert (heard.read, heard.writes, heard.missed) == ((), (), False)


@pytest.mark.parametrize(
    "program",
    [
        "open('state/old.bin', 'rb').read(1)",
        "import mmap; f = open('state/old.bin', 'rb'); mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)[5]",
        "open('state/old.bin', 'rb').read(1); open('state/old.bin', 'wb').write(b'new')",
    ],
)
def test_a_restored_file_that_is_read_is_heard_also_when_it_is_mapped_or_changed_later(
    hear: Hear, program: str
) -> None:
    assert hear(program).read == ("state/old.bin",)


@pytest.mark.parametrize(
    "program",
    [
        "open('state/old.bin', 'wb').write(b'new')",
        "open('state/old.bin', 'wb').write(b'new'); open('state/old.bin', 'rb').read()",
        "open('state/t', 'wb').write(b'new'); os.replace('state/t', 'state/old.bin'); open('state/old.bin').read()",
    ],
)
def test_a_file_that_is_read_only_after_it_was_changed_was_not_resumed_from(hear: Hear, program: str) -> None:
    assert hear(program).read == ()


def test_how_files_are_written_is_told_apart(hear: Hear) -> None:
    heard = hear(
        "open('state/t', 'wb').write(b'new'); os.replace('state/t', 'state/old.bin')\n"
        "open('state/log', 'a').write('line 2\\n')\n"
        "os.mkdir('state/sub'); open('state/sub/one', 'w').write('1')\n"
        "f = open('state/old.bin', 'r+b'); f.seek(1); f.write(b'?'); f.close()\n"
    )
    told = hows(heard)
    assert told[0] == ("state/t", NEW)
    assert told[1] == ("state/old.bin", RENAMED)
    assert ("state/log", APPENDED) in told
    assert told[-1] == ("state/old.bin", IN_PLACE)


def test_a_file_that_is_begun_again_is_written_in_place(hear: Hear) -> None:
    assert hows(hear("open('state/log', 'w').write('begun again')")) == [("state/log", IN_PLACE)]


def test_a_commit_that_is_asked_for_before_the_file_is_closed_is_heard(hear: Hear) -> None:
    say = "open('said/report.jsonl', 'a').write(json.dumps({'commit': True, 'progress': 0.5}) + '\\n')"
    early = hear(f"f = open('state/old.bin', 'wb'); f.write(b'x'); f.flush(); {say}; f.write(b'y'); f.close()")
    assert early.early == ("state/old.bin",)
    assert early.last_progress == 0.5


def test_a_commit_that_is_asked_for_after_the_file_is_closed_or_beside_a_log_is_not_early(hear: Hear) -> None:
    say = "open('said/report.jsonl', 'a').write(json.dumps({'commit': True}) + '\\n')"
    log = "g = open('state/log', 'a'); g.write('more'); g.flush()"
    heard = hear(f"{log}; f = open('state/old.bin', 'wb'); f.write(b'x'); f.close(); {say}; g.write('on'); g.close()")
    assert heard.early == ()
    assert [one.commit for one in heard.said] == [True]


def test_a_folder_that_is_written_under_another_name_and_renamed_is_heard(hear: Hear) -> None:
    """As trainers do: ``checkpoint-100`` comes whole, and faster than anybody can watch it."""
    heard = hear(
        "for n in range(20):\n"
        "    os.makedirs(f'state/{n}.draft/deep'); open(f'state/{n}.draft/deep/s', 'w').write('1')\n"
        "    os.rename(f'state/{n}.draft', f'state/{n}')\n"
    )
    assert {path for path, how in hows(heard) if how == RENAMED} == {f"state/{n}/deep/s" for n in range(20)}
    assert heard.writing == (), "a file under a name that is gone is open for ever"


def test_a_file_in_a_new_folder_that_stays_open_is_being_written(hear: Hear) -> None:
    say = "open('said/report.jsonl', 'a').write(json.dumps({'commit': True}) + '\\n')"
    write = "os.mkdir('state/new'); f = open('state/new/s', 'w'); f.write('1'); f.flush()"
    heard = hear(f"import time; {write}; time.sleep(0.5); {say}; sys.stdin.readline()", waits=True)
    assert heard.said[0].writing == ("state/new/s",)
    assert hows(heard) == [("state/new/s", NEW)]
