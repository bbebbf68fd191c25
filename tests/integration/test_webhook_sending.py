"""One try of a webhook over real sockets: what is sent, what is refused, and that no receiver can hold it up."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from kelpie_scaler.webhooks.sending import Answer, post
from tests.harness.hooks import Got, Receiver, answered

SECRET = "s3cret-in-the-url"
NAME = "hooks.example"
MEANWHILE_S = 1.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def send(url: str, *, allow_private: bool = True, timeout_s: float = 20.0, **more: Any) -> Answer:
    return post(url, b'{"a":1}', {"Content-Type": "application/json"}, timeout_s=timeout_s,
                allow_private=allow_private, **more)  # fmt: skip


def test_a_body_arrives_as_it_is(receiver: Receiver) -> None:
    assert send(receiver.url("/a?b=c")) == Answer(sent=True, code=200)
    [got] = receiver.got
    assert (got.path, got.body, got.headers["content-type"]) == ("/a?b=c", b'{"a":1}', "application/json")
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"


def test_user_and_password_of_the_url_are_sent_as_such(receiver: Receiver) -> None:
    assert send(receiver.url().replace("://", "://u:p@")).sent
    assert receiver.got[0].headers["authorization"] == "Basic dTpw"


def test_neither_a_proxy_nor_a_netrc_of_the_environment_is_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login our password own\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert send(receiver.url()).sent
    assert "authorization" not in receiver.got[0].headers


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(code: int) -> None:
    with Receiver() as other, Receiver(answered(code, f"Location: {other.url()}")) as receiver:
        answer = send(receiver.url())
        assert (answer.sent, answer.final, answer.code) == (False, False, code)
        assert "redirects are not followed" in answer.error
        assert other.connections == 0


@pytest.mark.parametrize(("code", "final"), [(400, False), (404, False), (410, True), (429, False), (500, False)])
def test_what_is_not_taken_is_tried_again_unless_it_is_gone_for_good(code: int, final: bool) -> None:
    with Receiver(answered(code)) as receiver:
        answer = send(receiver.url())
    assert (answer.sent, answer.final, answer.code) == (False, final, code)
    assert str(code) in answer.error


@pytest.mark.parametrize(("code", "said", "pause_s"), [
    (503, "120", 120), (429, "7", 7), (503, "99999999", 3600), (503, "soon", 0), (503, "-1", 0), (500, "120", 0),
    (503, "9" * 400, 0),
])  # fmt: skip
def test_a_receiver_may_say_when(code: int, said: str, pause_s: float) -> None:
    with Receiver(answered(code, f"Retry-After: {said}")) as receiver:
        assert send(receiver.url()).retry_after_s == pause_s


# -- receivers that hold us up -------------------------------------------------------------------------------------


def never(_got: Got, _sock: socket.socket) -> bytes:
    threading.Event().wait(20)
    return b""


def head_drop_by_drop(_got: Got, sock: socket.socket) -> bytes:
    sock.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(400):
        sock.sendall(b"x")
        time.sleep(0.05)
    return b"\r\n\r\n"


def head_without_end(_got: Got, sock: socket.socket) -> bytes:
    while True:
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


@pytest.mark.parametrize("answer", [never, head_drop_by_drop, head_without_end])
def test_no_receiver_can_hold_a_try_up(answer: Callable[[Got, socket.socket], bytes]) -> None:
    with Receiver(answer) as receiver:
        began = time.monotonic()
        got = send(receiver.url(), timeout_s=MEANWHILE_S)
        assert time.monotonic() - began < 10 * MEANWHILE_S
    assert not got.sent
    assert got.error == "127.0.0.1 did not answer within 1 s"


def test_a_body_without_end_is_not_read() -> None:
    ended = threading.Event()

    def endless(_got: Got, sock: socket.socket) -> bytes:
        try:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
            while True:
                sock.sendall(b"x" * 65536)
        finally:
            ended.set()

    with Receiver(endless) as receiver:
        assert send(receiver.url()).sent
        assert ended.wait(20)


@pytest.mark.parametrize("answer", [
    b"", b"\x00\xff" * 100, b"HTTP/1.1", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 99999 X\r\n\r\n", b"HTTP/1.1 abc X\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
])  # fmt: skip
def test_whatever_is_answered_is_taken_or_told_in_words(answer: bytes) -> None:
    with Receiver(lambda _got, _sock: answer) as receiver:
        got = send(receiver.url(f"/{SECRET}"))
    assert not got.sent
    assert got.error
    assert SECRET not in got.error


def test_a_refused_connection_is_told_without_the_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    got = send(f"http://{SECRET}:{SECRET}@localhost:{port}/{SECRET}?{SECRET}")
    assert got.error == "localhost cannot be reached: Connection refused"


# -- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "0.0.0.0"]
)
def test_what_is_not_public_is_never_connected_to(receiver: Receiver, host: str) -> None:
    answer = send(receiver.url(host=host), allow_private=False)
    assert (answer.sent, answer.final) == (False, True)
    assert "not public" in answer.error
    assert "KELPIE_WEBHOOK_ALLOW_PRIVATE" in answer.error
    assert receiver.connections == 0


class Rebinding:
    """A name server whose answer is public when it is asked first, and ours afterwards."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.asked = list(answers), 0

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]


