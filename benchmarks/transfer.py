"""Transfers to and from S3, beside ``s5cmd`` and ``rclone``: wall time, processor time and memory of each client.

A is one large object, B are many small ones, C is a checkpoint of two large ones and a few small ones. The tools take
turns, on a real SeaweedFS; downloads also over TLS, uploads also to a server that forgets them. Files lie in memory
where there is room for them.

Limits: one machine: server and clients share its cores, so only the ratios of one run say something.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure, Target
from benchmarks.transfer_tools import OURS, OUTPUTS, RCLONE, S5CMD, Endpoint, Spent, run
from kelpie_celery.local.ports import PortBlock, reserve
from kelpie_celery.local.servers import SeaweedServer

BUCKET = "bench"
ROUNDS = 5
CERTIFICATE = Path(__file__).parents[1] / "tests" / "integration" / "tls_loopback.pem"
MIB = 1024 * 1024
RSS_MB = 120.0
WALL = {
    "a_down": 1.15, "a_down_tls": 1.3, "b_down": 0.7, "c_down": 1.0, "a_up": 1.05, "b_up": 1.05, "c_up": 1.05,
    "a_up_null": 1.05, "b_up_null": 1.05, "c_up_null": 1.05,
}  # fmt: skip
"""Our wall time to s5cmd's, at most."""
CPU_DOWN, CPU_UP = 1.0, 0.5
"""Our processor time to s5cmd's, at most."""
_ROOM_BYTES = 8 * 1024 * MIB

Sizes = dict[str, list[int]]
"""The sizes of the files of each case."""
SIZES: Sizes = {"a": [1024 * MIB], "b": [64 * 1024] * 2000, "c": [200 * MIB] * 2 + [64 * 1024] * 40}


@dataclass(frozen=True)
class Way:
    """What is measured: a case, a direction, against which server."""

    case: str
    direction: str
    server: str = ""

    def __str__(self) -> str:
        return "_".join(part for part in (self.case, self.direction, self.server) if part)


Runs = dict[tuple[Way, str], list[Spent]]


def measure(directory: Path) -> Iterator[Figure]:
    """Run the part."""
    yield from figures(runs(directory, SIZES, ROUNDS), ROUNDS)


def runs(directory: Path, sizes: Sizes, rounds: int) -> Runs:
    """Every way with every tool, in turns.

    Args:
        directory: For the servers, whose data is deleted as soon as it has served.
        sizes: Of the files.
        rounds: How often.
    """
    found: Runs = {}
    with _in_memory(directory) as space, null_server() as null:
        for case, of_case in sizes.items():
            source = make(space / case, of_case)
            with seaweed(directory / case) as (plain, tls):
                _fill(plain, case, source)
                for _ in range(rounds):
                    _downloads(found, case, sum(of_case), space / "back", {"": plain, "tls": tls})
                    _uploads(found, case, source, plain)
                    for tool in (S5CMD, OURS):
                        spent = run(tool, "up", null, BUCKET, "up/", source)
                        found.setdefault((Way(case, "up", "null"), tool), []).append(spent)
            shutil.rmtree(source)
    return found


def _downloads(found: Runs, case: str, total: int, back: Path, servers: dict[str, Endpoint]) -> None:
    for name, server in servers.items():
        if name == "tls" and case == "c":
            continue
        for tool in (S5CMD, OURS, RCLONE):
            back.mkdir()
            spent = run(tool, "down", server, BUCKET, f"{case}/", back)
            arrived = sum(path.stat().st_size for path in back.iterdir())
            shutil.rmtree(back)
            if arrived != total:
                raise RuntimeError(f"{tool} brought {arrived} of {total} bytes")
            found.setdefault((Way(case, "down", name), tool), []).append(spent)


def _uploads(found: Runs, case: str, source: Path, server: Endpoint) -> None:
    for tool in (S5CMD, OURS, OUTPUTS, RCLONE):
        spent = run(tool, "up", server, BUCKET, f"up-{case}/", source)
        found.setdefault((Way(case, "up"), tool), []).append(spent)
        empty(server, f"up-{case}/", sum(path.stat().st_size for path in source.iterdir()), tool)


def make(directory: Path, sizes: list[int]) -> Path:
    """Files of these sizes that cannot be compressed."""
    directory.mkdir()
    for number, size in enumerate(sizes):
        with (directory / f"{number:05}").open("wb") as file:
            for start in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - start)))
    return directory


