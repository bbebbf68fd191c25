"""Patterns mean what they mean in ECMAScript, and cannot hang.

The expectations of the tables are what Node 20 answers to ``new RegExp(pattern).test(text)``.
"""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kelpie_celery.errors import DefinitionError
from kelpie_celery.patterns import MAX_PATTERN_CHARS, compile_pattern


def refusal(pattern: str) -> str:
    with pytest.raises(DefinitionError) as caught:
        compile_pattern(pattern)
    ((field, _, rule),) = caught.value.problems
    assert field == "pattern"
    return rule


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("ckpt", "runs/step-1.ckpt.tmp", True),  # searched for, not anchored
        (r"\.ckpt$", "a.ckpt", True),
        (r"\.ckpt$", "a.ckpt\n", False),  # $ is the very end
        (r"^a", "ba", False),
        ("^", "", True),
        (r"^.$", "\r", False),
        (r"^.$", "\u2028", False),
        (r"^.$", "é", True),
        (r"^\s$", "\u00a0", True),
        (r"^\s$", "\ufeff", True),
        (r"^\s$", "\v", True),
        (r"^\S$", "\u00a0", False),
        (r"^[\S]$", "\u2003", False),
        (r"^[^\S]$", "\u2003", True),
        (r"^\d$", "\u0663", False),  # digits are ASCII
        (r"^\w$", "é", False),
        (r"[]", "a", False),
        (r"[^]", "\n", True),
        (r"[[:alpha:]]", "a]", True),  # a class of [ : a l p h, then ]
        (r"[[:alpha:]]", "a", False),
        (r"^[\b]$", "\b", True),
        (r"^[a-c-e]$", "-", True),
        (r"^[\s-a]$", "-", True),
        (r"^[\s-a]$", "Z", False),
        (r"^[a-\d]$", "-", True),
        (r"^[--a]$", "A", True),
        (r"^[^-]$", "-", False),
        (r"a{,2}", "aa", False),  # no quantifier: itself
        (r"a{,2}", "a{,2}", True),
        (r"^{$", "{", True),
        (r"^}]$", "}]", True),
        (r"^a{2}$", "aa", True),
        (r"^a{1,2}?$", "aa", True),
        (r"\u0061", "a", True),
        (r"\x61", "a", True),
        (r"^\cJ$", "\n", True),
        (r"^\0$", "\0", True),
        (r"^\ud83d\ude00$", "😀", True),
        (r"(?<year>\d{4})", "2024", True),
        (r"a\/b\-c\.d\@", "a/b-c.d@", True),
        (r"\bin\b", "in/a", True),
        (r"a|^b$", "cb", False),
        # look-around at the two fixed places
        (r"^(?!.*\.tmp$)", "a.tmp", False),
        (r"^(?!.*\.tmp$)", "a.tmp.gz", True),
        (r"^(?!\.)(?!.*/\.).*\.pt$", "a/b.pt", True),
        (r"^(?!\.)(?!.*/\.).*\.pt$", "a/.b.pt", False),
        (r"^(?=.*a)(?=.*b)", "b-a", True),
        (r"^(?=.*a)(?=.*b)", "b", False),
        (r"(?<!\.tmp)$", "a.tmp", False),
        (r"(?<!\.tmp)$", "a.pt", True),
        (r"x(?<=ax)(?<!bax)$", "ax", True),
        (r"x(?<=ax)(?<!bax)$", "bax", False),
        (r"^(?!a|b)c|d(?<!ed)$", "cd", True),
        (r"^(?!a|b)c|d(?<!ed)$", "aed", False),
        (r"^(?!)", "a", False),
        (r"(?<!(?:\.tmp|~))$", "a~", False),
    ],
)
def test_a_pattern_means_what_it_means_in_ecmascript(pattern: str, text: str, found: bool) -> None:
    assert compile_pattern(pattern).matches(text) is found


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", "is not a regular expression"),
        (")", "is not a regular expression"),
        ("a)|(b", "is not a regular expression"),
        ("^(?!a)b)|(c", "is not a regular expression"),
        ("^(?!a", "is not a regular expression"),
        ("[a", "is not a regular expression"),
        ("*a", "is not a regular expression"),
        ("a**", "is not a regular expression"),
        ("a{2,1}", "is not a regular expression"),
        ("[b-a]", "range in the wrong order"),
        ("\\", "ends in a single"),
        (r"(a)\1", "back-reference"),
        (r"(?<n>a)\k<n>", "back-reference"),
        (r"\.(?!tmp)", "look-around in two places only"),
        (r"(?!tmp)", "look-around in two places only"),
        (r"(?<=a)b", "look-around in two places only"),
        (r"^(?!(?=a)b)", "look-around in two places only"),
        (r"(^(?!a))", "look-around in two places only"),
        (r"^((?!tmp).)*$", "look-around in two places only"),
        (r"^(?!a)*b", "must not repeat"),
        (r"(?P<n>a)", "a group that ECMAScript does not know"),
        (r"(?i)a", "a group that ECMAScript does not know"),
        (r"(?>a)", "a group that ECMAScript does not know"),
        (r"\Aa", r"\A, which has no meaning"),
        (r"\p{L}", r"\p, which has no meaning"),
        (r"\x4", r"\x, which has no meaning"),
        (r"\ud83d", "code point that no text can contain"),
        ("\ud83d", "code point that no text can contain"),
        (r"\u{110000}", "code point that no text can contain"),
        ("a{1001}", "is not a regular expression"),
        ("(?:(?:a{100}){100}){100}", "is not a regular expression"),
        ("(?:.?){999}", "is too large"),
        ("a" * (MAX_PATTERN_CHARS + 1), "must have at most 1000 characters"),
    ],
)
def test_what_cannot_be_matched_is_refused_with_a_reason(pattern: str, words: str) -> None:
    assert words in refusal(pattern)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|aa)+$", "(.*a){12}$", "(x+x+)+y", "^(?!(a+)+$)", r"(?:[ab]*a[ab]{20}){5}c"]
)
def test_patterns_that_hang_a_backtracking_engine_answer_at_once(pattern: str) -> None:
    compiled = compile_pattern(pattern)
    started = time.perf_counter()

    compiled.matches("a" * 1023 + "!")

    assert time.perf_counter() - started < 1


