"""How long a connection to Redis may be silent before it counts as broken: for ledger, broker and results alike.

A node's network may vanish without a word (a NAT that forgot the connection, a cable): then nothing ever comes, and
without bounds a call waits for a quarter of an hour, or for ever. All follow from ``KELPIE_REDIS_TIMEOUT_S`` (T, 5 s):

- a call of the ledger fails after T; of the broker or of Celery's results after 2 T. That is shorter than the shortest
  lease by default (30 s), so that a lease is renewed over a fresh connection in time;
- a connection that was idle for 2 T is asked before its next use;
- the consumer's BRPOP, which no time-out guards: kombu drops the connection when an answer is overdue by 2 T, at the
  latest after 1 + 4 T (21 s);
- what was sent and not acknowledged, and a peer that does not answer keep-alive probes: the kernel, after 6 T (30 s),
  also where nobody waits.

Limits: Linux has all options; where one is missing it is left out. Unix sockets have none of them, and need none.
"""

from __future__ import annotations

import socket
from typing import Any

_PROBES = 3


def broker_timeout_s(timeout_s: float) -> float:
    """How long the broker and Celery's results may take to answer, seconds."""
    return 2.0 * timeout_s


def health_check_s(timeout_s: float) -> int:
    """After so long without use a connection is asked whether it lives, in whole seconds."""
    return max(1, round(2 * timeout_s))


def kernel_options(timeout_s: float) -> dict[int, int]:
    """Options of TCP sockets, by number, as redis-py and kombu take them."""
    each_s = max(1, round(timeout_s))
    options = {
        "TCP_KEEPIDLE": 3 * each_s, "TCP_KEEPINTVL": each_s, "TCP_KEEPCNT": _PROBES,
        "TCP_USER_TIMEOUT": 6 * each_s * 1000,
    }  # fmt: skip
    return {getattr(socket, name): value for name, value in options.items() if hasattr(socket, name)}


def client_options(timeout_s: float, *, tcp: bool) -> dict[str, Any]:
    """The options of a client of the ledger; redis-py refuses some for a Unix socket."""
    keepalive = {"socket_keepalive": True, "socket_keepalive_options": kernel_options(timeout_s)} if tcp else {}
    return {
        "socket_timeout": timeout_s, "socket_connect_timeout": timeout_s,
        "health_check_interval": health_check_s(timeout_s), **keepalive,
    }  # fmt: skip


def transport_options(timeout_s: float) -> dict[str, Any]:
    """The options of kombu's Redis transport."""
    return {
        "socket_timeout": broker_timeout_s(timeout_s), "socket_connect_timeout": broker_timeout_s(timeout_s),
        "socket_keepalive": True, "socket_keepalive_options": kernel_options(timeout_s),
        "health_check_interval": health_check_s(timeout_s),
    }  # fmt: skip
