"""Clients that move files to and from S3, each run as a process of its own and measured from outside.

Limits: peak memory is looked at every few milliseconds, so what lasts shorter is missed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kelpie_celery.clock import SystemClock

OURS, OUTPUTS, S5CMD, RCLONE = "ours", "ours as outputs", "s5cmd", "rclone"
LIMIT_S = 300.0
_LOOK_S = 0.005
_clock = SystemClock()


@dataclass(frozen=True)
class Spent:
    """What one run took: wall time, processor time, and the most memory that was resident."""

    wall_s: float
    cpu_s: float
    rss_mb: float


@dataclass(frozen=True)
class Endpoint:
    """A server, and whom to trust if it speaks TLS."""

    url: str
    env: Mapping[str, str]
    certificate: Path | None = None

    def env_of_clients(self) -> dict[str, str]:
        """What all clients are told."""
        told = {"PATH": os.environ["PATH"], "HOME": tempfile.gettempdir(), **self.env, "AWS_ENDPOINT_URL": self.url}
        told |= {
            "S3_ENDPOINT_URL": self.url, "AWS_REGION": "us-east-1", "RCLONE_CONFIG": "/dev/null",
            "RCLONE_CONFIG_S_TYPE": "s3", "RCLONE_CONFIG_S_PROVIDER": "Other", "RCLONE_CONFIG_S_ENDPOINT": self.url,
            "RCLONE_CONFIG_S_ACCESS_KEY_ID": self.env["AWS_ACCESS_KEY_ID"],
            "RCLONE_CONFIG_S_SECRET_ACCESS_KEY": self.env["AWS_SECRET_ACCESS_KEY"],
            "RCLONE_CONFIG_S_REGION": "us-east-1",
        }  # fmt: skip
        if self.certificate:
            told |= {"AWS_CA_BUNDLE": str(self.certificate), "SSL_CERT_FILE": str(self.certificate)}
        return told


def run(tool: str, direction: str, endpoint: Endpoint, bucket: str, prefix: str, directory: Path) -> Spent:
    """Let a tool move everything between a directory and a prefix.

    Raises:
        RuntimeError: It failed, or took too long.
    """
    arguments = _arguments(tool, direction, f"{bucket}/{prefix}", bucket, prefix, directory)
    spent, said = _measured(arguments, endpoint.env_of_clients())
    if tool in {OURS, OUTPUTS}:
        # A worker has imported everything and opened its store long before; see transfer_client.
        own = json.loads(said)
        return Spent(own["wall_s"], own["cpu_s"], spent.rss_mb)
    return spent


def _arguments(tool: str, direction: str, where: str, bucket: str, prefix: str, directory: Path) -> list[str]:
    if tool == S5CMD:
        ends = [f"s3://{where}*", f"{directory}/"] if direction == "down" else [f"{directory}/", f"s3://{where}"]
        return [program("s5cmd"), "--log", "error", "cp", *ends]
    if tool == RCLONE:
        ends = [f"s:{where}", str(directory)] if direction == "down" else [str(directory), f"s:{where}"]
        return [program("rclone"), "copy", "--transfers", "16", "--s3-no-check-bucket", "-q", *ends]
    how = "outputs" if tool == OUTPUTS else direction
    return [sys.executable, "-m", "benchmarks.transfer_client", how, bucket, prefix, str(directory)]


def program(name: str) -> str:
    """Where a peer's program is: beside this interpreter, or on the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise RuntimeError(f"{name} is not here; pip install 'kelpie-celery[dev]'")
    return found


def _measured(arguments: Sequence[str], env: Mapping[str, str]) -> tuple[Spent, str]:
    began_s = _clock.boottime()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(arguments, env=env, stdout=said, stderr=subprocess.STDOUT)
        peak_mb = 0.0
        while True:
            peak_mb = max(peak_mb, _peak_mb(process.pid))
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            took_s = _clock.boottime() - began_s
            if pid:
                break
            if took_s > LIMIT_S:
                process.kill()
            _clock.sleep(_LOOK_S)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise RuntimeError(f"{arguments[0]} ended with {process.returncode} after {took_s:.0f} s: {text[-2000:]}")
    return Spent(took_s, used.ru_utime + used.ru_stime, peak_mb), text


def _peak_mb(pid: int) -> float:
    """What the kernel remembers of a process that runs; what ``wait4`` says counts the process that started it, too."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)
