"""The ``kelpie`` command.

Data goes to stdout, everything else to stderr. Exit codes: 0 done; 1 some of the jobs waited for did not complete, or
what was looked at is not as it should be; 2 the user has to mend something; 69 Redis or the storage is away; 70 a fault
of this program; 124 the time-out of ``wait`` is over; 130 Ctrl-C.

Limits: nothing but click is imported before a command is chosen, so that ``kelpie --help`` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, NoReturn

import click

from kelpie_celery._suggest import did_you_mean
from kelpie_celery.cli._errors import guarded

COMMANDS = {
    "submit": ("kelpie_celery.cli.submit:submit", "Submit one job or many."),
    "get": ("kelpie_celery.cli.show:get", "Show everything about a job."),
    "why": ("kelpie_celery.cli.why:why", "Tell why a job waits, or is not further."),
    "list": ("kelpie_celery.cli.show:list_", "List jobs, the newest first."),
    "logs": ("kelpie_celery.cli.logs:logs", "Show what a job wrote; follow it; fetch its whole log."),
    "wait": ("kelpie_celery.cli.wait:wait", "Wait until jobs have ended."),
    "watch": ("kelpie_celery.cli.watch:watch", "Watch container groups and their jobs."),
    "cancel": ("kelpie_celery.cli.cancel:cancel", "Cancel jobs."),
    "purge": ("kelpie_celery.cli.cancel:purge", "Cancel all jobs of a container group."),
    "checkpoints": ("kelpie_celery.cli.checkpoints:checkpoints", "List, fetch and roll back checkpoints of jobs."),
    "stage": ("kelpie_celery.cli.stage:stage", "Bring a directory up to the storage."),
    "fetch": ("kelpie_celery.cli.fetch:fetch", "Bring the outputs of a job down to a directory."),
    "machines": ("kelpie_celery.cli.machines:machines", "Show machines and what they did; lift bans."),
    "stats": ("kelpie_celery.cli.stats:stats", "Show where the time of container groups went."),
    "rules": ("kelpie_celery.cli.rules:rules", "Set, show, pause and delete scaling rules."),
    "webhooks": ("kelpie_celery.cli.webhooks:webhooks", "List, retry and drop webhooks."),
    "redis-acl": ("kelpie_celery.cli.redis_acl:redis_acl", "Print what the Redis user of a group's workers may do."),
    "verify": ("kelpie_worker.preflight.command:verify_command", "Try on this machine whether a job resumes."),
    "doctor": ("kelpie_celery.cli.doctor:doctor", "Look for what is wrong with the set-up."),
    "simulate-scaling": (
        "kelpie_scaler.simulation.command:simulate_scaling",
        "Try scaling rules on a trace of jobs, in virtual time.",
    ),
    "scaler": ("kelpie_celery.cli.scaler:scaler", "Show why a container group is scaled as it is."),
    "schema": ("kelpie_celery.cli.schema:schema", "Print the JSON schema of a job definition."),
    "salad-sim": ("kelpie_celery.cli.salad_sim:salad_sim", "Simulate SaladCloud on this machine."),
    "up": ("kelpie_celery.cli.up:up", "Run Redis, S3 and workers on this machine."),
}


class Commands(click.Group):
    """A group whose commands are imported when they are called.

    Attributes:
        table: By name: where the command is, and its short help.
    """

    table: ClassVar[Mapping[str, tuple[str, str]]] = COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        """The names, in the order in which one needs them."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command itself."""
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a misspelt one is told with the one that was meant."""
        if args and args[0] not in self.table and not args[0].startswith("-"):
            raise click.UsageError(f"no such command: {args[0]!r}{did_you_mean(args[0], self.table)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])


def _version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"kelpie-celery {getattr(import_module('kelpie_celery'), '__version__')}")  # noqa: B009 -- lazy
        ctx.exit()


@click.command(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.pass_context
def kelpie(ctx: click.Context) -> None:
    """Run long jobs to their end on GPU nodes that can vanish.

    Commands that talk to Redis find it by --redis-url or KELPIE_REDIS_URL. With --json, stdout is one JSON document.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line; errors become one line on stderr.

    Args:
        argv: The arguments without the program's name; by default the process's.

    Returns:
        The exit code.
    """
    args = None if argv is None else list(argv)
    return guarded(lambda: _call(args))


def _call(args: list[str] | None) -> Any:
    for position, word in enumerate(args or (), 1):
        if not _is_passable(word):
            raise click.UsageError(f"argument {position} holds a character that no command line can")
    return kelpie.main(args=args, prog_name="kelpie", standalone_mode=False)


def _is_passable(word: str) -> bool:
    """Whether a shell could have passed this on: files are named by such words alone."""
    try:
        return b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:
        return False


def main() -> NoReturn:
    """Entry point of the script ``kelpie``."""
    sys.exit(run())
