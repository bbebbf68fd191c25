"""Whatever answers in the metadata service's place: an answer or an error of ours, within bounds, and no job waits."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kelpie_celery.clock import ManualClock
from kelpie_celery.errors import ImdsAbsent, ImdsError
from kelpie_celery.running import RunningJobs
from kelpie_worker import imds as imds_module
from kelpie_worker.imds import KNOWN_ABSENT_S, Imds
from kelpie_worker.standing import Standing
from tests.harness.waiting import eventually

LINES = b"HTTP/1.1 %d Whatever\r\n"


class Anything:
    """Answers each connection with these bytes, again and again if told so, and closes it unless told to keep it."""

    def __init__(self) -> None:
        self.answer, self.endless, self.drip_s, self.keeps = b"", False, 0.0, False
        self.sent_bytes = self.met = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._server.accept()
                self.met += 1
                threading.Thread(target=self._serve, args=(one,), daemon=True).start()

    def _serve(self, one: socket.socket) -> None:
        one.settimeout(5)
        with contextlib.suppress(OSError):
            one.recv(65536)
            self._send(one)
            if self.keeps:
                self._open.append(one)
                return
            one.shutdown(socket.SHUT_WR)  # not close: what is unread would be answered with a reset
            one.settimeout(0.5)
            while one.recv(65536):
                pass
        one.close()

    def _send(self, one: socket.socket) -> None:
        for byte in self.answer if self.drip_s else ():
            one.sendall(bytes([byte]))
            if self._ended.wait(self.drip_s):
                return
        one.sendall(b"" if self.drip_s else self.answer)
        while self.endless and not self._ended.is_set():
            one.sendall(b"1" * 65536)
            self.sent_bytes += 65536

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        # Ends the thread, which else may go on with the next socket of the same number.
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for one in self._open:
            one.close()


@pytest.fixture
def anything() -> Iterator[Anything]:
    with Anything() as server:
        yield server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds(monkeypatch, timeout_s=5.0, whole_s=5.0)


def bounds(monkeypatch: pytest.MonkeyPatch, *, timeout_s: float, whole_s: float) -> None:
    """How long a client waits for the next bytes, and for a whole answer."""
    monkeypatch.setattr(imds_module, "_TIMEOUT_S", (timeout_s, timeout_s))
    monkeypatch.setattr(imds_module, "WHOLE_S", whole_s)


def ask(url: str, clock: ManualClock | None = None) -> int | Exception | None:
    """All calls, each on a client of its own; the cost, or the last error."""
    outcome: int | Exception | None = None
    for call in ("recreate", "reallocate", "set_deletion_cost", "deletion_cost"):
        imds = Imds(url, clock or ManualClock())
        try:
            arguments: tuple[Any, ...] = {"reallocate": ("why",), "set_deletion_cost": (1,)}.get(call, ())
            outcome = getattr(imds, call)(*arguments)
        except ImdsError as e:
            outcome = e
        finally:
            imds.close()
    return outcome


HEADERS = st.lists(
    st.sampled_from([
        b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 99999999999", b"Content-Length: x",
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Content-Encoding: gzip", b"Content-Encoding: br",
        b"Content-Type: application/json", b"Content-Type: \xff", b"Location: http://\xff:99999/", b"Location: /again",
        b"Set-Cookie: a=\x00", b":", b"no colon", b"X: " + b"y" * 70_000, b"Connection: close",
    ]) | st.binary(max_size=20),
    max_size=5,
)  # fmt: skip
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("deletion_cost") | st.text(max_size=3), inner),
    max_leaves=5,
)
BODIES = (
    st.binary(max_size=50)
    | JSONS.map(lambda value: json.dumps(value).encode())
    | st.sampled_from([
        b"[" * 50_000, b"9" * 5_000, gzip.compress(b"0" * 1_000_000), b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffff\r\nx",
        b'{"deletion_cost": 1e999}', b'{"deletion_cost": true}',
    ])
)  # fmt: skip
ANSWERS = st.binary(max_size=100) | st.builds(
    lambda status, headers, body: LINES % status + b"".join(h + b"\r\n" for h in headers) + b"\r\n" + body,
    st.sampled_from([0, 100, 101, 200, 204, 206, 301, 302, 307, 400, 401, 403, 404, 429, 500, 503, 999, 99999]),
    HEADERS, BODIES,
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANSWERS)
def test_any_bytes_are_an_answer_or_an_error_of_ours(anything: Anything, answer: bytes) -> None:
    anything.answer = answer
    began = time.monotonic()
    outcome = ask(anything.url)
    assert isinstance(outcome, ImdsError) or type(outcome) is int
    assert time.monotonic() - began < 4 * 5 + 5
    if isinstance(outcome, Exception):
        assert "\n" not in str(outcome)


def test_an_endless_body_is_read_to_its_bound_only(anything: Anything) -> None:
    anything.answer, anything.endless = LINES % 200 + b"\r\n", True
    with pytest.raises(ImdsError, match="no JSON"):
        Imds(anything.url, ManualClock()).deletion_cost()
    # What the two sockets hold is sent as well.
    assert anything.sent_bytes < 20 << 20


@pytest.mark.parametrize("answer", [LINES % 200 + b"\r\n" + b" " * 1000, LINES % 200 + b"X: " + b"y" * 1000])
def test_an_answer_byte_by_byte_is_not_waited_for_for_ever(
    anything: Anything, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the body, and in the headers: each byte comes before the time-out, and the end never."""
    bounds(monkeypatch, timeout_s=5.0, whole_s=1.5)
    anything.answer, anything.drip_s = answer, 0.05
    imds = Imds(anything.url, ManualClock())
    began = time.monotonic()
    with pytest.raises(ImdsError) as caught:
        imds.deletion_cost()
    assert not isinstance(caught.value, ImdsAbsent)
    with pytest.raises(ImdsError, match="earlier call"):
        imds.deletion_cost()
    assert time.monotonic() - began < 1.5 + 5
    assert anything.met == 1


