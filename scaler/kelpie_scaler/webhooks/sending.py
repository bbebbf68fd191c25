"""One try of one webhook: a POST to an address that was checked, and what became of it.

The connection goes to the checked address while TLS verifies the name (``pinning.py``). No
redirect is followed, no proxy and no netrc of the environment is used, and no more of the answer is read than its
status. Limits: one try; whoever calls decides about repeats. The deadline is enforced by shutting the socket down, as
time-outs of requests count from byte to byte.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
from requests.exceptions import ConnectTimeout, RequestException, Timeout
from urllib3.exceptions import NewConnectionError

from kelpie_scaler.webhooks.addresses import ForbiddenAddress, Resolver, UnknownHost, allowed_addresses
from kelpie_scaler.webhooks.pinning import Pinned

_PORTS = {"http": 80, "https": 443}
_OK = range(200, 300)
_REDIRECTS = range(300, 400)
GONE = 410
_MAY_SAY_WHEN = {429, 503}
_MAX_RETRY_AFTER_S = 3600.0


@dataclass(frozen=True)
class Answer:
    """What became of one try.

    Attributes:
        sent: The receiver took it.
        final: Trying again is of no use.
        code: HTTP status; None without an answer.
        error: What went wrong, in words that hold nothing of the URL but its host.
        retry_after_s: What the receiver asks for, in seconds.
    """

    sent: bool = False
    final: bool = False
    code: int | None = None
    error: str = ""
    retry_after_s: float = 0.0


@dataclass(frozen=True)
class Target:
    """A URL, taken apart."""

    scheme: str
    host: str
    port: int
    netloc: str


def target_of(url: str) -> Target | None:
    """Take a URL apart as requests does; None for what is no ``http`` or ``https`` URL with a host."""
    try:
        prepared = requests.Request("POST", url).prepare().url or ""
        parts = urlsplit(prepared)
        host, port = parts.hostname, parts.port
    except (RequestException, ValueError):
        return None
    if parts.scheme not in _PORTS or not host or port == 0:
        return None
    return Target(parts.scheme, host, port or _PORTS[parts.scheme], parts.netloc.rpartition("@")[2])


def post(
    url: str,
    content: bytes,
    headers: Mapping[str, str],
    *,
    timeout_s: float,
    allow_private: bool,
    resolve: Resolver | None = None,
    ca_file: str | None = None,
) -> Answer:
    """Send a body to a URL, once.

    Args:
        url: Where to; as untrusted as whoever wrote the definition.
        content: The body.
        headers: Sent as they are.
        timeout_s: How long all of it may take, in seconds.
        allow_private: Whether addresses that are not public may be used.
        resolve: Looks names up; the system's by default.
        ca_file: Certificates to trust; requests' own by default.
    """
    target = target_of(url)
    if target is None:
        return Answer(final=True, error="the webhook is no URL that begins with http:// or https:// and names a host")
    try:
        addresses = allowed_addresses(target.host, target.port, allow_private=allow_private, resolve=resolve)
    except ForbiddenAddress as error:
        return Answer(final=True, error=str(error))
    except UnknownHost as error:
        return Answer(error=str(error))
    answer = Answer(error=f"the host {target.host} cannot be connected to")
    for address in addresses:
        pinned = Pinned(address, target.host)
        answer, connected = _try(pinned, url, content, {**headers, "Host": target.netloc}, timeout_s, ca_file)
        if connected:
            break
    return answer


def _try(
    pinned: Pinned, url: str, content: bytes, headers: dict[str, str], timeout_s: float, ca_file: str | None
) -> tuple[Answer, bool]:
    """The answer, and whether there was a connection at all."""
    with requests.Session() as session, _deadline(pinned, timeout_s) as late:
        session.trust_env = False
        session.mount("http://", pinned)
        session.mount("https://", pinned)
        try:
            with session.post(
                url, data=content, headers=headers, timeout=timeout_s, allow_redirects=False, stream=True,
                verify=ca_file or True,
            ) as response:  # fmt: skip
                answer = _judged(response)
        except RequestException as error:
            answer = Answer(error=_words(error, pinned.host, timeout_s))
            if _unreached(error):
                return answer, False
        # A socket that is shut down looks like the end of an answer.
        return (Answer(error=_too_late(pinned.host, timeout_s)) if late.is_set() else answer), True


@contextlib.contextmanager
def _deadline(pinned: Pinned, timeout_s: float) -> Iterator[threading.Event]:
    late = threading.Event()

    def end() -> None:
        late.set()
        pinned.sockets.shut_down()

    timer = threading.Timer(timeout_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        pinned.sockets.close()


def _judged(response: requests.Response) -> Answer:
    code = response.status_code
    if code in _OK:
        return Answer(sent=True, code=code)
    if code in _REDIRECTS:
        return Answer(code=code, error=f"the receiver answered {code}; redirects are not followed, give the final URL")
    error = f"the receiver answered {code}"
    return Answer(code=code, error=error, final=code == GONE, retry_after_s=_retry_after_s(response))


def _retry_after_s(response: requests.Response) -> float:
    text = response.headers.get("Retry-After", "")
    if response.status_code not in _MAY_SAY_WHEN or not text.isascii() or not text.isdecimal() or len(text) > 9:  # noqa: PLR2004 -- seconds, far above any limit
        return 0.0
    return min(float(text), _MAX_RETRY_AFTER_S)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error with all that it wraps, which requests and urllib3 keep in their own ways."""
    seen: list[BaseException] = [error]
    for one in seen:
        yield one
        inner = [getattr(one, "reason", None), one.__cause__, one.__context__, *one.args]
        seen += [each for each in inner if isinstance(each, BaseException) and each not in seen]


def _unreached(error: BaseException) -> bool:
    return isinstance(error, ConnectTimeout) or any(isinstance(one, NewConnectionError) for one in _causes(error))


def _too_late(host: str, timeout_s: float) -> str:
    return f"{host} did not answer within {timeout_s:g} s"


def _words(error: BaseException, host: str, timeout_s: float) -> str:
    """What went wrong. The texts of requests and urllib3 hold the URL, whose path may be a secret: none is used."""
    for one in _causes(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"the certificate of {host} is not valid: {one.verify_message or 'it cannot be verified'}"
        if isinstance(one, ssl.SSLError):
            return f"TLS with {host} failed: {one.reason or type(one).__name__}"
    if isinstance(error, Timeout):
        return _too_late(host, timeout_s)
    for one in _causes(error):
        if isinstance(one, OSError) and one.strerror and not isinstance(one, RequestException):
            return f"{host} cannot be reached: {one.strerror}"
    return f"{host} gave no answer that could be read"
