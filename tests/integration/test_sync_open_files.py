"""Which files real processes have open for writing, and which processes are a job's."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kelpie_worker.command.orphans import job_processes
from kelpie_worker.sync import open_files
from kelpie_worker.sync.open_files import OpenFile, open_for_writing
from tests.harness.waiting import eventually
from tests.integration.command_support import SLEEPER, STUBBORN, parent_of, running, shell


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path.resolve() / "root"
    directory.mkdir()
    return directory


@contextmanager
def child(code: str, *arguments: object) -> Iterator[int]:
    """A process that has run ``code`` and then waits; its pid."""
    argv = [sys.executable, "-I", "-S", "-c", f"import mmap, os, sys\n{code}\nprint(flush=True)\nsys.stdin.read()"]
    with subprocess.Popen(
        [*argv, *map(os.fsencode, map(str, arguments))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            yield process.pid
        finally:
            process.kill()


OPEN = "fd = os.open(os.fsencode(sys.argv[1]), eval(sys.argv[2]) | os.O_CREAT)"


@pytest.mark.parametrize("append", [True, False])
@pytest.mark.parametrize("way", ["os.O_WRONLY", "os.O_RDWR"])
def test_what_is_open_for_writing_is_told(root: Path, way: str, append: bool) -> None:
    flags = f"{way} | os.O_APPEND" if append else way
    with child(OPEN, root / "file", flags) as pid:
        assert open_for_writing([root], [pid]) == [OpenFile(root / "file", append, False)]


@pytest.mark.parametrize("flags", ["os.O_RDONLY", "os.O_PATH"])
def test_what_is_open_for_reading_is_not(root: Path, flags: str) -> None:
    (root / "file").touch()
    with child(OPEN, root / "file", flags) as pid:
        assert open_for_writing([root], [pid]) == []


@pytest.mark.parametrize("name", ["with space", "new\nline", "\udcff\udcfe", "ü", "back\\012slash", "gone (deleted)"])
@pytest.mark.parametrize("mapped", [False, True])
def test_odd_names_are_told_as_they_are(root: Path, name: str, mapped: bool) -> None:
    (root / name).write_bytes(b"content")
    code = f"{OPEN}; m = mmap.mmap(fd, 0)" if mapped else OPEN
    with child(code, root / name, "os.O_RDWR") as pid:
        assert open_for_writing([root], [pid]) == [OpenFile(root / name, False, mapped)]


def test_a_mapping_counts_after_its_descriptor_was_closed(root: Path) -> None:
    (root / "file").write_bytes(b"content")
    # Python's own mmap keeps a copy of the descriptor.
    code = f"""
