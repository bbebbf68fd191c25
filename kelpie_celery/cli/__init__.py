"""The ``kelpie`` command.

Data goes to stdout, everything else to stderr. Exit codes: 0 done; 1 some of the jobs waited for did not complete;
2 the user has to mend something; 69 Redis is away; 70 a fault of this program; 124 the time-out of ``wait`` is over;
130 Ctrl-C.

Limits: nothing but click is imported before a command is chosen, so that ``kelpie --help`` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from kelpie_celery._suggest import did_you_mean
from kelpie_celery.cli._errors import guarded

COMMANDS = {
    "submit": ("kelpie_celery.cli.submit:submit", "Submit one job or many."),
    "get": ("kelpie_celery.cli.show:get", "Show everything about a job."),
    "list": ("kelpie_celery.cli.show:list_", "List jobs, the newest first."),
    "wait": ("kelpie_celery.cli.wait:wait", "Wait until jobs have ended."),
    "cancel": ("kelpie_celery.cli.cancel:cancel", "Cancel jobs."),
    "purge": ("kelpie_celery.cli.cancel:purge", "Cancel all jobs of a container group."),
    "schema": ("kelpie_celery.cli.schema:schema", "Print the JSON schema of a job definition."),
    "up": ("kelpie_celery.cli.up:up", "Run Redis, S3 and workers on this machine."),
}


class Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        """The names, in the order in which one needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command itself."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a misspelt one is told with the one that was meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no such command: {args[0]!r}{did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


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
    return guarded(lambda: kelpie.main(args=args, prog_name="kelpie", standalone_mode=False))


def main() -> NoReturn:
    """Entry point of the script ``kelpie``."""
    sys.exit(run())
