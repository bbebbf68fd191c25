from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie_celery.errors import UnsafeKey
from kelpie_worker.sync.paths import check_parents, conflict, control_prefix, is_reserved, relative_path


@pytest.mark.parametrize(
    ("prefix", "key", "relative"),
    [
        ("a/b/", "a/b/c", "c"),
        ("a/b/", "a/b/c/d.txt", "c/d.txt"),
        ("a/b/", "a/b/", ""),
        ("a/b/", "a/b/folder/", "folder/"),
        ("", "c", "c"),
        ("a/", "a/..hidden", "..hidden"),
        ("a/", "a/back\\slash", "back\\slash"),
    ],
)
def test_a_key_is_cut_at_its_prefix(prefix: str, key: str, relative: str) -> None:
    assert relative_path("b", prefix, key) == relative


@pytest.mark.parametrize(
    "key",
    ["a/../x", "a/b/../../x", "a//x", "a/./x", "a/..", "a/x\0y", "a/..\\x", "a/x\\..\\..\\y", "b/x", "a/" + "x" * 256],
)
def test_a_key_without_a_place_is_refused_with_bucket_and_key(key: str) -> None:
    with pytest.raises(UnsafeKey) as caught:
        relative_path("bucket", "a/", key)
    assert (caught.value.bucket, caught.value.key) == ("bucket", key)
    assert "bucket" in str(caught.value)


@given(st.text())
def test_no_key_whatever_leads_out_of_the_directory(rest: str) -> None:
    root = Path("/data/job")
    try:
        relative = relative_path("b", "p/", "p/" + rest)
    except (UnsafeKey, UnicodeEncodeError):
        return
    parts = (root / relative).parts
    assert parts[:3] == root.parts
    assert ".." not in parts


@pytest.mark.parametrize(("prefix", "where"), [("a/b/", "a/b.kelpie/"), ("a/", "a.kelpie/"), ("", ".kelpie/")])
def test_our_own_records_lie_beside_the_prefix(prefix: str, where: str) -> None:
    assert control_prefix(prefix) == where


@pytest.mark.parametrize(
    ("relative", "reserved"),
    [
        ("x.kelpie/jobs/1", True),
        (".kelpie/jobs/1", True),
        ("deep/x.kelpie/y", True),
        ("x.kelpie", False),
        ("kelpie/x", False),
        (".kelpie-tmp-1", True),
        ("sub/.kelpie-tmp-1", True),
    ],
)
def test_our_own_names_are_known(relative: str, reserved: bool) -> None:
    assert is_reserved(relative) is reserved


def test_a_file_that_is_also_a_folder_is_found() -> None:
    assert conflict(["a/b", "c", "a"]) == ("a", "a/b")
    assert conflict(["a", "a/b/c"]) == ("a", "a/b/c")
    assert conflict(["a/b", "ab", "a/c"]) is None


def test_a_link_that_leads_out_is_not_written_through(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "inside").symlink_to(root / "in")
    (root / "outside").symlink_to(tmp_path)
    assert check_parents(root, "inside/x", bucket="b", key="k") == root / "inside" / "x"
    with pytest.raises(UnsafeKey, match="outside"):
        check_parents(root, "outside/x", bucket="b", key="k")
