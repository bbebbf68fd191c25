"""Podman or Docker, as much of it as the tests of the images need.

Limits: a missing engine fails the tests. ``CONTAINER_BUILD_ARGS`` is added to every build, for machines where builds
need more.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND_S, BUILD_S = 180, 1800


@dataclass
class Engine:
    """One engine, and one project of the compose file on it."""

    project: str
    env_file: Path
    files: Sequence[str]
    program: str = field(init=False)
    composer: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.program = "podman" if shutil.which("podman") else "docker"
        assert shutil.which(self.program), "neither podman nor docker is on PATH; install one: these tests run images"
        self.composer = ["podman-compose"] if self.program == "podman" else ["docker", "compose"]
        assert shutil.which(self.composer[0]), "podman-compose is not on PATH; pip install podman-compose"

    def __call__(self, *args: str, given: str = "", limit_s: float = COMMAND_S, check: bool = True) -> str:
        """Run a command of the engine; what it wrote to stdout."""
        return self._run([self.program, *args], given, limit_s, check)

    def _run(self, command: list[str], given: str = "", limit_s: float = COMMAND_S, check: bool = True) -> str:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=limit_s, check=False, cwd=ROOT
        )
        told = f"{shlex.join(command)[:300]}\nexit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert not check or done.returncode == 0, told
        return done.stdout.strip()

    def build(self, image: str, context: Path, *, target: str = "") -> None:
        """Build an image of a folder with a Dockerfile."""
        # Podman's own format has no health checks.
        own = ["--format", "docker"] if self.program == "podman" else []
        more = shlex.split(os.environ.get("CONTAINER_BUILD_ARGS", ""))
        wanted = ["--target", target] if target else []
        self("build", *own, *more, *wanted, "-t", image, str(context), limit_s=BUILD_S)

    def compose(self, *args: str) -> str:
        """Run compose for the project."""
        files = [part for name in self.files for part in ("-f", name)]
        options = ["-p", self.project, "--env-file", str(self.env_file)]
        return self._run([*self.composer, *files, *options, *args], limit_s=600)

    def id_of(self, service: str) -> str:
        """The container of a service."""
        labels = {"project": self.project, "service": service}
        wanted = [part for name, value in labels.items() for part in ("-f", f"label=com.docker.compose.{name}={value}")]
        found = self("ps", "-a", "-q", *wanted).split()
        assert len(found) == 1, (service, found)
        return found[0]

    def inside(self, container: str, *command: str, given: str = "", check: bool = True) -> str:
        """Run a command in a container."""
        return self("exec", "-i", container, *command, given=given, check=check)

    def is_healthy(self, container: str) -> bool:
        """What its health check says now.

        Not what the engine last noted: podman runs no checks of its own accord where there is no systemd.
        """
        form = "{{json .Config.Healthcheck.Test}}"
        kind, *command = json.loads(self("inspect", "--format", form, container))
        shell = ["sh", "-c", *command] if kind == "CMD-SHELL" else command
        done = subprocess.run(
            [self.program, "exec", container, *shell], capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode == 0

    def logs(self, container: str) -> str:
        """All that a container has said."""
        done = subprocess.run(
            [self.program, "logs", container], capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
        return done.stdout + done.stderr

    def start(self, name: str, image: str, env: Mapping[str, str], *command: str) -> str:
        """Start a container in the project's network; its name."""
        given = [part for key, value in env.items() for part in ("-e", f"{key}={value}")]
        self("run", "-d", "--name", name, "--network", f"{self.project}_default", *given, image, *command)
        return name

    def remove(self, container: str) -> None:
        """End and remove a container, whatever its state."""
        self("rm", "-f", "-v", container, check=False)
