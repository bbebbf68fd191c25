"""``kelpie rules``, with ``set``, ``get``, ``list``, ``delete``, ``pause`` and ``resume``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import click
from rich import box
from rich.table import Table

from kelpie_celery.cli import Commands
from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import say
from kelpie_celery.cli._options import data_options, duration, open_kelpie
from kelpie_celery.cli._text import duration as duration_words
from kelpie_celery.cli._view import console, words
from kelpie_celery.scaling.rule import ScalingRule

F = TypeVar("F", bound=Callable[..., Any])

_NONE = "default"
_MAY_BE_NONE = ("jobs_per_replica", "max_step_up")


class RuleCommands(Commands):
    """The commands below ``kelpie rules``."""

    table: ClassVar[Mapping[str, tuple[str, str]]] = {
        "set": ("kelpie_celery.cli.rules:set_", "Make the rule of a container group, or change it."),
        "get": ("kelpie_celery.cli.rules:get", "Show the rule of a container group."),
        "list": ("kelpie_celery.cli.rules:list_", "List all rules."),
        "delete": ("kelpie_celery.cli.rules:delete", "Forget the rule of a container group."),
        "pause": ("kelpie_celery.cli.rules:pause", "Have the scaler leave a container group as it is."),
        "resume": ("kelpie_celery.cli.rules:resume", "Have the scaler act for a container group again."),
    }


@click.command(cls=RuleCommands, short_help="Set, show, pause and delete scaling rules.", invoke_without_command=True)
@click.pass_context
def rules(ctx: click.Context) -> None:
    """Say how many nodes a container group may have; the scaler on the control worker follows.

    A container group without a rule is left alone. The rules are kept in Redis; a file of them that KELPIE_RULES_FILE
    names is read when the control worker starts.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _whole_or_none(_ctx: click.Context, _option: click.Parameter, value: str | None) -> int | str | None:
    """A whole number, or `default`; what is not given stays None."""
    if value is None or value == _NONE:
        return value
    if not value.isascii() or not value.isdecimal() or len(value) > 9:  # noqa: PLR2004 -- far above any limit
        raise click.BadParameter(f"{value!r} is neither a whole number nor '{_NONE}'")
    return int(value)


def _rule_options(command: F) -> F:
    for option in (
        click.option("--max-step-up", metavar="N|default", callback=_whole_or_none, help="Nodes to add at once."),
        click.option("--scale-in-cooldown", "scale_in_cooldown_s", type=duration,
                     help="How long nodes have to be too many before some are given back (seconds, or 5m)."),
        click.option("--jobs-per-replica", metavar="N|default", callback=_whole_or_none,
                     help="Jobs that one node is there for; default: the slots of its worker."),
        click.option("--idle-threshold", "idle_threshold_seconds", type=duration,
                     help="How long without work before the group goes to its minimum (seconds, or 5m)."),
        click.option("--max", "max_replicas", metavar="N", type=int, help="Never more nodes than this."),
        click.option("--min", "min_replicas", metavar="N", type=int, help="Never fewer nodes than this."),
        click.option("--name", "group_name", metavar="NAME", help="Name of the container group on SaladCloud."),
        click.option("--project", metavar="NAME", help="Its project."),
        click.option("--organization", metavar="NAME", help="Its organization."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command("set", short_help="Make the rule of a container group, or change it.")
@click.argument("group", metavar="GROUP")
@_rule_options
@data_options
def set_(group: str, redis_url: str | None, as_json: bool, **fields: Any) -> None:
    """Make the scaling rule of the container group GROUP (its id), or change the one that there is.

    What is not given stays as it is; a new rule has 0 to 10 nodes, and gives idle ones back after five minutes.
    """
    changes = {name: value for name, value in fields.items() if value is not None}
    changes |= {name: None for name in _MAY_BE_NONE if fields[name] == _NONE}
    with open_kelpie(redis_url) as kelpie:
        rule = kelpie.change_scaling_rule(group, **changes)
    _show(rule, as_json=as_json)


@click.command(short_help="Show the rule of a container group.")
@click.argument("group", metavar="GROUP")
@data_options
def get(group: str, redis_url: str | None, as_json: bool) -> None:
    """Show the scaling rule of the container group GROUP."""
    with open_kelpie(redis_url) as kelpie:
        rule = kelpie.scaling_rule(group)
    _show(rule, as_json=as_json)


@click.command("list", short_help="List all rules.")
@data_options
def list_(redis_url: str | None, as_json: bool) -> None:
    """List the scaling rules of all container groups."""
    with open_kelpie(redis_url) as kelpie:
        found = kelpie.scaling_rules()
    if as_json:
        print_document([rule.model_dump() for rule in found])
    elif found:
        console().print(_table(found))
    else:
        say("there are no scaling rules; 'kelpie rules set GROUP' makes one")


@click.command(short_help="Forget the rule of a container group.")
@click.argument("group", metavar="GROUP")
@data_options
def delete(group: str, redis_url: str | None, as_json: bool) -> None:
    """Forget the scaling rule of the container group GROUP; the group itself stays as it is."""
    with open_kelpie(redis_url) as kelpie:
        kelpie.delete_scaling_rule(group)
    if as_json:
        print_document({"container_group_id": group, "deleted": True})
    say(f"the rule of {group} is gone; the group stays as it is, and costs what it costs, until you stop it")


@click.command(short_help="Have the scaler leave a container group as it is.")
@click.argument("group", metavar="GROUP")
@data_options
def pause(group: str, redis_url: str | None, as_json: bool) -> None:
    """Have the scaler leave the container group GROUP as it is, until it is resumed."""
    with open_kelpie(redis_url) as kelpie:
        rule = kelpie.pause_scaling(group)
    _show(rule, as_json=as_json)


@click.command(short_help="Have the scaler act for a container group again.")
@click.argument("group", metavar="GROUP")
@data_options
def resume(group: str, redis_url: str | None, as_json: bool) -> None:
    """Have the scaler act for the container group GROUP again."""
    with open_kelpie(redis_url) as kelpie:
        rule = kelpie.resume_scaling(group)
    _show(rule, as_json=as_json)


def _show(rule: ScalingRule, *, as_json: bool) -> None:
    if as_json:
        print_document(rule.model_dump())
    else:
        console().print(_table([rule]))


def _table(found: Sequence[ScalingRule]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("GROUP", "NODES", "JOBS A NODE", "TO MINIMUM AFTER", "COOLDOWN", "STEP UP", "WHERE", "STATE"):
        table.add_column(heading, overflow="fold")
    for rule in found:
        where = "/".join(part for part in (rule.organization, rule.project, rule.group_name) if part)
        table.add_row(
            words(rule.container_group_id),
            f"{rule.min_replicas} to {rule.max_replicas}",
            str(rule.jobs_per_replica or "its slots"),
            duration_words(rule.idle_threshold_seconds),
            duration_words(rule.scale_in_cooldown_s),
            str(rule.max_step_up or "any"),
            words(where),
            "paused" if rule.paused else "active",
        )
    return table
