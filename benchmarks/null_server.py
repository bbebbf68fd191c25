"""A server that takes uploads in S3's manner and forgets them: ``python -m benchmarks.null_server``; prints its port.

It shows what a client alone can do: a real server takes more processor time than all clients here. Limits: checks
neither signatures nor digests (it confirms the checksum that it is told), and gives nothing back but the size.
"""

from __future__ import annotations

import socket
import sys
import threading

_BUFFER_BYTES = 1024 * 1024
_HEAD_BYTES = 65536
_BEGUN = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
_ENDED = b'<CompleteMultipartUploadResult><ETag>"null"</ETag></CompleteMultipartUploadResult>'
_sizes: dict[bytes, int] = {}
"""How much was sent to each key, which is all that is kept."""
_lock = threading.Lock()
_EMPTY = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


def serve(sock: socket.socket) -> None:
    """Answer the requests of one connection until it is closed."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    count = 0
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            end = bytes(buffer[: min(count, _HEAD_BYTES)]).find(b"\r\n\r\n")
            if end < 0:
                arrived = sock.recv_into(buffer[count:])
                if not arrived:
                    return
                count += arrived
                continue
            head = bytes(buffer[:end]).split(b"\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in head[1:])}
            if b"expect" in headers:
                sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            left = int(headers.get(b"content-length", b"0")) - (count - end - 4)
            while left > 0:
                arrived = sock.recv_into(buffer[: min(left, _BUFFER_BYTES)])
                if not arrived:
                    return
                left -= arrived
            count = 0
            sock.sendall(_answer(head[0], headers))


def _answer(line: bytes, headers: dict[bytes, bytes]) -> bytes:
    method, target, _ = line.split(b" ")
    body, key = b"", target.partition(b"?")[0]
    if method == b"POST" and b"uploads" in target:
        _sizes[key] = 0
    elif method == b"PUT":
        part = b"partNumber" in target
        with _lock:
            _sizes[key] = (_sizes.get(key, 0) if part else 0) + int(headers.get(b"content-length", b"0"))
    elif method == b"HEAD":
        return b'HTTP/1.1 200 OK\r\nETag: "null"\r\nContent-Length: %d\r\n\r\n' % _sizes.get(key, 0)
    if method == b"POST":
        body = _BEGUN if b"uploads" in target else _ENDED
    elif method == b"GET":
        body = _EMPTY
    echo = headers.get(b"x-amz-checksum-crc32")
    told = b"x-amz-checksum-crc32: %s\r\n" % echo if echo else b""
    return b'HTTP/1.1 200 OK\r\nETag: "null"\r\n%sContent-Length: %d\r\n\r\n%s' % (told, len(body), body)


def main() -> None:
    """Serve until killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main()
