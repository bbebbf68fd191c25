"""Makes a folder that runs anywhere: Python, its libraries and glibc, packages; nothing of the image around it is used.

    bundle.py make /opt/kelpie      beside packages that were installed into /opt/kelpie/lib/pythonX.Y/dist-packages
    bundle.py check /opt/kelpie     loads everything and looks at what was mapped; run by the bundle's own Python

Programs name their loader by its full path, so the folder works at this path only. With a loader and a glibc of its own
it does not matter whether the image around has an older one, a newer one, musl or none; and as the paths of libraries
are in the files (DT_RPATH, which goes before LD_LIBRARY_PATH), no variable is set that commands would inherit.

Limits: a Debian Python; Linux; one architecture, that of the machine it is made on.
"""

from __future__ import annotations

import compileall
import ctypes
import importlib
import os
import py_compile
import re
import shutil
import subprocess
import sys
import zoneinfo
from pathlib import Path

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
UNUSED_STDLIB = (
    "test", "tests", "idlelib", "tkinter", "turtledemo", "turtle.py", "lib2to3", "ensurepip", "config-*", "pydoc_data",
    "__pycache__", "dist-packages", "site-packages", "sitecustomize.py", "EXTERNALLY-MANAGED",
)  # fmt: skip
# botocore knows four hundred services; these are the storage, and where its credentials may come from.
BOTOCORE_SERVICES = frozenset({"s3", "sts", "sso", "sso-oidc", "signin"})
LOADED = (
    "kelpie_worker.bundled", "kelpie_worker.entrypoint", "kelpie_worker.runner", "kelpie_worker.sync.store",
    "kelpie_worker.sync.session", "kelpie_celery.cli.submit", "kelpie_celery.cli.checkpoints", "kelpie_scaler.tasks",
    "kelpie_celery.metrics.process", "kelpie_celery.metrics.ledger", "kelpie_celery.metrics.server", "pynvml",
    "aiobotocore.session", "celery.apps.worker", "kombu.transport.redis", "celery.backends.redis", "boto3", "certifi",
)  # fmt: skip


def make(prefix: Path) -> None:
    """Fill the folder."""
    python = prefix / "bin" / "python3"
    python.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(Path(sys.executable).resolve(), python)
    packages = prefix / "lib" / VERSION / "dist-packages"
    shutil.copytree(
        Path(os.__file__).parent, packages.parent, ignore=shutil.ignore_patterns(*UNUSED_STDLIB), dirs_exist_ok=True
    )
    prune(packages)
    for file in packages.rglob("*.so*"):
        output("strip", "--strip-debug", str(file))
    loader = Path(output("patchelf", "--print-interpreter", str(python)))
    copy_libraries(prefix, loader)
    output("patchelf", "--set-interpreter", str(prefix / "lib" / loader.name), str(python))
    output("patchelf", "--force-rpath", "--set-rpath", str(prefix / "lib"), str(python))
    # Timestamps may change on the way into an image, whose files may be read-only: never look at the sources again.
    compileall.compile_dir(
        str(prefix / "lib"), quiet=2, workers=0, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )


def prune(packages: Path) -> None:
    """Remove what a worker never reads."""
    shutil.rmtree(packages / "bin", ignore_errors=True)
    for service in (packages / "botocore" / "data").iterdir():
        if service.is_dir() and service.name not in BOTOCORE_SERVICES:
            shutil.rmtree(service)
    for tests in [path for path in packages.rglob("tests") if path.is_dir()]:
        shutil.rmtree(tests)


def copy_libraries(prefix: Path, loader: Path) -> None:
    """Bring what the programs and extensions are linked with, and see that nothing looks elsewhere first."""
    found: dict[str, Path] = {loader.name: loader}
    for file in elf_files(prefix):
        found.update(linked(file, prefix))
        if "RUNPATH" in output("readelf", "--dynamic", str(file)):
            # LD_LIBRARY_PATH goes before a RUNPATH, and the image's libraries may be of another glibc.
            places = output("patchelf", "--print-rpath", str(file))
            output("patchelf", "--force-rpath", "--set-rpath", places, str(file))
    for name, path in found.items():
        shutil.copy2(path.resolve(), prefix / "lib" / name)
    copy_licences(prefix, [Path(sys.executable), *found.values()])


def copy_licences(prefix: Path, files: list[Path]) -> None:
    """Bring the licences of what comes from Debian; those of the packages lie beside them."""
    for file in files:
        # Debian's list has the places before /lib became a link into /usr.
        names = [str(file.resolve()), str(file.resolve()).removeprefix("/usr")]
        owner = subprocess.run(["dpkg", "--search", *names], capture_output=True, text=True, check=False).stdout
        package = owner.partition(":")[0]
        if not package:
            sys.exit(f"no Debian package has {file}: whose licence is it under?")
        licence = prefix / "share" / "doc" / package / "copyright"
        licence.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(Path("/usr/share/doc") / package / "copyright", licence)


def elf_files(prefix: Path) -> list[Path]:
    """Every program and library in the folder, but not the static init."""
    names = [prefix / "bin" / "python3", *prefix.rglob("*.so"), *prefix.rglob("*.so.*")]
    return [path for path in names if path.is_file() and path.read_bytes()[:4] == b"\x7fELF"]


def linked(file: Path, prefix: Path) -> dict[str, Path]:
    """The libraries outside of the folder that a file needs, by name.

    Raises:
        SystemExit: One is not here.
    """
    listing = output("ldd", str(file))
    if "not found" in listing:
        sys.exit(f"{file} needs what is not here; install it in this stage:\n{listing}")
    pairs = re.findall(r"^\s*(\S+) => (/\S+)", listing, re.MULTILINE)
    return {name: Path(path) for name, path in pairs if not Path(path).is_relative_to(prefix)}


def output(*command: str) -> str:
    """What a command prints.

    Raises:
        SystemExit: It failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout.strip()


def check(prefix: Path) -> None:
    """Import what a worker imports, load every extension, and see that all of it lies in the folder.

    Raises:
        SystemExit: Something came from elsewhere.
    """
    zoneinfo.reset_tzpath(to=())  # as in an image without time zones
    for name in LOADED:
        importlib.import_module(name)
    for extension in prefix.rglob("*.so"):
        ctypes.CDLL(str(extension))
    # Code alone: glibc also looks at the image's locales, which say what format they have.
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = {fields[-1].strip() for fields in maps if "x" in fields[1]}
    foreign = sorted(name for name in mapped if name.startswith("/") and not Path(name).is_relative_to(prefix))
    paths = sorted(path for path in sys.path if not Path(path).is_relative_to(prefix))
    if foreign or paths:
        sys.exit(f"not self-contained: mapped {foreign}, on sys.path {paths}")
    sys.stdout.write(f"self-contained: {len(mapped)} libraries and programs, all below {prefix}\n")


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
