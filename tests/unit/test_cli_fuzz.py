"""Every command with whatever arguments: an answer or one line that says what is wrong, never a traceback, never 70.

The arguments are made from each command's own parameters, so that a command that is added is tried too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kelpie_celery.cli import COMMANDS, Commands, kelpie
from kelpie_celery.client import Kelpie
from kelpie_celery.definition import parse_definition
from kelpie_celery.errors import DefinitionError
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_celery.why.overview import Sight
from kelpie_scaler.simulation import command
from kelpie_scaler.simulation.engine import simulate
from kelpie_scaler.simulation.platform import Platform
from kelpie_scaler.simulation.policies import OurRule
from kelpie_scaler.webhooks.sending import Answer, post, target_of
from kelpie_worker.preflight.verify import Verdict
from tests.unit.cli_harness import Cli, cli
from tests.unit.fake_s3 import FakeS3
from tests.unit.test_cli_checkpoints import attempt, s3

__all__ = ["cli", "s3"]  # fixtures

CANARY = "c4n4ry"
QUICK = OurRule("quick", ScalingRule(container_group_id="g"), 60.0)
URL = f"https://u:{CANARY}@hooks.example/{CANARY}"
CODES = (0, 1, 2, 69, 124)


def leaves(group: Commands, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command with its words, those below others too."""
    context = click.Context(group)
    for name in group.table:
        command = group.get_command(context, name)
        if isinstance(command, Commands):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name)


def command_of(path: tuple[str, ...]) -> click.Command:
    found: Any = kelpie
    for name in path:
        found = found.get_command(click.Context(found), name)
    made: click.Command = found
    return made


COMMANDS_TRIED = sorted(leaves(kelpie))

ODD = st.one_of(
    st.sampled_from([
        "", " ", "-", "--", "-1", "0", "1e999", "nan", "inf", "1" * 400, "\x00", "\ud800", "\x1b[2J", "../..",
        "a b", "*",
        "s3://bkt/runs/a", "s3://", "redis://", "g", "default", "'", '"', "$HOME", "@x", "[bold]", "{", "%s",
    ]),
    st.text(max_size=12),
    st.binary(max_size=6).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)  # fmt: skip
NUMBERS = st.one_of(st.integers(-5, 50).map(str), st.sampled_from(["1e9", "0.5", "-0", "999999999999999999999", "1_0"]))
DURATIONS = st.sampled_from(["0", "1", "90s", "10m", "2h", "1d", "1.5h", "5 m", "999999999d", "m", "-1s"])


class World:
    """What the arguments may name: jobs, groups, files."""

    def __init__(self, cli: Cli, s3: FakeS3, directory: Path) -> None:
        self.cli = cli
        self.job_id = cli.submit(webhook=URL, environment={"TOKEN": CANARY})
        cli.end(self.job_id)
        made = attempt(cli, s3)
        self.commit = made.commit({"a": b"1"})
        made.end()
        self.ids = [self.job_id, made.job_id, self.commit]
        cli("rules", "set", "g")
        good = {"command": "true", "container_group_id": "g", "sync": {}, "webhook": URL, "environment": {"T": CANARY}}
        contents: dict[str, bytes] = {
            "good.json": json.dumps(good).encode(), "bad.json": b"[{", "binary": bytes(range(256)), "empty": b"",
            "rule.toml": b"max_replicas = 3\n", "trace.jsonl": b'{"at_s": 0, "duration_s": 60}\n',
            "list.json": b"[1, null, {}]",
        }  # fmt: skip
        for name, content in contents.items():
            (directory / name).write_bytes(content)
        self.files = [*contents, ".", "nonesuch", "-", "good.json/x"]


