"""One presigned request and its answer over a blocking connection, in a transfer thread; fenced where that is asked.

Three things keep what is visible inside the trust window.
- The request expires with it, by the storage's clock, read before the trust was.
- The fence is asked before every send, and while the answer is waited for; when the trust is over, the connection is
  reset, so that the kernel drops what it still holds.
- For a worker that is frozen, and cannot reset anything, the end of a body (`LAST_BYTES`) is given to the kernel only
  when the storage has acknowledged nearly all before it, and at least a second of trust is left; and the kernel gives
  up what is not acknowledged within the trust that was left then (TCP_USER_TIMEOUT).
How that is done is in ``trusted_sending``.
The send buffer keeps the system's size: a small one would slow down lines with a long way.

Limits: a storage that has the whole body may still take its time to show it, and so may a proxy that has it. A worker
that is frozen in the last second of its trust, on a line that takes longer than that for 128 KiB, may be late by the
difference.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.client import HTTPException

from kelpie_worker.sync.answers import Answer, read_head
from kelpie_worker.sync.bodies import CHUNK_BYTES
from kelpie_worker.sync.connections import Connection, Connections, Grip, ProxyRefused, Stopped, route
from kelpie_worker.sync.object_store import Body, Sink
from kelpie_worker.sync.request import Request, head_of
from kelpie_worker.sync.s3_errors import code_and_message, from_answer, from_exception
from kelpie_worker.sync.signing import Presigner, StorageClock
from kelpie_worker.sync.trusted_sending import LAST_BYTES, Muted, Sending

_CONSENT_S = 3.0
"""How long a storage is waited for that was asked whether it wants a body, and does not say."""
_EARLY_S = 1.0
_JOIN_BYTES = 128 * 1024
_ERROR = re.compile(rb"<Error[\s>]")
_DONE = frozenset({HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT, HTTPStatus.PARTIAL_CONTENT})


class _Local(Exception):
    """Something that a body or a sink stumbled over; it is none of the storage's."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Exchange:
    """See the module; `run` is for a transfer thread, `stop` for everybody else.

    Args:
        request: What to send.
        connections: Where to get a connection from.
        presigner: Signs it.
        clock: Learns the storage's time.
        grip: Of a thread that sends several requests; by default one of its own.
    """

    def __init__(
        self, request: Request, connections: Connections, presigner: Presigner, clock: StorageClock,
        grip: Grip | None = None,
    ) -> None:  # fmt: skip
        self._request, self._connections = request, connections
        self._presigner, self._clock = presigner, clock
        self._grip = grip or Grip()
        self._answered = False

    def stop(self) -> bool:
        """Make `run` end; whether it still uses the body or the sink, and must be waited for."""
        return self._grip.stop()

    def run(self) -> Answer:
        """Send the request and read its answer.

        Raises:
            StorageError: It failed; see ``s3_errors``.
            Exception: What the body or the sink raised.
        """
        request = self._request
        failure: Exception
        try:
            return self._run()
        except Muted:
            failure = request.doing.unavailable("the lease ran out while it was being sent")
        except ProxyRefused as error:
            failure = request.doing.setup(str(error))
        except _Local as local:
            failure = local.error
        except (OSError, HTTPException) as error:
            failure = from_exception(request.doing, error)
        # Not chained: the texts of such errors may quote the presigned URL.
        raise failure from None

    def _run(self) -> Answer:
        request = self._request
        signed = dict(request.headers)
        if request.seal and request.body:
            self._grip.busy(True)
            with _LOCAL_ERRORS:
                signed |= request.seal(request.body)
        while True:
            self._grip.busy(False)
            connection = self._connections.take(route(request.base_url), self._grip)
            again = connection.reused and request.body is None
            kept = False
            try:
                self._grip.busy(True)
                answer, kept = self._exchange(connection, signed)
            except (ConnectionError, HTTPException):
                # The storage closed a connection that it had kept; nothing of this request came of it.
                if self._answered or not again:
                    raise
            else:
                return answer
            finally:
                self._let_go(connection, kept=kept)

    def _let_go(self, connection: Connection, *, kept: bool) -> None:
        try:
            self._grip.hold(None)
        except Stopped:
            kept = False  # it was shut down
        if kept:
            self._connections.give_back(connection)
        else:
            connection.close(reset=self._request.fence is not None)

    # -- sending --------------------------------------------------------------------------------------------------

    def _exchange(self, connection: Connection, signed: Mapping[str, str]) -> tuple[Answer, bool]:
        request = self._request
        # In this order: a pause in between must make the request end too soon, not too late.
        now = self._clock.now()
        sending = Sending(connection, request.fence, request.timeout_s, self._connections.clock)
        trust_s = sending.trust_s()
        head = head_of(request, connection.route, self._presigner, signed, valid_s=trust_s, now=now)
        if request.body is None:
            sending.push(head)
            return self._answer(connection, sending)
        if request.ask_first:
            sending.push(head)
            head = b""
            refusal = self._refusal(connection)
            if refusal:
                return self._answer(connection, said=refusal)[0], False
        try:
            self._send(sending, head, request.body)
        except (ConnectionError, ssl.SSLError) as broken:
            self._raise_refusal(connection)
            raise broken from None
        return self._answer(connection, sending)

    def _send(self, sending: Sending, head: bytes, body: Body) -> None:
        """Send head and body; a small body in one piece with its head, which spares the storage a wait."""
        left = body.size_bytes
        for chunk in _pieces(body):
            piece = chunk
            left -= len(piece)
            if head and len(piece) <= _JOIN_BYTES:
                sending.push(b"".join((head, piece)))
            else:
                if head:
                    sending.push(head)
                if self._request.fence and not left:
                    cut = max(0, len(piece) - LAST_BYTES)
                    sending.push(piece[:cut])
                    sending.drain()
                    piece = piece[cut:]
                sending.push(piece)
            head = b""
        if head:
            sending.push(head)

    def _refusal(self, connection: Connection) -> bytes:
        """What the storage says instead of consenting to a body; nothing when it consents, or does not say anything."""
        sock, said = connection.sock, b""
        connection.limit(min(_CONSENT_S, self._request.timeout_s))
        with contextlib.suppress(TimeoutError):
            while b"\r\n\r\n" not in said:
                more = sock.recv(4096)
                if not more:
                    raise ConnectionResetError("the storage closed the connection")
                said += more
        connection.limit(self._request.timeout_s)
        # Behind its consent it may have thought better of it.
        return said.partition(b"\r\n\r\n")[2] if said[8:12] == b" 100" else said

    def _raise_refusal(self, connection: Connection) -> None:
        """Raise what the storage said before it broke the connection, if that can still be read."""
        with contextlib.suppress(OSError, HTTPException):
            connection.limit(_EARLY_S)
            self._answer(connection)

    # -- receiving ------------------------------------------------------------------------------------------------

    def _answer(self, connection: Connection, sending: Sending | None = None, said: bytes = b"") -> tuple[Answer, bool]:
        """Read an answer; also whether the connection can serve again."""
        if sending is not None and self._request.fence and not said:
            said = sending.answer()
        answer = read_head(connection.sock, self._request.method, said)
        self._answered = True
        self._clock.learn(answer.headers.get("date"))
        if self._request.sink is not None and answer.status in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
            self._pour(answer, self._request.sink)
            return answer, answer.reusable
        text = answer.text()
        code, message = code_and_message(text)
        # The end of an upload in parts, and a copy, may fail after they have answered 200.
        failed_late = bool(code) and _ERROR.search(text) is not None
        if answer.status not in _DONE or failed_late:
            raise from_answer(self._request.doing, answer.status, code, message)
        return answer, answer.reusable

    def _pour(self, answer: Answer, sink: Sink) -> None:
        """Hand the body of the answer to the sink, also what arrives before a cut."""
        doing, wanted = self._request.doing, self._request.length_bytes
        if answer.length is not None and answer.length != wanted:
            raise doing.unavailable(f"the storage offered {answer.length} bytes where {wanted} were asked for")
        arrived = 0
        for piece in answer.pieces():
            arrived += len(piece)
            if piece and arrived <= wanted:
                with _LOCAL_ERRORS:
                    sink(piece)
        if arrived != wanted:
            raise doing.unavailable(f"{arrived} of {wanted} bytes arrived")


def _pieces(body: Body) -> Iterator[memoryview]:
    """The pieces of a body, cut to what may be sent between two looks at the fence."""
    chunks = body.chunks()
    while True:
        with _LOCAL_ERRORS:
            chunk = next(chunks, None)
        if chunk is None:
            return
        view = memoryview(chunk)
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]


class _LocalErrors:
    """Whatever is raised inside is the caller's own; a generator would take three times as long to enter."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception):
            raise _Local(error) from error


_LOCAL_ERRORS = _LocalErrors()
