"""Whether this machine is fit to be a worker: programs, GPU, disk, memory, inotify, metadata service.

For ``kelpie doctor``, which is best run where workers run: in their image.

Limits: Linux; NVIDIA's GPUs by ``nvidia-smi``.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kelpie_celery.cli._text import counted, size
from kelpie_celery.clock import Clock
from kelpie_celery.errors import ImdsAbsent, ImdsError
from kelpie_celery.findings import Finding, error, info, ok, warning
from kelpie_celery.settings import Settings
from kelpie_worker.imds import Imds
from kelpie_worker.memory import own_group

LITTLE_BYTES, TOO_LITTLE_BYTES = 10 * 1024**3, 1024**3
FEW_WATCHES, FEW_INSTANCES = 65_536, 128
_GPU_S = 10.0
_PACKAGES = ("kelpie-celery", "celery", "redis", "aiobotocore")


def check_machine(settings: Settings, clock: Clock) -> list[Finding]:
    """All about this machine."""
    looks: list[Callable[[], Finding]] = [
        _programs, _gpu, lambda: _disk(settings), _memory, _inotify, lambda: _metadata(settings, clock),
    ]  # fmt: skip
    return [look() for look in looks]


def _programs() -> Finding:
    found = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            return error("programs", f"{name} is not installed", "pip install 'kelpie-celery[worker]'")
    return ok("programs", ", ".join(found))


def _gpu() -> Finding:
    program = shutil.which("nvidia-smi")
    if program is None:
        return info("gpu", "no nvidia-smi here: jobs find no NVIDIA GPU", "on a GPU node, use an image with its driver")
    ask = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run([program, *ask], capture_output=True, text=True, timeout=_GPU_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        return error("gpu", f"nvidia-smi gives no answer ({type(e).__name__})", "have the node changed: its GPU hangs")
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not lines:
        said = " ".join((done.stderr or done.stdout).split())[:200]
        return error(
            "gpu", f"nvidia-smi fails: {said or done.returncode}", "see driver and container runtime of the node"
        )
    return ok("gpu", f"{counted(len(lines), 'GPU')}: {'; '.join(lines)}", count=len(lines))


def _disk(settings: Settings) -> Finding:
    place = settings.workdir
    try:
        free = shutil.disk_usage(place).free
    except OSError as e:
        return error("disk", f"{place}: {e.strerror}", "create it in the image, or set KELPIE_WORKDIR")
    facts = {"free_bytes": free}
    if not os.access(place, os.W_OK):
        return error("disk", f"{place}: this user may not write there", "set KELPIE_WORKDIR, or its owner", **facts)
    text = f"{size(free)} are free at {place}"
    mend = "a job needs room for inputs, checkpoint, a copy of what is sent, and outputs: use nodes with a larger disk"
    if free < LITTLE_BYTES:
        make = error if free < TOO_LITTLE_BYTES else warning
        return make("disk", text, mend, **facts)
    return ok("disk", text, **facts)


def _memory() -> Finding:
    group = own_group()
    if group is None:
        text = "no memory cgroup is to be seen: a job that is killed for want of memory looks like any other kill"
        return info("memory", text, "nothing, unless jobs are killed without a reason")
    limit = group.limit_bytes()
    text = f"the container may use {size(limit)}" if limit is not None else "no limit beside the machine's memory"
    return ok("memory", f"{text}; kills for want of memory are seen", limit_bytes=limit)


def _inotify() -> Finding:
    found = {}
    for name in ("max_user_watches", "max_user_instances"):
        try:
            found[name] = int(Path("/proc/sys/fs/inotify", name).read_text())
        except (OSError, ValueError):
            return info("inotify", "its limits are not to be seen here")
    text = f"{found['max_user_watches']:,} folders may be watched, by {found['max_user_instances']:,} watchers"
    if found["max_user_watches"] < FEW_WATCHES or found["max_user_instances"] < FEW_INSTANCES:
        mend = (
            "raise fs.inotify.max_user_watches and fs.inotify.max_user_instances of the node: where they are used up, "
            "directories are walked instead, twice a second at most"
        )
        return warning("inotify", text, mend, **found)
    return ok("inotify", text, **found)


def _metadata(settings: Settings, clock: Clock) -> Finding:
    imds = Imds(settings.metadata_uri, clock)
    try:
        return ok("metadata service", f"answers: this instance's deletion cost is {imds.deletion_cost()}")
    except ImdsAbsent:
        return info("metadata service", "there is none: this is no SaladCloud node, and nothing is missed")
    except ImdsError as e:
        mend = "on a SaladCloud node, have it moved: its worker cannot say when it is busy; elsewhere nothing is missed"
        return warning("metadata service", str(e), mend)
    finally:
        imds.close()
