"""What can be checked of a page without running it; each check gives its faults as ``page:line: what``.

Limits: links to other hosts are not followed.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TypeGuard

import click

from kelpie_celery import Kelpie, settings
from kelpie_celery.cli import COMMANDS, kelpie
from kelpie_celery.definition import parse_definition
from kelpie_celery.errors import DefinitionError, RuleError
from kelpie_celery.scaling.rules_file import read_rules
from kelpie_worker.environment import JobFiles, job_environment
from tests.harness.pages import LANGUAGES, MARKS, ROOT, Block, Page

LONG_RUNNING = {"up", "salad-sim"}
KELPIES_OWN = {"KELPIE_API_URL", "KELPIE_API_KEY"}  # Kelpie's, which docs/settings.md says are ignored here
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(?P<mark>\w+)\1.*\n(?P<body>(?:.*\n)*?)\s*(?P=mark)\n")
_QUOTED_OR_COMMENT = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*"|(?:^|(?<=\s))#[^\n]*""", re.MULTILINE)
_ENDS = set("();<>|&\n")
_BEFORE = {"do", "then", "else", "exec", "time", "if", "while", "until", "!"}
_VARIABLE = re.compile(r"\bKELPIE_[A-Z][A-Z0-9_]*")
_PLACES = ("docs", "tests", "kelpie_celery", "workers", "scaler", "examples", "containers", "benchmarks")


def marks(page: Page) -> list[str]:
    """Blocks that do not say what they are, or say it in words that nobody knows."""
    return [f"{block.place}: {fault}" for block in page.blocks for fault in _marks_of(block)]


def _marks_of(block: Block) -> Iterator[str]:
    if not block.language:
        if re.search(r"^(\S*/)?kelpie [a-z]", block.text, re.MULTILINE):
            yield "has no language, but commands: is it to be run?"
        return
    if block.language not in LANGUAGES:
        yield f"is in {block.language!r}; the languages are {', '.join(sorted(LANGUAGES))}"
    for mark in sorted(block.marks - MARKS.get(block.language, set())):
        yield f"has the mark {mark!r}, which {block.language!r} does not have"
    if block.tested_by and not (ROOT / block.tested_by).exists():
        yield f"says that {block.tested_by} runs it, which is not there"
    if block.language == "sh" and block.is_run and "terminal" not in block.marks and starts_a_server(block):
        yield "starts what runs until Ctrl-C: give it a block of its own, marked `sh terminal`"


def starts_a_server(block: Block) -> bool:
    """Whether a block of shell starts what runs until Ctrl-C."""
    return any(words[0] in LONG_RUNNING for words in commands(block.text))


def examples(page: Page, directory: Path) -> list[str]:
    """Job definitions and rules that would be refused.

    Args:
        page: Whose.
        directory: An empty one, for files of rules.
    """
    found = []
    for block in page.blocks:
        if block.language == "json":
            found += [f"{block.place}: {fault}" for fault in _json_faults(block.text, "shown" not in block.marks)]
        if block.language == "toml" and "shown" not in block.marks:
            file = directory / "rules.toml"
            file.write_text(block.text)
            try:
                read_rules(file)
            except RuleError as error:
                found.append(f"{block.place}: {error}")
        for heredoc in _HEREDOC.finditer(block.text) if block.language == "sh" else ():
            if heredoc["mark"] == "JSON" and "$" not in heredoc["body"]:
                found += [f"{block.place}: {fault}" for fault in _json_faults(heredoc["body"], True)]
    return found


def _json_faults(text: str, is_definition: bool) -> Iterator[str]:
    """A part of a definition will do: command and group are taken as given where they are left out."""
    try:
        value = json.loads(text)
        if is_definition:
            parse_definition({"command": "x", "container_group_id": "g"} | value)
    except (ValueError, TypeError, DefinitionError) as error:
        yield str(error)


def links(page: Page) -> list[str]:
    """Links to files and headings that are not there."""
    found = []
    for link in page.links:
        target, _, anchor = link.text.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.path.parent / target).resolve() if target else page.path
        if not path.exists():
            found.append(f"{page.name}:{link.line}: there is no {target}")
        elif anchor and (path.suffix != ".md" or anchor not in Page(path, path.parent).anchors):
            found.append(f"{page.name}:{link.line}: {target or page.name} has no heading #{anchor}")
    return found


def paths(page: Page) -> list[str]:
    """Files of the repository that are named in backticks and are not there; ``*`` stands for anything."""
    place = re.compile(rf"({'|'.join(_PLACES)})/[\w./*-]+")
    named = [code for code in page.codes if place.fullmatch(code.text)]
    return [
        f"{page.name}:{code.line}: there is no {code.text}"
        for code in named
        if not any(ROOT.glob(code.text.rstrip("/")))
    ]


