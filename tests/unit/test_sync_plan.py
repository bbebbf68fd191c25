from __future__ import annotations

import pwd
import sys
from pathlib import Path

import pytest

from kelpie_celery.definition import JobDefinition, parse_definition
from kelpie_worker.sync.errors import LocalPathError
from kelpie_worker.sync.plan import Dirs, place


def definition(*paths: str) -> JobDefinition:
    blocks = [{"bucket": "bkt", "prefix": "p", "local_path": path, "direction": "upload"} for path in paths]
    return parse_definition({"command": "c", "container_group_id": "g", "sync": {"after": blocks}})


@pytest.fixture
def dirs(tmp_path: Path) -> Dirs:
    work = tmp_path / "work"
    work.mkdir()
    return Dirs(work, Path("/input"), Path("out"), work / "ckpt")


def test_the_older_fields_go_to_the_workers_directories(dirs: Dirs, tmp_path: Path) -> None:
    fields = {f"{name}_{kind}": "bkt" for name in ("input", "checkpoint", "output") for kind in ("bucket", "prefix")}
    plan = place(parse_definition({"command": "c", "container_group_id": "g", **fields}), dirs, tmp_path / "s")
    assert [block.path for block in plan.before] == [Path("/input"), dirs.workdir / "ckpt"]
    assert [block.path for block in plan.during] == [dirs.workdir / "ckpt", dirs.workdir / "out"]
    assert [block.path for block in plan.after] == [dirs.workdir / "out"]
    assert [block.role for block in plan.before] == ["input", "checkpoint"]
    assert plan.paths == [Path("/input"), dirs.workdir / "ckpt", dirs.workdir / "out"]


def test_what_blocks_say_of_commits_plain_keys_and_writing_is_placed(dirs: Dirs, tmp_path: Path) -> None:
    where = {"bucket": "bkt", "prefix": "p", "local_path": "a"}
    sync = {
        "before": [{**where, "prefix": "in", "local_path": "in", "direction": "download", "read_only": True}],
        "during": [{**where, "direction": "upload", "commit": "marker:*/DONE", "plain": "end"}],
    }
    plan = place(parse_definition({"command": "c", "container_group_id": "g", "sync": sync}), dirs, tmp_path / "s")
    assert plan.before[0].read_only is True
    assert (plan.during[0].commit, plan.during[0].plain) == ("marker:*/DONE", "end")
    assert plan.commit == "marker:*/DONE"
    assert place(definition("a"), dirs, tmp_path / "s").commit == "quiet"


def test_a_relative_path_is_relative_to_the_working_directory(dirs: Dirs, tmp_path: Path) -> None:
    assert place(definition("a/b"), dirs, tmp_path / "s").after[0].path == dirs.workdir / "a" / "b"


def test_directories_within_others_are_no_roots(dirs: Dirs, tmp_path: Path) -> None:
    plan = place(definition("a/b", "a", "c"), dirs, tmp_path / "s")
    assert plan.roots == [dirs.workdir / "a", dirs.workdir / "c"]


def test_a_link_stands_for_what_it_points_to(dirs: Dirs, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (dirs.workdir / "link").symlink_to(tmp_path / "big")
    assert place(definition("link"), dirs, tmp_path / "s").after[0].path == tmp_path / "big"


@pytest.mark.parametrize(
    "path",
    [
        "/etc", "/usr", "/tmp", "/proc/self", "/sys/kernel", "/home", "/var", "/usr/bin", "/usr/local/x", "/etc/ssl",
        "/bin/x", "/lib/x", "/lib64/x", "/boot/x", "/dev/x", "/run/secrets", "/var/run/x", "/var/lib", "/var/lib/x",
        "/sbin/x", "/home/someone", sys.prefix, f"{sys.prefix}/x", sys.base_prefix, f"{sys.base_prefix}/x",
    ],
)  # fmt: skip
def test_what_holds_more_than_the_jobs_files_is_refused(dirs: Dirs, tmp_path: Path, path: str) -> None:
    with pytest.raises(LocalPathError, match=r"after\[0\].*name a directory of its own"):
        place(definition(path), dirs, tmp_path / "s")


def test_the_working_directory_and_what_holds_it_are_refused(dirs: Dirs, tmp_path: Path) -> None:
    for path in (dirs.workdir, tmp_path):
        with pytest.raises(LocalPathError):
            place(definition(str(path)), dirs, tmp_path / "s")


def test_kelpies_cache_is_no_jobs_directory(dirs: Dirs, tmp_path: Path) -> None:
    cache = tmp_path / "var" / "cache"
    for path in (cache, cache.parent, cache / "inputs"):
        with pytest.raises(LocalPathError, match="kelpie's cache"):
            place(definition(str(path)), dirs, tmp_path / "s", [cache])
    assert place(definition(str(tmp_path / "var" / "other")), dirs, tmp_path / "s", [cache]).after


def test_a_link_to_a_forbidden_place_is_refused(dirs: Dirs, tmp_path: Path) -> None:
    (dirs.workdir / "link").symlink_to("/etc")
    with pytest.raises(LocalPathError, match="/etc"):
        place(definition("link"), dirs, tmp_path / "s")


def test_home_is_refused_and_a_folder_in_it_is_not(dirs: Dirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(LocalPathError):
        place(definition(str(tmp_path / "home")), dirs, tmp_path / "s")
    assert place(definition(str(tmp_path / "home" / "out")), dirs, tmp_path / "s").after


def test_anybodys_home_is_refused_and_a_folder_in_it_is_not(
    dirs: Dirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "people" / "somebody"
    user = pwd.struct_passwd(("somebody", "x", 1000, 1000, "", str(home), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwall", lambda: [user])
    with pytest.raises(LocalPathError):
        place(definition(str(home)), dirs, tmp_path / "s")
    assert place(definition(str(home / "out")), dirs, tmp_path / "s").after
    assert place(definition("/home/somebody/out"), dirs, tmp_path / "s").after


def test_a_folder_below_the_working_directory_is_the_jobs_wherever_that_is(tmp_path: Path) -> None:
    """Images often have it in /usr/src/app, or make it a virtual environment."""
    for workdir in (Path("/usr/src/app"), Path(sys.prefix)):
        dirs = Dirs(workdir, Path("/input"), Path("/output"), Path("/checkpoint"))
        assert place(definition("results"), dirs, tmp_path / "s").after[0].path == workdir / "results"
        with pytest.raises(LocalPathError):
            place(definition("/usr/src/other"), dirs, tmp_path / "s")
        with pytest.raises(LocalPathError):
            place(definition(str(workdir)), dirs, tmp_path / "s")