@contextmanager
def _in_memory(directory: Path) -> Iterator[Path]:
    memory = Path("/dev/shm")  # noqa: S108 -- a directory of our own is made there
    room = memory.is_dir() and shutil.disk_usage(memory).free > _ROOM_BYTES
    with TemporaryDirectory(prefix="kelpie-bench-", dir=memory if room else directory) as space:
        yield Path(space)


# -- servers -----------------------------------------------------------------------------------------------------------


class _TlsSeaweed(SeaweedServer):
    """A server that speaks TLS on one more port."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, bucket=BUCKET)
        self._more: PortBlock = reserve()

    @property
    def tls_url(self) -> str:
        return f"https://127.0.0.1:{self._more.base}"

    def _options(self) -> dict[str, object]:
        tls = {"s3.port.https": self._more.base, "s3.cert.file": CERTIFICATE, "s3.key.file": CERTIFICATE}
        return {**super()._options(), **tls}

    def close(self) -> None:
        super().close()
        self._more.release()


@contextmanager
def seaweed(directory: Path) -> Iterator[tuple[Endpoint, Endpoint]]:
    """A real server, without TLS and with it; its data is deleted at the end."""
    server = _TlsSeaweed(directory)
    try:
        server.start()
        yield Endpoint(server.endpoint_url, server.env()), Endpoint(server.tls_url, server.env(), CERTIFICATE)
    finally:
        server.kill()
        server.close()
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def null_server() -> Iterator[Endpoint]:
    """A server that forgets what it is sent."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.null_server"], stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline()) if process.stdout else 0
        yield Endpoint(f"http://127.0.0.1:{port}", {"AWS_ACCESS_KEY_ID": "null", "AWS_SECRET_ACCESS_KEY": "null"})
    finally:
        process.kill()
        process.communicate()


def _fill(server: Endpoint, case: str, source: Path) -> None:
    run(S5CMD, "up", server, BUCKET, f"{case}/", source)


def empty(server: Endpoint, prefix: str, expected: int, tool: str) -> None:
    """Delete what a tool has stored; a disk would be full soon.

    Raises:
        RuntimeError: It had not stored everything.
    """
    import boto3  # noqa: PLC0415 -- takes long to import

    s3 = boto3.client(
        "s3", endpoint_url=server.url, region_name="us-east-1", aws_access_key_id=server.env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=server.env["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    stored = 0
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
        entries = page.get("Contents", [])
        stored += sum(entry["Size"] for entry in entries)
        if entries:
            s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": entry["Key"]} for entry in entries]})
    if stored != expected:
        raise RuntimeError(f"{tool} stored {stored} of {expected} bytes")


# -- figures -----------------------------------------------------------------------------------------------------------


def figures(found: Runs, rounds: int) -> Iterator[Figure]:
    """Each way with each tool, how we compare with s5cmd, and the most memory that we took."""
    beside = f"medians of {rounds} rounds, in turns"
    for (way, tool), spent in found.items():
        cpu, rss = median(one.cpu_s for one in spent), max(one.rss_mb for one in spent)
        name = f"transfer.{way}.{tool.replace(' ', '_')}"
        yield Figure(name, median(one.wall_s for one in spent), "s", against=f"CPU {cpu:.2f} s, {rss:.0f} MB; {beside}")
    for way in dict.fromkeys(way for way, _ in found):
        ours, theirs = found[way, OURS], found[way, S5CMD]
        wall = median(one.wall_s for one in ours) / median(one.wall_s for one in theirs)
        cpu = median(one.cpu_s for one in ours) / median(one.cpu_s for one in theirs)
        limit = WALL.get(str(way))
        yield Figure(f"transfer.{way}.wall", wall, "x", Target(limit) if limit else None, "ours to s5cmd's wall time")
        bound = Target(CPU_UP if way.direction == "up" else CPU_DOWN)
        yield Figure(f"transfer.{way}.cpu", cpu, "x", bound, "ours to s5cmd's processor time")
    peak = max(one.rss_mb for (_, tool), spent in found.items() if tool in {OURS, OUTPUTS} for one in spent)
    yield Figure("transfer.rss", peak, "MB", Target(RSS_MB), "the most that any of our processes took")
