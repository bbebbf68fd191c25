"""The demo, run as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_S = 400
NUMBERS = (
    r"DEMO OK: 7 jobs completed once each, (?P<interruptions>\d+) interruptions survived .*; "
    r"then 24 more on a simulated SaladCloud, from 0 to 3 nodes and back to 0 by the scaler: 1 start, 1 stop, "
    r"(?P<vanished>\d+) nodes vanished, (?P<hours>[\d.]+) GPU hours billed; in \d+ s"
)


@pytest.mark.timeout(LIMIT_S + 60)
def test_the_demo_survives_its_kills_scales_to_nothing_and_says_so_in_its_last_line(tmp_path: Path) -> None:
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "kelpie_celery.demo",
            "--limit",
            str(LIMIT_S / 2 - 30),
            "--keep",
            str(tmp_path / "demo"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    last = ran.stdout.splitlines()[-1]
    told = re.fullmatch(NUMBERS, last)
    assert told, ran.stdout
    assert ran.returncode == 0
    # Seven on a machine that has nothing else to do; on others jobs may end before their turn.
    assert int(told["interruptions"]) >= 2
    assert int(told["vanished"]) >= 1
    assert 0 < float(told["hours"]) < 3 * LIMIT_S / 3600
    assert "scaler: starts the group, with 3 nodes, because: the group is stopped: 24 pending jobs need" in ran.stdout
    assert "scaler: stops the group, because: " in ran.stdout
