"""How the command line ends: exit codes, and one line on stderr for whatever went wrong.

Limits: a fault of this program itself is told by its type and place only, since its text might hold a secret;
``KELPIE_LOG_LEVEL=debug`` shows the traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

import click

from kelpie_celery.cli._text import one_line
from kelpie_celery.errors import KelpieError, LedgerUnavailable, StorageUnavailable

OK = 0
NOT_COMPLETED = 1
USER_ERROR = 2
UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h
SOFTWARE = 70  # EX_SOFTWARE
TIMED_OUT = 124  # as timeout(1) has it
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def say_error(message: str) -> None:
    """One line on stderr that begins with ``kelpie: error:``."""
    print(f"kelpie: error: {one_line(message)}", file=sys.stderr)  # noqa: T201 -- the command's own voice


def say(message: str) -> None:
    """One line on stderr that is no error."""
    print(f"kelpie: {one_line(message)}", file=sys.stderr)  # noqa: T201


def exit_code_of(error: BaseException) -> int:
    """The exit code that an error of ours stands for."""
    away = any(isinstance(one, LedgerUnavailable | StorageUnavailable) for one in (error, error.__cause__))
    return UNAVAILABLE if away else USER_ERROR


def guarded(command: Callable[[], Any]) -> int:
    """Run a command and turn whatever it raises into an exit code.

    Args:
        command: Returns an exit code, or None for success.
    """
    for stream in (sys.stdout, sys.stderr):
        _never_raise_on_encoding(stream)
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:
        # Somebody read enough, as in `kelpie list | head`. Python flushes once more at its end.
        _discard(sys.stdout)
        return NOT_COMPLETED
    except BaseException as error:  # nothing may reach the user as a traceback
        return _told(error)
    return code if isinstance(code, int) else OK


def _told(error: BaseException) -> int:
    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else NOT_COMPLETED
        case KeyboardInterrupt():
            say_error("interrupted")
            return INTERRUPTED
        case click.exceptions.Abort():
            return _told_abort(error)
        case click.ClickException():
            say_error(_usage(error))
            return USER_ERROR
        case KelpieError():
            say_error(str(error))
            return exit_code_of(error)
    return _told_fault(error)


def _told_abort(error: BaseException) -> int:
    """Click's word for Ctrl-C, and for an end of input where it asked something."""
    if isinstance(error.__cause__ or error.__context__, EOFError):
        say_error("there is nobody to answer the question")
        return USER_ERROR
    say_error("interrupted")
    return INTERRUPTED


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    hint = f" (try '{context.command_path} --help')" if context is not None else ""
    return error.format_message().rstrip(".") + hint


def _told_fault(error: BaseException) -> int:
    place = traceback.extract_tb(error.__traceback__)[-1]
    say_error(
        f"unexpected {type(error).__name__} in {place.filename}:{place.lineno}; this is a fault of kelpie-celery, "
        "please report it (KELPIE_LOG_LEVEL=debug shows more)"
    )
    if os.environ.get("KELPIE_LOG_LEVEL", "").lower() == "debug":
        traceback.print_exception(error)
    return SOFTWARE


def _never_raise_on_encoding(stream: TextIO) -> None:
    """What a terminal cannot show is escaped, not fatal."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _discard(stream: TextIO) -> None:
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)
    except (OSError, ValueError):  # not a real file, as in tests
        return
