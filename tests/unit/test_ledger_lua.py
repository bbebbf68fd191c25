"""What every Lua operation promises by its text: complete, documented, bounded, on the server's clock only."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files

import pytest

from kelpie_celery.ledger import keys
from kelpie_celery.ledger.scripts import OPERATIONS, source

FOLDER = files("kelpie_celery.ledger") / "lua"


def own(operation: str) -> str:
    return (FOLDER / f"{operation}.lua").read_text()


def test_there_is_one_file_for_each_operation_and_none_beside_them() -> None:
    names = {entry.name.removesuffix(".lua") for entry in FOLDER.iterdir()}
    assert names == {*OPERATIONS, "_common", "_lines", "_fleet", "_output"}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_says_what_it_takes_and_what_it_returns(operation: str) -> None:
    header = own(operation).split("\n\n")[0]
    assert "-- ARGV: 1 " in header
    assert "-- Returns " in header


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_documents_each_argument_that_it_uses(operation: str) -> None:
    lua = own(operation)
    header = "\n".join(line for line in lua.splitlines() if line.startswith("--"))
    for number in {int(n) for n in re.findall(r"ARGV\[(\d+)\]", lua)}:
        assert re.search(rf"(?:ARGV:|,|\)|\s){number}\s+\w", header.replace("\n--", " ")), number


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_scans_nothing(operation: str) -> None:
    code = re.sub(r"--.*", "", source(operation))
    assert not re.search(r"'(KEYS|SCAN|HGETALL|SMEMBERS|FLUSH\w+|LRANGE)'", code)
    for line in code.splitlines():
        bounded = "'LIMIT', 0, " in line
        assert not re.search(r"'Z(REV)?RANGE", line) or bounded, f"unbounded: {line}"
    assert "while" not in code


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_only_clock_is_the_servers(operation: str) -> None:
    code = source(operation)
    assert code.count("redis.call('TIME')") == 1
    assert "os." not in code


def test_python_and_lua_agree_on_the_names_of_keys() -> None:
    common = (FOLDER / "_common.lua").read_text()
    assert keys.where("X") == "kelpie:where:X"
    assert "'kelpie:where:' .. id" in common
    assert keys.job("G", "X") == "kelpie:g:G:job:X"
    assert "P = 'kelpie:g:' .. group .. ':'" in common
    assert "P .. 'job:' .. id" in common
    assert keys.attempts("G", "X") == "kelpie:g:G:attempts:X"
    assert "P .. 'attempts:' .. id" in common
    assert keys.index("G", "running") == "kelpie:g:G:running"
    assert keys.counts("G") == "kelpie:g:G:counts"
    for name in ("workers", "worker", "streaks", "succeeded", "moves", "decisions", "scaler"):
        made = getattr(keys, name)(*(["G", "W"] if name == "worker" else ["G"]))
        assert made == f"kelpie:g:G:{name}" + (":W" if name == "worker" else "")
    assert keys.machines("G") == keys.index("G", "machines")
    assert (keys.machine("G", "M"), keys.bans("G", "M")) == ("kelpie:g:G:machine:M", "kelpie:g:G:bans:M")
    assert keys.bucket("B") == "kelpie:bucket:B"
    assert "'kelpie:bucket:' .. ARGV[1]" in own("token")
    assert keys.output("G", "X") == "kelpie:g:G:output:X"
    assert "P .. 'output:' .. id" in (FOLDER / "_output.lua").read_text()
    lines = (FOLDER / "_lines.lua").read_text()
    assert keys.line("D") == "kelpie:line:D"
    assert "'kelpie:line:' .. digest" in lines
    tick = own("tick")
    assert keys.queue_list("G", 0) == "kelpie.G"
    assert keys.queue_list("G", 3) == "kelpie.G:3"
    assert "'kelpie.' .. ARGV[1] .. (priority > 0 and (':' .. priority) or '')" in tick


def test_a_line_is_named_by_the_whole_of_its_address() -> None:
    digests = {
        keys.line_digest(*address) for address in (("e", "b", "p"), ("", "b", "p"), ("e", "b", "p/"), ("e", "bp", ""))
    }
    assert len(digests) == 4
    assert {len(digest) for digest in digests} == {32}
    assert keys.line_digest("e", "b", "p") == hashlib.sha256(b"e\nb\np").hexdigest()[:32]


def test_every_key_that_is_used_is_listed() -> None:
    common = (FOLDER / "_common.lua").read_text()
    header = common.split("\n\n")[0]
    listed = set(re.findall(r"P (\w+)", header))
    used = {name for op in OPERATIONS for name in re.findall(r"P \.\. '(\w+)", re.sub(r"--.*", "", source(op)))}
    assert used <= listed, used - listed