import ctypes
{OPEN}
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
assert libc.mmap(None, ctypes.c_size_t(7), 3, 1, fd, ctypes.c_long(0)) != ctypes.c_void_p(-1).value
os.close(fd)
"""
    with child(code, root / "file", "os.O_RDWR") as pid:
        assert all(link.readlink() != root / "file" for link in Path(f"/proc/{pid}/fd").iterdir())
        assert open_for_writing([root], [pid]) == [OpenFile(root / "file", False, True)]


@pytest.mark.parametrize("how", ["mmap.MAP_SHARED, mmap.PROT_READ", "mmap.MAP_PRIVATE"])
def test_a_mapping_that_cannot_change_the_file_does_not_count(root: Path, how: str) -> None:
    (root / "file").write_bytes(b"content")
    with child(f"{OPEN}; m = mmap.mmap(fd, 0, {how}); os.close(fd)", root / "file", "os.O_RDONLY") as pid:
        assert open_for_writing([root], [pid]) == []


def test_an_appended_file_that_somebody_may_write_anywhere_in_is_no_appended_one(root: Path) -> None:
    with child(OPEN, root / "file", "os.O_WRONLY | os.O_APPEND") as one, child(OPEN, root / "file", "os.O_RDWR") as two:
        assert open_for_writing([root], [one, two]) == [OpenFile(root / "file", False, False)]
        assert open_for_writing([root], [two, one]) == [OpenFile(root / "file", False, False)]
        assert open_for_writing([root], [one]) == [OpenFile(root / "file", True, False)]


def test_a_deleted_file_does_not_count_also_when_another_has_its_name(root: Path) -> None:
    (root / "file").write_bytes(b"content")
    os.link(root / "file", root.parent / "other-name")
    with child(f"{OPEN}; m = mmap.mmap(fd, 0)", root / "file", "os.O_RDWR") as pid:
        (root / "file").unlink()
        assert open_for_writing([root], [pid]) == []
        (root / "file").touch()
        assert open_for_writing([root], [pid]) == []


def test_a_renamed_file_is_told_at_its_new_place(root: Path) -> None:
    with child(OPEN, root / "old", "os.O_WRONLY") as pid:
        (root / "old").rename(root / "new")
        assert open_for_writing([root], [pid]) == [OpenFile(root / "new", False, False)]


def test_files_elsewhere_pipes_and_sockets_do_not_count(root: Path) -> None:
    beside = root.parent / "root-beside"
    os.mkfifo(root / "pipe")
    code = f"{OPEN}; p = os.open(sys.argv[3], os.O_RDWR)"
    with child(code, beside, "os.O_WRONLY", root / "pipe") as pid:
        assert open_for_writing([root], [pid]) == []
        assert open_for_writing([root, root.parent], [pid]) == [OpenFile(beside, False, False)]


def test_a_process_that_has_ended_has_nothing_open(root: Path) -> None:
    with child(OPEN, root / "file", "os.O_WRONLY") as pid:
        pass
    assert open_for_writing([root], [pid]) == []
    assert open_for_writing([root], []) == []


def test_a_dead_process_that_nobody_has_collected_has_nothing_open(root: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert open_for_writing([root], [pid]) == []
    finally:
        os.waitpid(pid, 0)


def test_a_process_that_we_may_not_look_at_cannot_be_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> list[bytes]:
        raise PermissionError(13, "Permission denied")

    with child(OPEN, root / "file", "os.O_WRONLY") as pid:
        monkeypatch.setattr("kelpie_worker.sync.open_files.os.listdir", refuse)
        assert open_for_writing([root], [pid]) is None


def test_without_proc_nothing_can_be_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kelpie_worker.sync.open_files.os.path.isdir", lambda path: False)
    assert open_for_writing([root], [os.getpid()]) is None


def test_more_descriptors_than_are_looked_at_cannot_be_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with child(OPEN, root / "file", "os.O_WRONLY") as pid:
        monkeypatch.setattr(open_files, "_MOST_DESCRIPTORS", 4)
        assert open_for_writing([root], [pid]) == [OpenFile(root / "file", False, False)]
        monkeypatch.setattr(open_files, "_MOST_DESCRIPTORS", 3)
        assert open_for_writing([root], [pid]) is None


# -- the processes of a job -------------------------------------------------------------------------------------------

MARKS = {"KELPIE_JOB_ID": "job-of-open-files", "KELPIE_ATTEMPT": str(os.getpid())}


async def test_a_jobs_processes_are_its_command_and_all_that_it_started(root: Path) -> None:
    log = root / "log"
    escaped_helper = STUBBORN.replace("$", chr(92) + "$")
    helper = f"exec >>{log}; echo helper; {SLEEPER}"
    script = f'setsid sh -c "{escaped_helper}" & '
    script += f"(setsid env -i PATH=$PATH sh -c '{helper}' & echo cleared $!; wait) & echo ready; {SLEEPER}"
    async with running(shell(script, **MARKS)) as (command, heard):
        escaped = await heard.number("stubborn")
        cleared = await heard.number("cleared")
        await heard.line("ready")
        found = job_processes(command.pid, MARKS)
        assert {command.pid, escaped, cleared} <= set(found)
        assert os.getsid(escaped) != command.pid
        assert os.getpid() not in found
        assert parent_of(command.pid) not in found
        opened = [OpenFile(log, True, False)]
        # Its number was told before it opened the file.
        await asyncio.to_thread(eventually, "it is open", lambda: open_for_writing([root], found) == opened)
        escaped_alone = job_processes(2**22 + 1, MARKS)
        assert escaped in escaped_alone, "by its environment"
        assert job_processes(2**22 + 1, MARKS | {"KELPIE_ATTEMPT": "another"}) == []
    assert job_processes(command.pid, MARKS) == []
