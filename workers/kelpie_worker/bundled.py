"""``/opt/kelpie/kelpie-worker``: the worker with a Python of its own, in an image that knows nothing of it.

It may be the container's first process, so it puts an init in front of itself that reaps what nobody waits for; it may
run where no certificates are installed, so it brings some; and what Python adds to its environment does not reach jobs.

Limits: Linux; the folder has its place in it and cannot be moved (``containers/bundle.py`` makes it).
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

FIRST_PID = 1
COERCED = "LC_CTYPE"
"""Set by Python itself where the locale is C (PEP 538); ``-I`` leaves no way to forbid it."""


def main() -> None:
    """Run ``kelpie-worker``, as the container's first process or as any other."""
    forget_coercion(os.environ, Path("/proc/self/environ").read_bytes())
    init = init_command(os.getpid(), Path(sys.prefix) / "bin" / "tini", sys.argv)
    if init:
        os.execv(init[0], init)  # noqa: S606 -- it becomes that process
    if not has_certificates(ssl.get_default_verify_paths()):
        trust_own_certificates(ssl.SSLContext)
    from kelpie_worker.entrypoint import main as worker  # noqa: PLC0415 -- not for the one that becomes an init

    worker()


def forget_coercion(environ: MutableMapping[str, str], given: bytes) -> None:
    """Take out of ``environ`` what Python put there.

    Args:
        environ: This process's.
        given: What it was started with, as ``/proc/self/environ`` has it.
    """
    names = {pair.partition(b"=")[0] for pair in given.split(b"\0")}
    if COERCED.encode() not in names:
        environ.pop(COERCED, None)


def init_command(pid: int, init: Path, argv: Sequence[str]) -> list[str]:
    """What a container's first process should become; empty for any other process.

    The kernel gives the first process every orphan, and ignores signals for it that it has no handler for.
    """
    return [str(init), "--", *argv] if pid == FIRST_PID and init.exists() else []


def has_certificates(paths: ssl.DefaultVerifyPaths) -> bool:
    """Whether this image has certificate authorities, or was told where they are (``SSL_CERT_FILE``)."""
    return bool(paths.cafile) or (paths.capath is not None and any(Path(paths.capath).iterdir()))


def trust_own_certificates(context: type[ssl.SSLContext]) -> None:
    """Let every TLS connection of this process trust certifi's authorities.

    Not by ``SSL_CERT_FILE``: jobs would inherit it, and it names a file that is none of theirs.
    """
    import certifi  # noqa: PLC0415 -- most images have their own

    def load(self: ssl.SSLContext, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> None:  # noqa: ARG001
        self.load_verify_locations(certifi.where())

    context.load_default_certs = load  # type: ignore[method-assign]  # every library asks this method
