"""What a manifest may make of a directory; P10."""

from __future__ import annotations

from typing import Any

import pytest

from kelpie_celery.checkpoints import content, layout
from kelpie_celery.checkpoints.manifest import Extent, FileEntry, Header, Manifest
from kelpie_celery.checkpoints.unpacking import Contents, Source, contents_of, folders_of
from kelpie_celery.errors import StorageSetupError, UnsafeKey
from kelpie_celery.ledger.types import LineAddress

LINE = LineAddress("", "bkt", "p/")
SEGMENT = layout.segments_of("p/", "job", 1, "0123") + "1"


def file(**more: Any) -> FileEntry:
    fields: dict[str, Any] = {"segment": SEGMENT, "at": 0, "stored": 2, "length": 2, "codec": "", "digest": "d"} | more
    extent = Extent(**fields)
    return FileEntry(extent.length, 0o644, 0, (extent,))


def source(address: LineAddress = LINE, folder: str = "", **parts: Any) -> Source:
    header = Header("0000000001-1-aa", 1, "job", 1, "quiet", 0.0, ((address.bucket, address.prefix),))
    return Source(address, Manifest(header, "k", **parts), folder)


def contents(**parts: Any) -> Contents:
    return contents_of([source(**parts)])


def test_files_links_and_folders_keep_their_places() -> None:
    found = contents(files={"a/b": file(), "c": file()}, links={"a/l": "../c"}, folders=("a", "empty"))
    assert set(found.files) == {"a/b", "c"}
    assert (found.links, found.folders, found.total_bytes) == ({"a/l": "../c"}, {"a", "empty"}, 4)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "a//b", ".", "", "a/", "a\\..\\b", "nul\0", "x" * 256, "\ud800"]
)
@pytest.mark.parametrize("what", ["files", "links", "folders"])
def test_no_name_leads_out_of_the_directory(what: str, name: str) -> None:
    parts: dict[str, Any] = {"files": {name: file()}, "links": {name: "x"}, "folders": (name,)}
    with pytest.raises(UnsafeKey, match="0000000001-1-aa"):
        contents(**{what: parts[what]})


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "../x", "a/../../x", "x\0"])
def test_links_that_lead_out_are_left_out(target: str) -> None:
    found = contents(links={"l": target, "good": "x"})
    assert (found.links, found.refused) == ({"good": "x"}, ["l"])


@pytest.mark.parametrize(
    "parts",
    [
        {"files": {"a": file(), "a/b": file()}},
        {"files": {"a": file()}, "links": {"a/b/c": "x"}},
        {"files": {"a/b": file()}, "links": {"a": "x"}},
        {"files": {"a": file()}, "links": {"a": "x"}},
        {"files": {"a": file()}, "folders": ("a",)},
        {"links": {"a": "x"}, "folders": ("a/b",)},
    ],
)
def test_what_cannot_both_exist_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(UnsafeKey, match="two things at once"):
        contents(**parts)


@pytest.mark.parametrize(
    "more",
    [
        {"segment": "secrets/of/others"},
        {"segment": "p/plain"},
        {"length": content.SEGMENT_BYTES + 1},
        {"stored": content.SEGMENT_BYTES + 1},
        {"stored": 0},
        {"length": 0},
    ],
)
def test_content_comes_from_the_lines_own_objects_in_bounded_pieces(more: dict[str, Any]) -> None:
    with pytest.raises(StorageSetupError, match="content of 'x'"):
        contents(files={"x": file(**more)})


def test_several_lines_go_to_folders_of_their_own() -> None:
    other = LineAddress("", "bkt", "q/r/")
    assert folders_of([LINE]) == [""]
    assert folders_of([LINE, other]) == ["p", "q/r"]
    assert folders_of([LINE, LineAddress("", "other", "p/")]) == ["bkt/p", "other/p"]
    found = contents_of([
        source(folder="p", files={"x": file()}),
        source(LineAddress("", "bkt", "p/"), folder="q/r", files={"x": file()}),
        source(LineAddress("", "bkt", "none/"), folder="none"),
    ])  # fmt: skip
    assert set(found.files) == {"p/x", "q/r/x"}
    assert "none" in found.folders


def test_of_nested_prefixes_the_later_line_counts() -> None:
    nested = LineAddress("", "bkt", "p/n/")
    segment = layout.segments_of("p/n/", "job", 1, "0123") + "1"
    found = contents_of([
        source(folder="p", files={"n/x": file()}),
        source(nested, folder="p/n", files={"x": file(segment=segment)}),
    ])  # fmt: skip
    assert found.files["p/n/x"][1].extents[0].segment == segment
    assert len(found.files) == 1
