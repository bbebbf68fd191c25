"""How answers are read from a socket: plain ones at once, others by the standard library, with the same result."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from http.client import BadStatusLine, IncompleteRead, RemoteDisconnected

import pytest

from kelpie_worker.sync.answers import Answer, read_head

MIB = 1024 * 1024
Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        yield ours, theirs


def say(theirs: socket.socket, *said: bytes, close: bool = False) -> None:
    """Send some bytes from a thread, each of them on its own."""

    def work() -> None:
        for one in said:
            theirs.sendall(one)
        if close:
            theirs.close()

    threading.Thread(target=work, daemon=True).start()


def chunked(data: bytes, size: int) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])


def forms(data: bytes) -> dict[str, tuple[bytes, bool, bool]]:
    """The same body in every form; whether the connection is closed after it, and can be used again."""
    head, length = b'HTTP/1.1 200 OK\r\nETag: "e"\r\n', b"Content-Length: %d\r\n" % len(data)
    return {
        "plain": (head + length + b"\r\n" + data, False, True),
        "closing": (head + length + b"Connection: Close\r\n\r\n" + data, False, False),
        "chunked": (head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(data, 100_000), False, True),
        "until the end": (head + b"\r\n" + data, True, False),
        "twice": (head + length + b"Vary: a\r\nVary: b\r\n\r\n" + data, False, True),
        "after consent": (b"HTTP/1.1 100 Continue\r\n\r\n" + head + length + b"\r\n" + data, False, True),
        "old": (head.replace(b"1.1", b"1.0") + length + b"\r\n" + data, False, False),
    }


@pytest.mark.parametrize("size", [0, 1, 70_000, 3 * MIB])
@pytest.mark.parametrize("form", list(forms(b"")))
def test_a_body_is_the_same_in_whatever_form_it_comes(ends: Ends, form: str, size: int) -> None:
    data = os.urandom(size)
    said, close, reusable = forms(data)[form]
    say(ends[1], said[:20], said[20:], close=close)
    answer = read_head(ends[0], "GET")
    assert (answer.status, answer.etag, answer.reusable) == (200, "e", reusable)
    assert b"".join([bytes(piece) for piece in answer.pieces()]) == data


def test_many_answers_come_over_one_connection(ends: Ends) -> None:
    say(ends[1], b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none")
    assert read_head(ends[0], "GET").text() == b"one"
    say(ends[1], b"HTTP/1.1 204 No Content\r\n\r\n")
    answer = read_head(ends[0], "DELETE")
    assert (answer.text(), answer.reusable) == (b"", True)
    say(ends[1], b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone")
    assert read_head(ends[0], "GET").text() == b"gone"


def test_more_than_was_announced_makes_a_connection_useless(ends: Ends) -> None:
    say(ends[1], b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none and more")
    answer = read_head(ends[0], "GET")
    assert (answer.text(), answer.reusable) == (b"one", False)


@pytest.mark.parametrize("form", ["plain", "chunked"])
def test_what_arrives_before_a_break_is_handed_over(ends: Ends, form: str) -> None:
    data = os.urandom(MIB)
    say(ends[1], forms(data)[form][0][: MIB // 2], close=True)
    arrived = bytearray()

    def read(answer: Answer) -> None:
        for piece in answer.pieces():
            arrived.extend(piece)

    with pytest.raises(IncompleteRead):
        read(read_head(ends[0], "GET"))
    assert len(arrived) > MIB // 4
    assert data.startswith(arrived)


@pytest.mark.parametrize(
    ("said", "error"),
    [(b"", RemoteDisconnected), (b"HTTP/1.1 20", BadStatusLine), (b"SSH-2.0-x\r\n\r\n", BadStatusLine)],
)
def test_what_is_no_answer_is_an_error(ends: Ends, said: bytes, error: type[Exception]) -> None:
    say(ends[1], said, close=True)
    with pytest.raises(error):
        read_head(ends[0], "GET")


def test_a_server_that_says_nothing_is_given_up_in_time(ends: Ends) -> None:
    ends[0].settimeout(0.05)
    with pytest.raises(TimeoutError):
        read_head(ends[0], "GET")
    ends[1].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal")
    answer = read_head(ends[0], "GET")
    with pytest.raises(TimeoutError):
        answer.text()
