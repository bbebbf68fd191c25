"""The checkpoints of a job with one prefix or several, out of its lines; and which lines those are."""

from __future__ import annotations

import pytest

from kelpie_celery.checkpoints.address import endpoint_of, lines_of
from kelpie_celery.checkpoints.kept import checkpoints_of
from kelpie_celery.definition import parse_definition
from kelpie_celery.ledger.types import CommitEntry, Line, LineAddress
from tests.harness.commits import during


def entry(id_: str, files: int = 1) -> CommitEntry:
    return CommitEntry(id_, int(id_[:10]), f"m/{id_}", "job", 1, "quiet", float(id_[:10]), files, 10 * files, 7)


def line(prefix: str, *kept: CommitEntry) -> Line:
    head = kept[-1] if kept else None
    generation = head.generation if head else 0
    return Line(LineAddress("", "b", prefix), "job", False, head, kept, (), generation, 1000.0)


ONE, TWO, THREE = (f"{n:010d}-1-aaaaaaaa" for n in (1, 2, 3))


def test_a_checkpoint_of_several_prefixes_is_one() -> None:
    lines = [line("x/", entry(ONE), entry(TWO, 2)), line("y/", entry(ONE, 3), entry(TWO, 4))]
    two, one = checkpoints_of(lines)
    assert (two.id, two.files, two.bytes, two.sent_bytes) == (TWO, 6, 60, 7)
    assert two.prefixes == two.head_of == ("s3://b/x/", "s3://b/y/")
    assert (two.is_head, two.is_everywhere, one.is_head, one.is_everywhere) == (True, True, False, True)


def test_where_lines_differ_it_is_told() -> None:
    three, two, one = checkpoints_of([line("x/", entry(ONE), entry(THREE)), line("y/", entry(TWO))])
    assert (three.is_head, three.is_everywhere, three.head_of) == (False, False, ("s3://b/x/",))
    assert (two.head_of, two.prefixes) == (("s3://b/y/",), ("s3://b/y/",))
    assert (one.head_of, one.is_everywhere) == ((), False)


def test_without_commits_there_are_no_checkpoints() -> None:
    assert checkpoints_of([line("x/")]) == []
    assert checkpoints_of([]) == []


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        (None, ""),
        ("", ""),
        ("https://S3.example.org", "s3.example.org"),
        ("http://user:secret@10.0.0.1:9000/path", "10.0.0.1:9000"),
    ],
)
def test_a_storage_is_known_by_host_and_port(url: str | None, endpoint: str) -> None:
    assert endpoint_of(url) == endpoint


def test_each_checkpoint_prefix_is_a_line_once_and_outputs_are_none() -> None:
    several = parse_definition(during("x/", "y/", "x/")).transfers()
    assert [address.prefix for address in lines_of(several, "e")] == ["x/", "y/"]
    fields = {
        f"{what}_{name}": f"{what}s" for what in ("input", "checkpoint", "output") for name in ("bucket", "prefix")
    }
    older = parse_definition({"command": "x", "container_group_id": "g", **fields}).transfers()
    assert lines_of(older, "e") == [LineAddress("e", "checkpoints", "checkpoints/")]
