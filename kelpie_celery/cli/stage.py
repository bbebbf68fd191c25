"""``kelpie stage``."""

from __future__ import annotations

from dataclasses import asdict

import click

from kelpie_celery.cli._bars import transfer_bar
from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import say
from kelpie_celery.cli._options import json_option, quiet_logs
from kelpie_celery.cli._text import counted, size
from kelpie_celery.staging import Uploaded, upload
from kelpie_celery.staging.place import split_url, storage_settings
from kelpie_celery.staging.tree import named


@click.command(short_help="Bring a directory up to the storage.")
@click.argument("directory", metavar="DIR")
@click.argument("place", metavar="s3://BUCKET/PREFIX")
@click.option("--force", is_flag=True, help="Send everything, also what is there already.")
@click.option("--dry-run", is_flag=True, help="Tell what would be sent; send nothing.")
@json_option
def stage(directory: str, place: str, force: bool, dry_run: bool, as_json: bool) -> None:
    """Bring the files of DIR up to a prefix, for jobs to have as their input.

    What is there already with the same content is not sent again, so after an interruption the same command goes on.
    Nothing is deleted on the storage. Symbolic links and empty folders are left out. The storage is found by the same
    variables as workers have: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, and AWS_ENDPOINT_URL for a storage
    other than AWS. No Redis is needed.
    """
    bucket, prefix = split_url(place)
    settings = storage_settings()
    quiet_logs(settings)
    with transfer_bar("sending") as progress:
        done = upload(directory, bucket, prefix, force=force, dry_run=dry_run, progress=progress, settings=settings)
    _tell_gaps(done)
    if as_json:
        print_document({"directory": directory, "dry_run": dry_run, **asdict(done)})
        return
    would = "would be " if dry_run else ""
    replaced = f", {done.replaced} in place of other content" if done.replaced else ""
    click.echo(
        f"{done.url}: {counted(done.files, 'file')}, {size(done.bytes)}; {would}sent: {done.sent}"
        f" ({size(done.sent_bytes)}{replaced}), there already: {done.unchanged}"
    )


def _tell_gaps(done: Uploaded) -> None:
    if done.links:
        say(f"{counted(len(done.links), 'symbolic link')} left out, as links are not followed: {named(done.links)}")
    if done.others:
        say(f"left out, as no job could have them: {named(done.others)}")
    if done.empty:
        say(f"{counted(len(done.empty), 'empty folder')} left out: {named(done.empty)}")
    if done.extra:
        say(f"{counted(done.extra, 'object')} below {done.url} not of this directory: jobs get what lies there, too")
