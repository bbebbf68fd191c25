"""The ``env`` file of the local stack: what another shell must source to talk to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from kelpie_celery.local.credentials import private


def render(env: Mapping[str, str]) -> str:
    """``export NAME='value'`` lines, quoted for POSIX shells."""
    lines = ["# Source this file:  . ./env"]
    lines += [f"export {name}={quoted(value)}" for name, value in sorted(env.items())]
    return "\n".join(lines) + "\n"


def quoted(value: str) -> str:
    """A value in single quotes, in which a POSIX shell takes every character as it is but the quote itself."""
    return "'" + value.replace("'", "'\\''") + "'"


def write(path: Path, env: Mapping[str, str]) -> None:
    """Write the file at once, readable by its owner only, whatever was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with open(draft, "x", opener=private) as file:
        file.write(render(env))
    draft.replace(path)
