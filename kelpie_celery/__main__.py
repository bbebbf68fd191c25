"""``python -m kelpie_celery`` is ``kelpie``."""

from __future__ import annotations

from kelpie_celery.cli import main

if __name__ == "__main__":
    main()
