"""What an attempt's steps share shows no secret where it is printed."""

from __future__ import annotations

from typing import Any, cast

from kelpie_worker.attempt_context import AttemptContext, Runtime


def test_neither_the_environment_nor_the_definition_shows_in_a_repr() -> None:
    secret = "planted-6f1d"
    nothing = cast("Any", None)
    runtime = Runtime(nothing, nothing, nothing, nothing, {"TOKEN": secret}, nothing)
    held = cast("Any", {"environment": {"TOKEN": secret}})
    context = AttemptContext(runtime, held, nothing, held, nothing, nothing, nothing, nothing, nothing, 0.0)
    assert secret not in repr(runtime)
    assert secret not in repr(context)
