"""Many small objects, one after the other: what a transfer thread does to bring them down at the least cost.

All requests are signed at once. A few of them are under way at a time, each over a connection of its own, and as soon
as a body is there the next request follows over its connection: the storage works while this thread puts the body to
use, which then seldom has to wait, nor to wrangle with other threads about the interpreter. Answers are taken in the
order of the requests. Each has to be the one expected, by its length and its ETag; anything else ends the series.

Limits: an object and the head of its answer fit into the thread's buffer. An object that is slow to come holds up those
behind it. Nothing is tried twice; why a series ended is found out by whoever asks for that object by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from http import HTTPStatus
from http.client import HTTPException

from kelpie_celery.errors import StorageError
from kelpie_worker.sync.answers import Answer, read_head
from kelpie_worker.sync.batches import TINY_AT_ONCE, TINY_BYTES, NotPlain
from kelpie_worker.sync.connections import Connection, Connections, Grip, ProxyRefused, Route, Stopped, route
from kelpie_worker.sync.request import Request, head_of
from kelpie_worker.sync.s3_errors import from_answer, from_exception
from kelpie_worker.sync.signing import Presigner, StorageClock
from kelpie_worker.sync.trusted_sending import UNFENCED_S

_BODY = frozenset({HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT})


class Series:
    """One series, in a transfer thread; see the module.

    Args:
        wanted: GETs to one bucket, each with the ETag that its answer is to have.
        connections: Where to get a connection from.
        presigner: Signs them.
        clock: Learns the storage's time.
        grip: Of the thread, which is busy.
        arrived: Called with the number of bytes of a body as they arrive.
    """

    def __init__(
        self, wanted: Sequence[tuple[Request, str]], connections: Connections, presigner: Presigner,
        clock: StorageClock, grip: Grip, arrived: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._wanted, self._connections, self._presigner = wanted, connections, presigner
        self._clock, self._grip, self._arrived = clock, grip, arrived
        self._heads: list[bytes] = []
        tiny = all(request.length_bytes <= TINY_BYTES for request, _ in wanted)
        self._lanes = min(TINY_AT_ONCE, len(wanted)) if tiny else 1
        self._open: dict[int, Connection] = {}
        """By lane: the requests take them in turn."""
        self._asked = self._answered = 0
        """How many requests were sent, and how many answers have been read whole."""

    def bodies(self) -> Generator[memoryview, None, None]:
        """The bodies, in order, each valid until the next one is asked for; close it to end early.

        Raises:
            NotPlain: What this storage answers does not tell beforehand what it is.
            StorageError: An answer is not the one expected, or did not come.
            Stopped: The call was cancelled.
        """
        try:
            for number, (request, etag) in enumerate(self._wanted):
                self._grip.busy(True)
                failure: StorageError
                try:
                    body = self._body(number, request, etag)
                except ProxyRefused as error:
                    failure = request.doing.setup(str(error))
                except BlockingIOError:  # so Python calls it when the kernel has waited long enough
                    failure = from_exception(request.doing, TimeoutError())
                except (OSError, HTTPException) as error:
                    failure = from_exception(request.doing, error)
                else:
                    yield body
                    continue
                # Not chained: the texts of such errors may quote the presigned URL.
                raise failure from None
        finally:
            self._let_go()

    def _body(self, number: int, request: Request, etag: str) -> memoryview:
        """One body, behind which the next requests are on their way."""
        self._ask(number + self._lanes)
        lane = number % self._lanes
        connection = self._open[lane]
        self._grip.hold(connection.sock)
        answer = read_head(connection.sock, request.method)
        _check(answer, request, etag)
        body = answer.whole(self._arrived)
        self._answered += 1
        if not number:
            self._clock.learn(answer.headers.get("date"))
        if not answer.reusable:
            self._grip.hold(None)
            self._open.pop(lane).close()
        # What goes wrong with another request is met when its turn comes.
        with contextlib.suppress(OSError, ProxyRefused, StorageError):
            self._ask(number + 1 + self._lanes)
        return body

    def _ask(self, end: int) -> None:
        """Send what was not sent yet of the requests up to this one."""
        way = route(self._wanted[0][0].base_url)
        if not self._heads:
            now = self._clock.now()
            self._heads = [
                head_of(request, way, self._presigner, {}, valid_s=UNFENCED_S, now=now) for request, _ in self._wanted
            ]
        for number in range(self._asked, min(end, len(self._wanted))):
            lane = number % self._lanes
            if lane not in self._open:
                self._connect(lane, way, self._wanted[number][0].timeout_s)
            self._asked += 1
            self._open[lane].sock.sendall(self._heads[number])

    def _connect(self, lane: int, way: Route, limit_s: float) -> None:
        # Meanwhile nothing of the caller's is in use: who cancels need not wait for a look-up of a name.
        self._grip.busy(False)
        connection = self._open[lane] = self._connections.take(way, self._grip)
        self._grip.busy(True)
        connection.limit_silence(0)
        connection.limit_in_the_kernel(limit_s)

    def _let_go(self) -> None:
        owed = {number % self._lanes for number in range(self._answered, self._asked)}
        try:
            self._grip.hold(None)
        except Stopped:
            owed = set(self._open)  # one of them was shut down
        for lane, connection in self._open.items():
            if lane in owed:
                connection.close()
            else:
                self._connections.give_back(connection)
        self._open.clear()


def _check(answer: Answer, request: Request, etag: str) -> None:
    """See that it is the answer to this request: another one's is on its way where a storage is out of step."""
    if answer.status not in _BODY:
        raise from_answer(request.doing, answer.status, "", "")
    if answer.length is None or answer.etag.removeprefix('W/"') != etag:
        raise NotPlain(f"{request.doing}: the storage told another ETag, or no length", bucket=request.doing.bucket)
    if answer.length != request.length_bytes:
        raise request.doing.unavailable(f"the storage offered {answer.length} of {request.length_bytes} bytes")
