"""What README and docs name is there: files, headings, settings, commands, options, fields, methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kelpie_celery.cli import COMMANDS
from tests.harness import page_checks
from tests.harness.pages import HOW_TO_MARK, ROOT, Page, pages, slug

PAGES = pages()
FROM_A_PAGE: list[Callable[[Page], list[str]]] = [
    page_checks.marks,
    page_checks.links,
    page_checks.paths,
    page_checks.variables,
    page_checks.command_lines,
    page_checks.programs,
]


@pytest.mark.parametrize("check", FROM_A_PAGE, ids=lambda check: check.__name__)
@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_names_nothing_that_is_not_there(page: Page, check: Callable[[Page], list[str]]) -> None:
    faults = check(page)
    assert not faults, "\n".join([*faults, HOW_TO_MARK])


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_example_is_taken(page: Page, tmp_path: Path) -> None:
    faults = page_checks.examples(page, tmp_path)
    assert not faults, "\n".join([*faults, HOW_TO_MARK])


def test_every_page_is_reached_from_the_readme() -> None:
    """By links, over as many pages as it takes."""
    by_path = {page.path.resolve(): page for page in PAGES}
    seen, ahead = set(), [ROOT / "README.md"]
    while ahead:
        path = ahead.pop().resolve()
        if path in by_path and path not in seen:
            seen.add(path)
            ahead += [path.parent / link.text.partition("#")[0] for link in by_path[path].links]
    assert [page for path, page in by_path.items() if path not in seen] == []


def test_every_command_is_in_the_table_of_the_command_line() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    assert [name for name in COMMANDS if f"| `kelpie {name}" not in text] == []


# -- the checks themselves --------------------------------------------------------------------------------------------

BAD = """\
# A page
## Over `there` (twice)
## Over `there` (twice)
See [this](#over-there-twice-1), [that](#nowhere), [a file](gone.md), [ours](page.md#a-page), <https://example.com>.
`KELPIE_REDIS_URL` and `KELPIE_JOB_ID`, never `KELPIE_REDIS_ULR`; `docs/cli.md`, `docs/gone.md`, `tests/unit/t*.py`.
`kelpie rules set|drop GROUP --max 3`, `kelpie submitt`, `kelpie list --jsn`, `kelpie submit FILE\\|-`.
```
kelpie list
```
```sh
kelpie up --workers 2
```
```sh clowd
X=1 kelpie list --group "a # b" | jq . && .venv/bin/kelpie wait --forever ID   # --not-this
docker compose exec -T control kelpie submit - --wiat <<'JSON'
{"command": "x", "argument": []}
JSON
```
```sh tested-by=tests/gone.py
make test
```
```json
{"sync": {}, "retires": []}
```
  ```toml
  [[rule]]
  container_group_id = "x"
  ```
```python
from kelpie_celery import Kelpie, Nothing
kelpie.submit_all()
```
"""


@pytest.fixture
def bad(tmp_path: Path) -> Page:
    (tmp_path / "page.md").write_text(BAD)
    return Page(tmp_path / "page.md", tmp_path)


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (
            page_checks.marks,
            ["8: has no language", "11: starts what runs", "14: has the mark 'clowd'", "20: says that"],
        ),
        (page_checks.links, ["4: page.md has no heading #nowhere", "4: there is no gone.md"]),
        (page_checks.paths, ["5: there is no docs/gone.md"]),
        (page_checks.variables, ["5: nothing knows KELPIE_REDIS_ULR"]),
        (page_checks.programs, ["30: kelpie_celery has no Nothing", "30: Kelpie has no submit_all"]),
        (
            page_checks.command_lines,
            [
                "14: 'kelpie wait' has no option --forever",
                "14: 'kelpie submit' has no option --wiat",
                "6: 'kelpie rules' has no command 'drop'",
                "6: 'kelpie' has no command 'submitt'",
                "6: 'kelpie list' has no option --jsn",
            ],
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_is_told_with_its_line(
    bad: Page, check: Callable[[Page], list[str]], expected: list[str]
) -> None:
    told = check(bad)
    assert len(told) == len(expected), told
    for line, start in zip(told, expected, strict=True):
        assert line.startswith(f"page.md:{start}"), told


def test_examples_that_would_be_refused_are_told(bad: Page, tmp_path: Path) -> None:
    told = page_checks.examples(bad, tmp_path)
    assert [line.partition(": ")[0] for line in told] == ["page.md:14", "page.md:23", "page.md:26"]
    assert "argument" in told[0]
    assert "retires" in told[1]
    assert "rule" in told[2]


def test_anchors_are_those_of_github() -> None:
    assert slug("The whole way, on this machine") == "the-whole-way-on-this-machine"
    assert slug("What becomes of a failure: `retry`") == "what-becomes-of-a-failure-retry"
    assert slug("Our default rule against Kelpie's algorithm") == "our-default-rule-against-kelpies-algorithm"
