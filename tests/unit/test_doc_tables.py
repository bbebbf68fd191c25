"""The tables in the documentation are those of the models."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kelpie_celery.definition import parse_definition
from kelpie_celery.doc_tables import TABLES, with_tables, write

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
        (tmp_path / page).write_text(re.sub(r"(?m)^\| .*\n", "", text))

    write(tmp_path)

    for page in TABLES:
        assert "| --- |" in (tmp_path / page).read_text()


def test_every_example_of_the_documentation_is_a_definition() -> None:
    examples = re.findall(r"```json\n(.*?)```", (DOCS / "job-definition.md").read_text(), re.DOTALL)

    assert len(examples) == 2
    for example in examples:
        parse_definition({"command": "x", "container_group_id": "g"} | json.loads(example))
