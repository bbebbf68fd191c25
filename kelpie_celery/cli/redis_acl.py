"""``kelpie redis-acl``."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

import click

from kelpie_celery.acl import USER_NAME, check_group, set_user, worker_rules
from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import say
from kelpie_celery.cli._options import json_option
from kelpie_celery.errors import SettingsError

_MAX_DATABASE = 1_000_000
_MAX_PASSWORD_BYTES = 4096
_MIN_PASSWORD_BYTES = 16


def _user(_ctx: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value is not None and (not USER_NAME.fullmatch(value) or value == "default"):
        raise click.BadParameter("must be 1 to 128 letters, digits, '.', '_' or '-', and not 'default'")
    return value


@click.command(short_help="Print what the Redis user of a group's workers may do.")
@click.argument("group", metavar="GROUP")
@click.option("--user", metavar="NAME", callback=_user, help="Name of the user; default: worker-GROUP.")
@click.option(
    "--password-file",
    type=click.File("rb"),
    metavar="FILE",
    help="Its password, '-' for stdin; only a hash is printed.",
)
@click.option("--db", "database", type=click.IntRange(0, _MAX_DATABASE), default=0, show_default=True,
              help="The database of KELPIE_REDIS_URL.")  # fmt: skip
@json_option
def redis_acl(group: str, user: str | None, password_file: BinaryIO | None, database: int, as_json: bool) -> None:
    """Print the command that makes a Redis user for the workers of the container group GROUP.

    The user can do what a worker does for its own group, and nothing to the jobs of others or to scaling rules
    (docs/security.md tells what is left). Nothing is sent to Redis: look at it, then have an administrator run it.

    \b
        openssl rand -hex 24 > password
        kelpie redis-acl my-group --password-file password | redis-cli -u "$ADMIN_URL"

    It needs Redis 7 or later, or Valkey. The group's containers get
    KELPIE_REDIS_URL=rediss://worker-GROUP:PASSWORD@HOST:PORT/0.
    """  # noqa: D301 -- click's mark for "do not wrap" is the character itself
    rules = worker_rules(check_group(group), database)
    name = user or f"worker-{group}"
    digest = _digest(password_file) if password_file else None
    if as_json:
        print_document({"user": name, "rules": rules, "password_sha256": digest})
        return
    click.echo(set_user(name, rules, digest))
    if digest is None:
        say(
            "put the SHA-256 of a long random password in its place, or give --password-file; Redis refuses it as it is"
        )


def _digest(file: BinaryIO) -> str:
    try:
        password = file.read(_MAX_PASSWORD_BYTES + 1).strip()
    except OSError as error:
        raise SettingsError(f"--password-file cannot be read: {error.strerror or type(error).__name__}") from None
    if not _MIN_PASSWORD_BYTES <= len(password) <= _MAX_PASSWORD_BYTES:
        raise SettingsError(
            f"the password must have {_MIN_PASSWORD_BYTES} to {_MAX_PASSWORD_BYTES} bytes; try `openssl rand -hex 24`"
        )
    return hashlib.sha256(password).hexdigest()
