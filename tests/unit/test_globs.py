"""Globs of markers: what they match, what is refused, and that none can hang."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kelpie_celery.errors import DefinitionError
from kelpie_celery.globs import compile_glob, marker_of


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("DONE", ["DONE"], ["a/DONE", "DONE2", "xDONE", "done"]),
        ("*", ["a", ".hidden", "a\nb", "a b", "\udcff"], ["a/b"]),
        ("step-*/ok-?", ["step-1/ok-1", "step-/ok-é"], ["step-1/x/ok-1", "step-1/ok-", "step-1/ok-10"]),
        ("**/DONE", ["DONE", "a/DONE", "a/b/DONE"], ["a/DONE/x", "xDONE", "a/xDONE"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["az", "b/a/z"]),
        ("a/**", ["a/x", "a/x/y"], ["a", "b/x"]),
        ("**", ["x", "x/y"], []),
        ("[a-c]x", ["ax", "cx"], ["dx", "[a-c]x"]),
        ("[!a-c]x", ["dx", "éx"], ["ax", "/x", "x"]),
        ("[+-9]", ["+", "0", "-"], ["/"]),
        ("[]x]", ["]", "x"], ["[", "[]x]"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("[*]", ["*"], ["a"]),
        ("[[]", ["["], ["]"]),
        ("[^a]", ["^", "a"], ["b"]),
        ("a.b", ["a.b"], ["axb"]),
        (r"\d(a|b)+$", [r"\d(a|b)+$"], ["1a"]),
        ("schritt-ü", ["schritt-ü"], ["schritt-u"]),
    ],
)
def test_a_glob_matches_whole_paths_segment_by_segment(glob: str, matching: list[str], others: list[str]) -> None:
    compiled = compile_glob(glob)

    assert [path for path in matching if not compiled.matches(path)] == []
    assert [path for path in others if compiled.matches(path)] == []


@pytest.mark.parametrize(
    ("glob", "rule"),
    [
        ("", "must not be empty"),
        ("x" * 201, "must have at most 200 characters, not 201"),
        ("/DONE", "must not begin with '/': it is relative to local_path"),
        ("../DONE", "must not contain '..' as a segment"),
        ("a/../b", "must not contain '..' as a segment"),
        ("./DONE", "must not contain an empty or '.' segment: no file's path has one"),
        ("a//b", "must not contain an empty or '.' segment: no file's path has one"),
        ("a/", "must not contain an empty or '.' segment: no file's path has one"),
        ("a**", "must have '**' as a whole segment only, as in '**/DONE'; '*' is any run of characters"),
        ("***", "must have '**' as a whole segment only, as in '**/DONE'; '*' is any run of characters"),
        ("[ab", "has a '[' without its ']'; write '[[]' for a plain one"),
        ("[a/b]", "has a '[' without its ']'; write '[[]' for a plain one"),
        ("[z-a]", "has the range 'z-a', which is empty; its ends are swapped"),
        ("a\0", "must not contain control characters or lone surrogates"),
        ("a\ud800", "must not contain control characters or lone surrogates"),
    ],
)
def test_what_is_no_glob_or_could_match_no_file_is_refused_with_its_rule(glob: str, rule: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        compile_glob(glob)

    assert caught.value.problems == [("glob", repr(glob[:80]), rule)]


def test_the_glob_of_a_marker_is_what_follows_the_colon_and_the_other_modes_have_none() -> None:
    marker = marker_of("marker:**/DONE:1")

    assert marker is not None
    assert marker.source == "**/DONE:1"
    assert marker.matches("a/DONE:1")
    assert (marker_of("quiet"), marker_of("report")) == (None, None)


@pytest.mark.parametrize("glob", ["*a" * 100, "**/" * 66 + "x", "?" * 200, "[!a]*" * 40])
def test_no_glob_can_hang(glob: str) -> None:
    began = time.process_time()
    compile_glob(glob).matches("a" * 1000)
    compile_glob(glob).matches("a/" * 2000)

    assert time.process_time() - began < 1


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab*?[]!-/.\\^"), max_size=12), st.text(max_size=12))
def test_any_text_is_a_glob_or_refused_and_any_path_can_be_asked_about(glob: str, path: str) -> None:
    try:
        compiled = compile_glob(glob)
    except DefinitionError:
        return
    assert compiled.matches(path) in {True, False}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="/*?[", min_codepoint=32), min_size=1), min_size=1))
def test_a_path_without_wildcards_matches_itself_alone(segments: list[str]) -> None:
    path = "/".join(segments)
    try:
        compiled = compile_glob(path)
    except DefinitionError:
        return
    assert compiled.matches(path)
    assert not compiled.matches(path + "x")