def test_a_file_name_that_is_not_utf8_is_matched_as_node_showed_it() -> None:
    name = b"bad-\xff.ckpt".decode(errors="surrogateescape")

    assert compile_pattern(r"^bad-.\.ckpt$").matches(name)


def test_the_error_does_not_carry_a_long_pattern() -> None:
    with pytest.raises(DefinitionError) as caught:
        compile_pattern("(" * 900)

    assert len(str(caught.value)) < 400


atoms = st.sampled_from(
    ["a", "b", ".", r"\.", r"\d", r"\w", "[ab]", "[^ab]", "[a-c]", "x", "/", "(?:a|b)", "(a)", "^", "$", "|"]
)
pieces = st.tuples(atoms, st.sampled_from(["", "*", "+", "?", "{2}"])).map(
    lambda pair: pair[0] if pair[0] in "^$|" else "".join(pair)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(pieces, max_size=6).map("".join), st.text(alphabet="abcx/.1", max_size=8))
def test_plain_patterns_agree_with_another_engine(pattern: str, text: str) -> None:
    expected = re.search(pattern.replace("$", r"\Z"), text, re.ASCII) is not None

    assert compile_pattern(pattern).matches(text) is expected


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab^$|()[]{}*+?.\\-,<!=:d1knuxP\ud83d\0é", max_size=12), st.text(max_size=12))
def test_any_text_is_a_pattern_or_refused_and_any_text_can_be_matched(pattern: str, text: str) -> None:
    try:
        compiled = compile_pattern(pattern)
    except DefinitionError:
        return
    assert compiled.matches(text) in {True, False}