def variables(page: Page) -> list[str]:
    """``KELPIE_...`` names that nothing reads and no job is given."""
    known = known_variables()
    return [
        f"{page.name}:{number}: nothing knows {name}"
        for number, line in enumerate(page.text.splitlines(), 1)
        for name in _VARIABLE.findall(line)
        if name not in known and not (name.endswith("_") or f"{name}..." in line)
    ]


def known_variables() -> set[str]:
    """Settings, what a job is given, what the local stack and compose read."""
    token = SimpleNamespace(job_id="", attempt=1)
    given = job_environment(
        settings.load_settings({"KELPIE_REDIS_URL": "redis://127.0.0.1:6379/0"}), {},
        parse_definition({"command": "x", "container_group_id": "g", "sync": {}}),
        SimpleNamespace(token=token), JobFiles(Path("/")), {}, None,  # type: ignore[arg-type]  # no claim is needed
    )  # fmt: skip
    of_settings = {name for names in settings.variables().values() for name in names}
    compose = set(_VARIABLE.findall((ROOT / "docker-compose.yml").read_text()))
    local = {"KELPIE_REDIS_SERVER", "KELPIE_WEED"}
    return of_settings | set(given) | compose | local | KELPIES_OWN


def command_lines(page: Page) -> list[str]:
    """Commands and options of ``kelpie`` that there are not."""
    found = []
    for block in page.blocks:
        if block.language == "sh":
            found += [f"{block.place}: {fault}" for words in commands(block.text) for fault in _command_faults(words)]
    for code in page.codes:
        text = code.text.replace("\\|", "|")
        if text.startswith("kelpie ") and re.match(r"kelpie [a-z-]", text):
            words = text.split()[1:]
            found += [f"{page.name}:{code.line}: {fault}" for fault in _command_faults(words)]
    return found


def commands(script: str) -> Iterator[list[str]]:
    """The words behind ``kelpie`` of each call of it in a shell script.

    Raises:
        ValueError: A quote is not closed.
    """
    text = _HEREDOC.sub("\n", script).replace("\\\n", " ")
    text = _QUOTED_OR_COMMENT.sub(lambda found: "" if found[0].startswith("#") else found[0], text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.commenters = " \t\r", ""
    words: list[str] = []
    for token in [*lexer, "\n"]:
        if set(token) <= _ENDS:
            yield from _calls(words)
            words = []
        else:
            words.append(token)


def _calls(words: list[str]) -> Iterator[list[str]]:
    while words and (words[0] in _BEFORE or re.match(r"[A-Z_]+=", words[0])):
        words = words[1:]
    for position, word in enumerate(words):
        rest = words[position + 1 :]
        # Of another program's arguments only what is clearly meant: `docker compose exec control kelpie list`.
        if word.rpartition("/")[2] == "kelpie" and rest and (position == 0 or rest[0] in COMMANDS):
            yield rest
            return


def _command_faults(words: list[str]) -> Iterator[str]:
    command: click.Command = kelpie
    path = "kelpie"
    for word in words:
        if word == "--":
            return
        if word.startswith("-") and word != "-":
            name = word.partition("=")[0].rstrip(",.;:")
            if name not in options(command):
                yield f"'{path}' has no option {name}"
        elif isinstance(command, click.Group):
            names = word.split("|")
            if not re.fullmatch(r"[a-z-]+(\|[a-z-]+)*", word):
                return  # a placeholder
            found = [command.get_command(click.Context(command), name) for name in names]
            for name, one in zip(names, found, strict=True):
                if one is None:
                    yield f"'{path}' has no command {name!r}"
            if found[0] is None:
                return
            command, path = found[0], f"{path} {names[0]}"


def options(command: click.Command) -> set[str]:
    """Every option of a command."""
    own = [one for param in command.params if isinstance(param, click.Option) for one in param.opts]
    return {*own, "--help", "-h"}


def programs(page: Page) -> list[str]:
    """Python that does not parse, or takes from kelpie_celery what is not there."""
    found = []
    for block in page.blocks:
        if block.language == "python":
            found += [f"{block.place}: {fault}" for fault in _program_faults(block.text)]
    return found


def _program_faults(text: str) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield f"line {error.lineno} of it: {error.msg}"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kelpie_"):
            module = import_module(node.module or "")
            yield from (f"{node.module} has no {one.name}" for one in node.names if not hasattr(module, one.name))
        if _is_of_the_client(node) and not hasattr(Kelpie, node.attr):
            yield f"Kelpie has no {node.attr}"


def _is_of_the_client(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """Whether it is ``kelpie.something``: the pages call a client so."""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "kelpie"
