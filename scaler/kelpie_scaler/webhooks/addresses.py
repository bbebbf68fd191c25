"""Where a webhook may go: the addresses of its host, looked up once, each of them public.

Users name the URLs, and the control worker stands inside a network that they may not reach: without this, a webhook
could be sent to a metadata service, to Redis, to whatever listens on loopback. The caller connects to the addresses
that it gets from here and never looks the name up again, so that a name server that answers otherwise the next time
(rebinding) gains nothing.

Limits: it knows addresses, not what answers there; a public address that leads inside is the network's business.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence

from kelpie_celery.errors import KelpieError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291, deprecated
_INSIDE = tuple(map(ipaddress.ip_network, (
    "168.63.129.16/32",  # Azure's wire server: a public address that leads inside
    "192.0.0.0/24",  # RFC 6890; Oracle's metadata service is one of it
    "192.88.99.0/24",  # RFC 7526, once the relays of 6to4
    "3fff::/20",  # RFC 9637, for documentation
)))  # fmt: skip
"""What Python's own tables, in some of its versions, take for the open internet."""

MAX_ADDRESSES = 3


class ForbiddenAddress(KelpieError):
    """The host is, or may be, inside our own network."""


class UnknownHost(KelpieError):
    """The host has no address, or its name cannot be looked up now."""


def allowed_addresses(host: str, port: int, *, allow_private: bool, resolve: Resolver | None = None) -> list[str]:
    """The addresses of a host, the most `MAX_ADDRESSES`, in the order of the system's preference.

    Args:
        host: A name or an address, as the URL has it (IPv6 without brackets).
        port: To be connected to.
        allow_private: Take any address.
        resolve: Looks a name up; the system's by default.

    Raises:
        ForbiddenAddress: One of them is not public: then none is used.
        UnknownHost: There is none.
    """
    found = list(dict.fromkeys((resolve or system_resolver)(host, port)))
    if not found:
        raise UnknownHost(f"the host {host} has no address")
    if not allow_private:
        for text in found:
            if not is_public(text):
                raise ForbiddenAddress(
                    f"the host {host} has the address {text}, which is not public; only "
                    "KELPIE_WEBHOOK_ALLOW_PRIVATE=1 lets webhooks go there"
                )
    return found[:MAX_ADDRESSES]


def is_public(text: str) -> bool:
    """Whether an address is one of the open internet, also by what IPv6 may wrap an IPv4 address in."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return all(_is_open(each) for each in _meanings(address))


def _is_open(address: Address) -> bool:
    forbidden = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
    forbidden = forbidden or address.is_unspecified or address.is_reserved
    site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    inside = any(address in network for network in _INSIDE)
    return address.is_global and not (forbidden or site_local or inside)


def _meanings(address: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address stands for; the address itself where it stands for none."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    if address.sixtofour:
        return [address, address.sixtofour]
    if address.teredo:
        return [address, *address.teredo]
    if address in _NAT64 or address in _COMPATIBLE:
        return [ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)]
    return [address]


def system_resolver(host: str, port: int) -> list[str]:
    """Look a name up as the system does."""
    try:
        rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise UnknownHost(f"the host {host} cannot be looked up ({words})") from None
    return [str(row[4][0]) for row in rows]
