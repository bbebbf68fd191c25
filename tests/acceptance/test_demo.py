"""The demo, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_S = 240


@pytest.mark.timeout(LIMIT_S + 60)
def test_the_demo_survives_its_kills_and_says_so_in_its_last_line(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "kelpie_celery.demo", "--limit", str(LIMIT_S - 60), "--keep", str(tmp_path / "demo")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    last = ran.stdout.splitlines()[-1]
    assert last.startswith("DEMO OK"), ran.stdout
    assert ran.returncode == 0
