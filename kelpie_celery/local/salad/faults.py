"""Faults to order: what the API (or IMDS) answers instead of, or on top of, what it would.

As text, for ``kelpie salad-sim --fault``::

    KIND[*TIMES][@OPERATION][,retry-after=S][,delay=S][,rate=R][,service=imds]

KIND is a status (``429``, ``500``, any other from 400 on), or one of

- ``html``: 502 with a page instead of JSON, as a proxy in front of the API gives;
- ``quota``: 403, the replicas are used up;
- ``slow``: carried out, but answered ``delay`` seconds later (30);
- ``drop``: the connection ends without an answer, and nothing was carried out;
- ``lost``: carried out, and the connection ends without an answer.

TIMES is how often (1; 0: for good), OPERATION an id of the specification, also with ``*`` (all by default), RATE the
chance of each exchange that it fits (1). Limits: the first fault that fits is taken, one an exchange.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, Self

from kelpie_celery._suggest import did_you_mean
from kelpie_celery.local.errors import LocalStackError

KINDS: Final = ("html", "quota", "slow", "drop", "lost")
SERVICES: Final = ("api", "imds")
FOR_GOOD: Final = 0
_TEXT: Final = re.compile(r"(?P<kind>\w+)(\*(?P<times>\d+))?(@(?P<operation>[\w*?]+))?(?P<more>(,[\w-]+=[\w.]+)*)")
_OPTIONS: Final = {"retry-after": "retry_after_s", "delay": "delay_s", "rate": "rate", "service": "service"}


@dataclass(slots=True)
class Fault:
    """One fault; see the module.

    Attributes:
        kind: A status from 400 on, as text, or one of ``KINDS``.
        times: How often; 0 for good.
        operation: Which operations, by the specification's ids; ``*`` and ``?`` stand for any letters.
        retry_after_s: Value of the header ``Retry-After``, whole seconds; ``None`` for none.
        delay_s: How late a slow answer is, seconds.
        rate: The chance of each exchange that it fits, above 0 to 1.
        service: ``api`` or ``imds``.
        done: How often it has struck.
    """

    kind: str
    times: int = 1
    operation: str = "*"
    retry_after_s: int | None = None
    delay_s: float = 30.0
    rate: float = 1.0
    service: str = "api"
    done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not (self.kind in KINDS or re.fullmatch(r"[45]\d\d", self.kind)):
            hint = did_you_mean(self.kind, KINDS)
            raise LocalStackError(f"no fault {self.kind!r}{hint}; there are 400 to 599, {', '.join(KINDS)}")
        if self.service not in SERVICES:
            raise LocalStackError(f"no service {self.service!r}; a fault is of 'api' or 'imds'")
        if not 0.0 < self.rate <= 1.0:
            raise LocalStackError(f"a rate of {self.rate:g} is not possible; choose above 0, up to 1")
        if not isinstance(self.operation, str):
            raise LocalStackError(f"fault {self.kind!r}: an operation is named by a text, such as 'start_*'")
        if self.times < 0 or self.delay_s < 0 or (self.retry_after_s or 0) < 0:
            raise LocalStackError(f"fault {self.kind!r}: times, delay and retry-after cannot be negative")

    @classmethod
    def parse(cls, text: str) -> Self:
        """A fault from its text.

        Raises:
            LocalStackError: The text is not understood.
        """
        found = _TEXT.fullmatch(text.strip())
        if found is None:
            raise LocalStackError(f"fault {text!r} is not understood; write KIND[*TIMES][@OPERATION][,OPTION=VALUE]...")
        fault = cls(found["kind"], int(found["times"] or 1), found["operation"] or "*")
        options = dict(one.split("=", 1) for one in found["more"].split(",") if one)
        return cls(fault.kind, fault.times, fault.operation, **_options(text, options))

    @property
    def spent(self) -> bool:
        """Whether it strikes no more."""
        return self.times != FOR_GOOD and self.done >= self.times

    def fits(self, service: str, operation: str) -> bool:
        """Whether it may strike here."""
        return not self.spent and service == self.service and fnmatchcase(operation, self.operation)


def _options(text: str, options: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _OPTIONS:
            raise LocalStackError(f"fault {text!r}: no option {name!r}{did_you_mean(name, _OPTIONS)}")
        try:
            found[_OPTIONS[name]] = _option(name, value)
        except ValueError:
            raise LocalStackError(f"fault {text!r}: {name} needs a number") from None
    return found


def _option(name: str, value: str) -> int | float | str:
    match name:
        case "service":
            return value
        case "retry-after":
            return int(value)
    return float(value)


class Faults:
    """The faults that are ordered; for any thread."""

    def __init__(self, ordered: Iterable[Fault] = (), seed: int | None = None) -> None:
        self._ordered = list(ordered)
        self._lock = threading.Lock()
        self._rng = random.Random(seed)  # noqa: S311 -- chance that can be repeated, nothing secret

    def order(self, fault: Fault) -> None:
        """One more."""
        with self._lock:
            self._ordered.append(fault)

    def clear(self) -> None:
        """None any more."""
        with self._lock:
            self._ordered.clear()

    def strike(self, service: str, operation: str) -> Fault | None:
        """The fault of this exchange; it counts as done."""
        with self._lock:
            self._ordered = [fault for fault in self._ordered if not fault.spent]
            for fault in self._ordered:
                if fault.fits(service, operation) and self._rng.random() < fault.rate:
                    fault.done += 1
                    return fault
        return None