def test_a_name_is_looked_up_once_and_only_what_was_checked_is_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the system would answer to anybody who asked again: loopback, where the receiver is.
    connected: list[str] = []

    def look_up(host: str, port: int, *_: Any, **__: Any) -> Any:
        connected.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]

    monkeypatch.setattr("urllib3.util.connection.socket.getaddrinfo", look_up)
    resolver = Rebinding(["93.184.216.34"], ["127.0.0.1"])
    answer = send(f"http://{NAME}:{receiver.port}/", allow_private=False, timeout_s=1.0, resolve=resolver)
    assert resolver.asked == 1
    assert set(connected) == {"93.184.216.34"}  # the address itself, never the name
    assert not answer.sent
    assert receiver.connections == 0


def test_a_name_with_one_address_inside_is_refused_as_a_whole(receiver: Receiver) -> None:
    resolver = Rebinding(["93.184.216.34", "10.0.0.1"])
    answer = send(receiver.url(host=NAME), allow_private=False, resolve=resolver)
    assert (answer.final, "10.0.0.1" in answer.error) == (True, True)


def test_the_next_address_is_tried_where_one_cannot_be_connected_to(receiver: Receiver) -> None:
    answer = send(receiver.url(host=NAME), resolve=Rebinding(["127.0.0.2", "127.0.0.1"]))
    assert answer.sent
    assert receiver.got[0].headers["host"] == f"{NAME}:{receiver.port}"


def test_another_address_is_not_tried_once_the_body_may_have_arrived(receiver: Receiver) -> None:
    with Receiver(lambda _got, _sock: b"") as broken:
        assert not send(broken.url(host=NAME), resolve=Rebinding(["127.0.0.1", "127.0.0.1", "127.0.0.3"])).sent
        assert broken.connections == 1


# -- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, str]:
    authority = trustme.CA()
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(file)
    return authority, str(file)


def secured(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    return context


def test_the_certificate_has_to_be_the_names_while_the_address_is_connected_to(
    authority: tuple[trustme.CA, str],
) -> None:
    resolver = Rebinding(["127.0.0.1"])
    with Receiver(tls=secured(authority[0], NAME)) as receiver:
        url = receiver.url(host=NAME, scheme="https")
        assert send(url, resolve=resolver, ca_file=authority[1]).sent
        assert receiver.got[0].headers["host"] == f"{NAME}:{receiver.port}"


def test_a_certificate_for_the_address_or_another_name_is_refused(authority: tuple[trustme.CA, str]) -> None:
    with Receiver(tls=secured(authority[0], "127.0.0.1", "other.example")) as receiver:
        answer = send(receiver.url(host=NAME, scheme="https"), resolve=Rebinding(["127.0.0.1"]), ca_file=authority[1])
        assert not answer.sent
        assert f"the certificate of {NAME} is not valid" in answer.error
        assert receiver.got == []


def test_a_certificate_of_an_unknown_authority_is_refused(authority: tuple[trustme.CA, str]) -> None:
    with Receiver(tls=secured(authority[0], NAME)) as receiver:
        answer = send(receiver.url(host=NAME, scheme="https"), resolve=Rebinding(["127.0.0.1"]))
        assert not answer.sent
        assert "is not valid" in answer.error
        assert receiver.got == []


def test_a_handshake_that_never_ends_holds_nothing_up(authority: tuple[trustme.CA, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        assert "did not answer within" in send(url, timeout_s=MEANWHILE_S).error
