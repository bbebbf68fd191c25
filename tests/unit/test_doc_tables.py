"""The tables in the documentation are those of the models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kelpie_celery.doc_tables import TABLES, lifecycle_drawing, with_tables, write
from kelpie_celery.lifecycle import TRANSITIONS, Status

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", TABLES)
def test_a_page_has_the_tables_of_the_models(page: str) -> None:
    text = (DOCS / page).read_text()

    assert with_tables(page, text) == text, "run: python -m kelpie_celery.doc_tables docs"


def test_a_page_without_markers_is_told() -> None:
    with pytest.raises(ValueError, match="no markers for the table 'settings'"):
        with_tables("settings.md", "# Settings")


def test_writing_puts_the_tables_between_their_markers(tmp_path: Path) -> None:
    for page in TABLES:
        text = (DOCS / page).read_text()
        emptied = re.sub(r"(<!-- begin \w+ -->\n).*?(<!-- end)", r"\1\2", text, flags=re.DOTALL)
        assert len(emptied) < len(text) - 200
        (tmp_path / page).write_text(emptied)

    write(tmp_path)

    for page in TABLES:
        assert (tmp_path / page).read_text() == (DOCS / page).read_text()


def test_the_drawing_has_words_for_each_transition_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "    running --> completed: exit code 0" in lifecycle_drawing()
    monkeypatch.setitem(TRANSITIONS, Status.COMPLETED, frozenset({Status.PENDING}))
    with pytest.raises(ValueError, match="completed"):
        lifecycle_drawing()
