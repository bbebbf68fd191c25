"""What may go over a network in the clear, and how TLS is asked for: always with the server's certificate verified.

Limits: it goes by the URL alone; no name is looked up, so a name is local only if it is ``localhost`` or below it.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_CA_OPTION = "ssl_ca_certs"
_VERIFYING = {"ssl_cert_reqs": {"required", "CERT_REQUIRED"}, "ssl_check_hostname": {"true", "True", "1", "yes"}}


def is_loopback(host: str) -> bool:
    """Whether a host of a URL can only be this machine."""
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def in_the_clear(url: str) -> bool:
    """Whether what is sent to this URL leaves the machine unencrypted; for Redis and for HTTP."""
    parts = urlsplit(url)
    return parts.scheme in {"redis", "http"} and not is_loopback(parts.hostname or "")


def unverified(url: str) -> str | None:
    """The option of a ``rediss://`` URL that would have the certificate not verified, if there is one."""
    for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if name in _VERIFYING and value not in _VERIFYING[name]:
            return name
    return None


def tls_options(url: str) -> dict[str, Any]:
    """redis-py's options for a ``rediss://`` URL; empty for others.

    Certificates are those of the system (or of ``SSL_CERT_FILE``), unless the URL names a file by ``?ssl_ca_certs=``.
    """
    if urlsplit(url).scheme != "rediss":
        return {}
    options: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    query = dict(parse_qsl(urlsplit(url).query))
    return options | ({_CA_OPTION: query[_CA_OPTION]} if _CA_OPTION in query else {})


def without_tls_options(url: str) -> str:
    """The URL without its ``ssl_...`` options, which each library would read in its own way."""
    parts = urlsplit(url)
    kept = _others(parse_qsl(parts.query, keep_blank_values=True))
    return url if parts.scheme != "rediss" else urlunsplit(parts._replace(query=urlencode(kept)))


def _others(options: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in options if not name.startswith("ssl_")]