def test_a_redirect_is_not_followed_wherever_it_leads(anything: Anything) -> None:
    with Anything() as elsewhere:
        elsewhere.answer = LINES % 200 + b"\r\n" + b'{"deletion_cost": 1}'
        for status in (301, 302, 303, 307, 308):
            anything.answer = LINES % status + b"Location: " + elsewhere.url.encode() + b"\r\n\r\n"
            assert isinstance(ask(anything.url), ImdsError)
        assert elsewhere.met == 0


def test_a_service_that_does_not_listen_for_a_moment_is_asked_again_soon(anything: Anything) -> None:
    anything.answer = LINES % 204 + b"Content-Length: 0\r\n\r\n"
    clock = ManualClock()
    imds = Imds(anything.url, clock)
    imds.set_deletion_cost(1)
    anything.answer = b""
    with pytest.raises(ImdsAbsent):
        imds.set_deletion_cost(2)
    assert imds.absent
    anything.answer = LINES % 204 + b"Content-Length: 0\r\n\r\n"
    clock.advance(KNOWN_ABSENT_S + 1)
    imds.set_deletion_cost(2)


def test_no_job_and_no_pulse_waits_for_a_service_that_does_not_answer(
    anything: Anything, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds(monkeypatch, timeout_s=30.0, whole_s=30.0)
    anything.keeps = True  # it takes the request, and says nothing
    app: Any = SimpleNamespace(
        running=RunningJobs(), ledger=None,
        settings=SimpleNamespace(
            metadata_uri=anything.url, machine_id="m", instance_id=None, max_job_failures=3, max_retries=3,
            max_time_with_no_work_s=0.0, recreate_between_jobs=True,
        ),
    )  # fmt: skip
    standing = Standing(app)
    began = time.monotonic()
    for _ in range(50):
        standing.refresh()
        standing.tend("g", draining=False, streak=0)
        standing.job_over()
    took_s = time.monotonic() - began
    assert took_s < 10, "a hundred calls, none of which waits for half a minute"
    eventually("the service was asked", lambda: anything.met, 10)
