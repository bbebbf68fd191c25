"""The file of scaling rules that ``KELPIE_RULES_FILE`` names: TOML, one table ``[[rules]]`` a container group.

    [defaults]                       # optional: fields that the rules below share
    organization = "example-org"
    project = "default"

    [[rules]]
    container_group_id = "6f1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
    max_replicas = 20

The file says what a rule is: a field that it leaves out goes back to its default, except what is not the file's to
know: ``paused``, and ``organization``, ``project`` and ``group_name``, which may have been looked up. Rules of other
groups stay.

Limits: read at the start of a process, not watched.
"""

from __future__ import annotations

import logging
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kelpie_celery._faults import Problem, describe
from kelpie_celery._suggest import closest, did_you_mean
from kelpie_celery.errors import RuleError
from kelpie_celery.scaling.rule import ScalingRule, parse_rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kelpie_celery.ledger.rules import Rules

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 20
_KEPT = frozenset({"paused", "organization", "project", "group_name"})
_TABLES = ("defaults", "rules")


@dataclass(frozen=True, slots=True)
class FileRule:
    """One rule of a file.

    Attributes:
        rule: With defaults for what the file leaves out.
        given: The fields that the file names.
    """

    rule: ScalingRule
    given: frozenset[str]


def load_rules(path: Path, rules: Rules, known_groups: Iterable[str] = ()) -> list[ScalingRule]:
    """Read a file, check it, and keep its rules in the ledger, all of them or none.

    Args:
        path: The file.
        rules: The ledger's rules.
        known_groups: Container groups that ever had a job; a group of the file that none of them is, is warned of.

    Raises:
        RuleError: Names every fault; nothing has changed.
        LedgerUnavailable: Redis cannot be reached.
    """
    found = read_rules(path)
    kept = rules.merge({one.rule.container_group_id: _changes(one) for one in found})
    known = sorted(known_groups)
    for rule in kept:
        if known and rule.container_group_id not in known:
            log.warning(
                "a scaling rule is for a container group that never had a job",
                extra={
                    "action": "rule_without_jobs",
                    "container_group": rule.container_group_id,
                    "near": closest(rule.container_group_id, known),
                },
            )
    return kept


def read_rules(path: Path) -> list[FileRule]:
    """The rules of a file, checked.

    Raises:
        RuleError: Names every fault.
    """
    document = _toml(path)
    problems = [
        (name, describe(document[name]), "is not a table of a rules file" + (did_you_mean(name, _TABLES) or _WRITE))
        for name in document
        if name not in _TABLES
    ]
    shared, tables = document.get("defaults", {}), document.get("rules", [])
    if not isinstance(shared, Mapping):
        problems.append(("defaults", describe(shared), "must be a table: [defaults]"))
    elif "container_group_id" in shared:
        problems.append(("defaults.container_group_id", "a value", "belongs into each of [[rules]]"))
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        problems.append(("rules", describe(tables), "must be tables: [[rules]], one for each container group"))
    if problems:
        raise RuleError(problems, str(path))
    return _rules(path, shared, tables)


def read_single_rule(path: Path, group: str) -> ScalingRule:
    """The one rule of a file: a table ``[[rules]]``, or the fields alone, without a container group if need be.

    Args:
        path: The file.
        group: The container group where the file names none.

    Raises:
        RuleError: Names every fault; or the file holds several rules.
    """
    document = _toml(path)
    if not {*_TABLES} & {*document}:
        return _rule(path, "", {"container_group_id": group, **document})
    found = read_rules(path)
    if len(found) != 1:
        raise RuleError([("rules", f"{len(found)} rules", "must be one rule: give each a file of its own")], str(path))
    return found[0].rule


_WRITE = "; write [[rules]] above the fields of each rule"


def _rules(path: Path, shared: Mapping[str, Any], tables: list[Mapping[str, Any]]) -> list[FileRule]:
    problems: list[Problem] = []
    found: list[FileRule] = []
    for position, table in enumerate(tables):
        fields = {**shared, **table}
        try:
            found.append(FileRule(_rule(path, f"rules[{position}].", fields), frozenset(fields)))
        except RuleError as error:
            problems += error.problems
    counts = Counter(one.rule.container_group_id for one in found)
    problems += [
        ("rules", f"{count} rules for {group}", "must be one for each container group")
        for group, count in counts.items()
        if count > 1
    ]
    if problems:
        raise RuleError(problems, str(path))
    return found


def _rule(path: Path, place: str, fields: Mapping[str, Any]) -> ScalingRule:
    try:
        return parse_rule(fields)
    except RuleError as error:
        problems = [(place + field, value, rule) for field, value, rule in error.problems]
    raise RuleError(problems, str(path))


def _changes(one: FileRule) -> dict[str, Any]:
    keep = _KEPT - one.given
    return {name: value for name, value in one.rule.model_dump().items() if name not in keep}


def _toml(path: Path) -> dict[str, Any]:
    """The file's content; the parser's error is not chained, its place is told."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RuleError([("file", "more", f"must have at most {MAX_FILE_BYTES} bytes")], str(path))
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fault = ("file", error.strerror or type(error).__name__, "must be a file that can be read")
    except UnicodeDecodeError as error:
        fault = ("file", f"byte {error.start}", "must be TOML in UTF-8")
    except tomllib.TOMLDecodeError as error:
        fault = ("file", str(error), "must be TOML; values that are text stand in quotes")
    raise RuleError([fault], str(path))
