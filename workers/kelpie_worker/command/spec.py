"""What to run, how it ended, and why it could not be started, in words.

Limits: messages hold names, arguments' names and paths, and never the value of an environment variable.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kelpie_celery.errors import CommandError

_SHORT_OF_RESOURCES = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True)
class CommandSpec:
    """What to run; ``env`` is the whole environment, and a secret."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: Path

    def encoded(self) -> bytes:
        """As the supervisor reads it: length, then NUL-separated fields.

        Raises:
            CommandError: No process can be given this.
        """
        if not self.argv or not self.argv[0]:
            raise CommandError("the command is empty; name a program", reason="not_found")
        for name, value in self.env.items():
            if not name or "=" in name or "\0" in name + value:
                text = f"no process can be given the environment variable {name!r}: a name is not empty and has no '='"
                raise CommandError(text + "; neither name nor value has a NUL", reason="not_executable")
        if any("\0" in text for text in (*self.argv, str(self.cwd))):
            raise CommandError("an argument or the directory of the command has a NUL in it", reason="not_executable")
        pairs = [f"{name}={value}" for name, value in self.env.items()]
        fields = [str(self.cwd), str(len(self.argv)), *self.argv, *pairs]
        body = b"\0".join(text.encode("utf-8", "surrogateescape") for text in fields)
        return len(body).to_bytes(4, "big") + body


@dataclass(frozen=True)
class CommandExit:
    """How a command ended: by a code of its own, or by a signal; exactly one is set."""

    code: int | None = None
    signal: int | None = None

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.code == 0


def start_error(stage: str, number: int, spec: CommandSpec) -> CommandError | OSError:
    """What a failed start means.

    Args:
        stage: Where it failed: ``start``, ``cwd`` or ``command``.
        number: The ``errno``.
        spec: What was to be run.

    Returns:
        A ``CommandError`` that a user can mend, or an ``OSError`` when the machine is short of something.
    """
    why = os.strerror(number)
    if stage == "start" or number in _SHORT_OF_RESOURCES:
        return OSError(number, f"no process could be made for the command: {why}")
    if stage == "cwd":
        text = f"the command's working directory {str(spec.cwd)!r} cannot be entered ({why})"
        return CommandError(text + "; create it in the image, or set KELPIE_WORKDIR", reason="no_workdir")
    return _command_error(number, why, spec)


def _command_error(number: int, why: str, spec: CommandSpec) -> CommandError:
    name = spec.argv[0]
    path = _existing(spec)
    if path is None and number in (errno.ENOENT, errno.ENOTDIR):
        where = f"in {str(spec.cwd)!r}" if "/" in name else "in any directory of the job's PATH"
        hint = "; install it in the image or give its full path"
        if "/" not in name and " " in name:
            hint = "; it is run without a shell: put its arguments into 'arguments'"
        return CommandError(f"the command {name!r} was not found {where}{hint}", reason="not_found")
    if number == errno.E2BIG:
        hint = "the arguments and the environment are too large; hand them over in an input file"
    elif path is not None and path.is_dir():
        hint = "it is a directory"
    elif number in (errno.ENOENT, errno.ENOTDIR):
        hint = f"{str(path)!r} is there, the interpreter in its first line (#!) or its loader is not in the image"
    elif number == errno.ENOEXEC:
        hint = "it has no first line such as #!/bin/sh, or was built for another kind of machine"
    else:
        hint = "make it executable (chmod +x)"
    return CommandError(f"the command {name!r} cannot be executed ({why}): {hint}", reason="not_executable")


def _existing(spec: CommandSpec) -> Path | None:
    """The file that the command names, if it exists."""
    name = spec.argv[0]
    if "/" in name:
        path = spec.cwd / name
        return path if path.exists() else None
    found = shutil.which(name, mode=os.F_OK, path=spec.env.get("PATH", os.defpath))
    return Path(found) if found else None
