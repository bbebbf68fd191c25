"""``kelpie schema``."""

from __future__ import annotations

import click

from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._options import json_option
from kelpie_celery.definition import json_schema


@click.command(short_help="Print the JSON schema of a job definition.")
@json_option
def schema(as_json: bool) -> None:  # noqa: ARG001 -- taken so that every command takes it
    """Print the JSON schema of a job definition; it is JSON with and without --json."""
    print_document(json_schema())