@pytest.fixture
def world(cli: Cli, s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Servers are not started, and nothing waits for jobs that nobody runs."""
    place = tmp_path / "a" / "b" / "c"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    monkeypatch.setattr("kelpie_celery.cli.up.run_up", lambda **_: 0)
    monkeypatch.setattr("kelpie_celery.local.salad.run.run", lambda *_: 0)
    monkeypatch.setattr("kelpie_celery.cli.doctor.run_all", lambda _: [])
    monkeypatch.setattr("kelpie_worker.preflight.command.verify", lambda *_: Verdict(True, [], 0.0))
    monkeypatch.setattr("kelpie_celery.cli.submit.wait_and_tell", lambda *_, **__: 0)
    monkeypatch.setattr(Kelpie, "watch", lambda kelpie, group, _every_s: iter([Sight(kelpie.overview(group))]))
    # What may be asked of it can take minutes; what is asked is judged before.
    monkeypatch.setattr(command, "simulate", lambda trace, *_: simulate(trace[:5], QUICK, Platform()))
    return World(cli, s3, place)


def value_of(parameter: click.Parameter, world: World) -> st.SearchStrategy[str]:
    """What one parameter may be given: mostly what it could take, and anything else."""
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return st.sampled_from([str(choice) for choice in kind.choices]) | ODD
    if isinstance(kind, click.Path | click.File):
        return st.sampled_from(world.files) | ODD
    if isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
        return NUMBERS | ODD
    return st.one_of(st.sampled_from([*world.ids, "g", "nonesuch", *world.files]), DURATIONS, NUMBERS, ODD)


@st.composite
def arguments(draw: st.DrawFn, tried: click.Command, world: World) -> list[str]:
    """A call of the command: some of its options, some of its arguments, sometimes something strange in between."""
    words: list[str] = []
    for parameter in tried.params:
        if isinstance(parameter, click.Argument):
            most = 3 if parameter.nargs == -1 else 1
            words += draw(
                st.lists(value_of(parameter, world), min_size=1 if draw(st.integers(0, 9)) else 0, max_size=most)
            )
        elif isinstance(parameter, click.Option) and parameter.name != "redis_url" and draw(st.integers(0, 2)) == 0:
            words.append(draw(st.sampled_from(parameter.opts)))
            if not parameter.is_flag:
                words.append(draw(value_of(parameter, world)))
    if draw(st.integers(0, 9)) == 0:
        words.insert(draw(st.integers(0, len(words))), draw(ODD))
    return words


def test_every_command_is_tried() -> None:
    assert {path[0] for path in COMMANDS_TRIED} == set(COMMANDS)
    assert len(COMMANDS_TRIED) > len(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS_TRIED, ids=" ".join)
def test_no_arguments_lead_to_a_traceback_or_show_a_secret(world: World, path: tuple[str, ...]) -> None:
    tried = command_of(path)

    @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(arguments(tried, world), st.binary(max_size=40))
    def check(words: list[str], stdin: bytes) -> None:
        answer = world.cli(*path, *words, stdin=stdin)
        assert answer.code in CODES, (words, answer)
        assert "Traceback" not in answer.err + answer.out
        assert CANARY not in answer.err + answer.out
        if answer.code in (2, 69):
            assert answer.err.splitlines()[-1].startswith("kelpie: error: ")

    check()


# -- webhook URLs --------------------------------------------------------------------------------------------------

HOSTS = st.sampled_from([
    "127.0.0.1", "localhost", "[::1]", "[::ffff:10.0.0.1]", "0x7f.1", "2130706433", "h", "a..b", "xn--", "h.", "[",
    "é.example", "\ud800", "h\t", "169.254.169.254", "[fe80::1%25eth0]", "h:0", "h:99999", "h:-1", "h:", "", " ",
    "a" * 300, "%31%32%37.0.0.1", "127.0.0.1\\@h", "h#@127.0.0.1", "127.0.0.1%00.h", "①②⑦.⓪.⓪.①",
])  # fmt: skip
URLS = st.one_of(
    st.builds(
        lambda scheme, user, host, path: f"{scheme}{user}{host}{path}",
        st.sampled_from(["http://", "https://", "HTTP://", "http:/", "//", "ftp://", "file://", "http:", ""]),
        st.sampled_from(["", "u:p@", "@", "u@h@", f"{CANARY}:{CANARY}@"]),
        HOSTS | st.text(max_size=10),
        st.sampled_from(["", "/", "/x?y#z", f"/{CANARY}", "?", "\\", "/\r\nHost: evil", "/%0d%0a"])
        | st.text(max_size=10),
    ),
    st.text(max_size=30),
)


@settings(max_examples=250, deadline=None)
@given(URLS)
def test_any_webhook_is_taken_or_refused_in_words_that_show_no_secret(url: str) -> None:
    refused: DefinitionError | None = None
    try:
        job = parse_definition({"command": "x", "container_group_id": "g", "sync": {}, "webhook": url})
    except DefinitionError as error:
        refused = error
    if refused is None:
        assert job.webhook == url
        assert CANARY not in repr(job)
    else:
        assert {field for field, _, _ in refused.problems} == {"webhook"}
        assert CANARY not in str(refused)


@settings(max_examples=250, deadline=None)
@given(URLS)
def test_no_url_reaches_an_address_that_its_host_was_not_checked_for(url: str) -> None:
    looked_up: list[str] = []

    def inside(host: str, _port: int) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"]

    answer = post(url, b"{}", {}, timeout_s=5.0, allow_private=False, resolve=inside)
    assert isinstance(answer, Answer)
    assert (answer.sent, answer.final) == (False, True)
    assert CANARY not in answer.error
    target = target_of(url)
    assert looked_up == ([] if target is None else [target.host])
