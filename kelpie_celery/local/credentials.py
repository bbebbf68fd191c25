"""A pair of random keys, made once and kept in a file that its owner alone can read."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

MODE = 0o600


def load_or_make(path: Path) -> tuple[str, str]:
    """The access key and the secret key of a file; made when there is none."""
    try:
        keys = json.loads(path.read_text())
    except FileNotFoundError:
        keys = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(20)}
        path.parent.mkdir(parents=True, exist_ok=True)
        # Path.open takes no opener, and a mode set afterwards would come too late.
        with open(path, "x", opener=private) as file:
            json.dump(keys, file)
    return keys["access_key"], keys["secret_key"]


def private(path: str, flags: int) -> int:
    """An opener for files with secrets in them."""
    return os.open(path, flags, MODE)
