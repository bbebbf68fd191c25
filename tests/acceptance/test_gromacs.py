"""A real simulation, GROMACS, with trajectories that it appends to, killed again and again.

Not part of the default run: ``make test-gromacs``. It needs ``gmx`` on PATH, and fails where there is none (Debian and
Ubuntu have it: ``apt-get install gromacs``).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.harness.looking import outputs_under, put_objects
from tests.harness.pages import ROOT, Page
from tests.harness.stack import Stack, StackFactory
from tests.harness.storm import PATIENT, strike_after_each_commit

pytestmark = [pytest.mark.gromacs, pytest.mark.timeout(580)]

STEPS, EVERY = 300_000, 100  # a minute or two of one core: more than ten attempts that end soon
KINDS = ["worker", "command", "sigterm", "command", "worker", "command", "sigterm", "command", "worker", "command"]
TOPOLOGY = """
#include "oplsaa.ff/forcefield.itp"
#include "oplsaa.ff/spce.itp"
[ system ]
water
[ molecules ]
"""
PARAMETERS = f"""
integrator = md
dt = 0.002
nsteps = {STEPS}
nstxout-compressed = {EVERY}
nstenergy = {EVERY}
nstlog = {EVERY}
rcoulomb = 0.7
rvdw = 0.7
tcoupl = v-rescale
tc-grps = System
tau-t = 0.1
ref-t = 300
gen-vel = yes
gen-seed = 1
constraints = h-bonds
"""
# The same start again and again: where there is a checkpoint it goes on from there, and appends to its files.
SCRIPT = """
    cd $CHECKPOINT_DIR && ls -l
    gmx mdrun -s $INPUT_DIR/run.tpr -deffnm md -cpi md.cpt -cpt 0.02 -nt 1 -reprod || exit 1
    cp md.xtc md.edr md.log md.gro $OUTPUT_DIR/
    ls > $OUTPUT_DIR/names
"""


def gmx(directory: Path, *arguments: str) -> str:
    """Run a tool of GROMACS; what it said."""
    assert shutil.which("gmx"), "gmx is not on PATH; apt-get install gromacs"
    ran = subprocess.run(
        ["gmx", *arguments], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


@pytest.fixture(scope="module")
def water(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``run.tpr``, a small box of water."""
    folder = tmp_path_factory.mktemp("water")
    (folder / "topol.top").write_text(TOPOLOGY)
    (folder / "run.mdp").write_text(PARAMETERS)
    gmx(folder, "solvate", "-cs", "spc216.gro", "-box", "1.9", "1.9", "1.9", "-p", "topol.top", "-o", "box.gro")
    gmx(folder, "grompp", "-f", "run.mdp", "-c", "box.gro", "-p", "topol.top", "-o", "run.tpr", "-maxwarn", "2")
    return folder


def submit(stack: Stack, water: Path, prefix: str, commit: str) -> str:
    put_objects(stack.s3, stack.bucket, f"{prefix}in/", {"run.tpr": (water / "run.tpr").read_bytes()})
    places = {
        name: {"bucket": stack.bucket, "prefix": f"{prefix}{name}/", "local_path": f"{name}"}
        for name in ("in", "state", "out")
    }
    sync = {
        "before": [{**places[name], "direction": "download"} for name in ("in", "state")],
        "during": [{**places["state"], "direction": "upload", "commit": commit}],
        "after": [{**places["out"], "direction": "upload"}],
    }
    script = f"INPUT_DIR=$PWD/in CHECKPOINT_DIR=$PWD/state OUTPUT_DIR=$PWD/out; mkdir -p state out\n{SCRIPT}"
    return stack.submit(stack.shell(script, sync=sync, max_failures=1000, grace_period=20))


@pytest.mark.parametrize("commit", ["marker:md.cpt", "quiet"])
def test_gromacs_goes_on_and_appends_after_each_of_ten_kills(
    make_stack: StackFactory, water: Path, tmp_path: Path, commit: str
) -> None:
    stack = make_stack(workers=2, control=False, beat=False, KELPIE_STREAM_AFTER_S="1", **PATIENT)  # type: ignore[arg-type]  # no flags
    began = time.monotonic()
    job_id = submit(stack, water, "water/", commit)
    strike_after_each_commit(stack, job_id, KINDS, seed=11)
    record = stack.wait_status(job_id, "completed", timeout_s=300)
    seconds = time.monotonic() - began
    outputs = outputs_under(stack.s3, stack.bucket, "water/out/")
    names = outputs.pop("names").decode().split()
    assert not [name for name in names if name.startswith("#")], f"GROMACS began anew and moved files away: {names}"
    for name, body in outputs.items():
        (tmp_path / name).write_bytes(body)
    text = outputs["md.log"].decode(errors="replace")
    restarts = len(re.findall("Restarting from checkpoint, appending to previous log file", text))
    assert restarts == len(record.attempts) - 1 >= len(KINDS)
    assert f"step {STEPS}" in text or f"{STEPS} steps" in text
    checked = gmx(tmp_path, "check", "-f", "md.xtc")
    frames = re.search(r"^Coords\s+(\d+)", checked, re.MULTILINE)
    assert frames, checked
    assert int(frames[1]) == STEPS // EVERY + 1, checked
    assert "not continuous" not in checked.lower()
    print(f"{commit}: {len(record.attempts)} attempts, {restarts} restarts with appending, {frames[1]} frames, "
          f"{len(outputs['md.xtc']) / 1e6:.1f} MB of trajectory, {seconds:.0f} s")  # fmt: skip


def test_the_definition_of_the_recipes_goes_on_after_kills_and_leaves_its_files_under_plain_keys(
    make_stack: StackFactory, water: Path, tmp_path: Path
) -> None:
    stack = make_stack(workers=2, control=False, beat=False, KELPIE_STREAM_AFTER_S="1", **PATIENT)  # type: ignore[arg-type]  # no flags
    recipe = next(
        b.text for b in Page(ROOT / "docs" / "recipes.md").blocks if b.language == "json" and "mdrun" in b.text
    )
    assert "-cpt 15" in recipe
    text = recipe.replace("-cpt 15", "-cpt 0.02 -nt 1").replace('"runs"', f'"{stack.bucket}"')
    definition = json.loads(text) | {"container_group_id": stack.group, "heartbeat_interval": 1, "max_failures": 1000}
    put_objects(stack.s3, stack.bucket, "protein-1/input/", {"run.tpr": (water / "run.tpr").read_bytes()})
    job_id = stack.submit(definition)
    kinds = ["sigterm", "worker", "sigterm", "command", "worker"]
    strike_after_each_commit(stack, job_id, kinds, seed=3)
    record = stack.wait_status(job_id, "completed", timeout_s=300)
    assert len(record.attempts) > len(kinds)
    files = outputs_under(stack.s3, stack.bucket, "protein-1/state/")
    assert {"md.xtc", "md.edr", "md.log", "md.gro", "md.cpt"} <= set(files)
    assert not [name for name in files if name.startswith("#")]
    (tmp_path / "md.xtc").write_bytes(files["md.xtc"])
    frames = re.search(r"^Coords\s+(\d+)", gmx(tmp_path, "check", "-f", "md.xtc"), re.MULTILINE)
    assert frames
    assert int(frames[1]) == STEPS // EVERY + 1
