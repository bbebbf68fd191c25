"""A request to a storage, and its head: presigned, so that it expires when it is to.

Limits: what is sent behind the head is ``exchange``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kelpie_worker.sync.connections import Route
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import Body, Sink
from kelpie_worker.sync.s3_errors import Doing
from kelpie_worker.sync.signing import Presigner, address


@dataclass(slots=True)  # not frozen, which takes five times as long to make
class Request:
    """What is to be sent.

    Attributes:
        doing: For messages; names the object.
        method: HTTP method.
        base_url: The bucket's.
        query: Parameters.
        headers: Signed headers.
        seal: Makes more signed headers, out of the body; called in the transfer thread.
        plain: Headers that are not signed.
        body: What to send.
        fence: Of whatever makes something visible; None for the rest.
        ask_first: Wait for the storage's consent before sending the body.
        timeout_s: For the next byte in either direction.
        sink: Takes the body of the answer, which else is read whole.
        length_bytes: How much ``sink`` is to be given.
    """

    doing: Doing
    method: str
    base_url: str
    timeout_s: float
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    seal: Callable[[Body], Mapping[str, str]] | None = None
    plain: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    fence: Fence | None = None
    ask_first: bool = False
    sink: Sink | None = None
    length_bytes: int = 0


def head_of(
    request: Request, way: Route, presigner: Presigner, signed: Mapping[str, str], *, valid_s: float, now: float
) -> bytes:
    """All of a request that comes before its body.

    Args:
        request: The request.
        way: Where it is sent.
        presigner: Signs it.
        signed: Its signed headers; those of `Request.headers` have to be among them.
        valid_s: How long the storage may accept it, seconds, at least 1.
        now: The storage's time from which that counts.

    Raises:
        StorageSetupError: A name holds a line break.
    """
    url = presigner.url(
        request.method, request.base_url, request.doing.key, valid_s=valid_s, query=request.query, headers=signed,
        now=now,
    )  # fmt: skip
    through_proxy = way.proxy is not None and not way.tls
    origin, host = address(request.base_url)
    headers = {"Host": host, "User-Agent": "kelpie", "Accept-Encoding": "identity", **signed, **request.plain}
    if request.body is not None or request.method in {"PUT", "POST"}:
        headers["Content-Length"] = str(request.body.size_bytes if request.body else 0)
    if request.ask_first and request.body is not None:
        headers["Expect"] = "100-continue"
    if way.proxy is not None and through_proxy and way.proxy[2]:
        headers["Proxy-Authorization"] = way.proxy[2]
    lines = [f"{request.method} {url if through_proxy else url[len(origin) :]} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join([*lines, "", ""])
    if head.count("\n") != len(lines) + 1 or head.count("\r") != len(lines) + 1:
        raise request.doing.setup("a name holds a line break")
    return head.encode()
