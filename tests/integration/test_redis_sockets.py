"""Every kind of connection to Redis has its bounds: in the client, and in the kernel."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from kelpie_celery.app import KelpieApp, connect
from kelpie_celery.celery import create_app
from kelpie_celery.settings import load_settings
from kelpie_celery.sockets import client_options, health_check_s, kernel_options

TCP = {"TCP_KEEPIDLE": 9, "TCP_KEEPINTVL": 3, "TCP_USER_TIMEOUT": 18_000}


@pytest.fixture
def app(redis_url: str) -> Iterator[KelpieApp]:
    made = create_app(load_settings({"KELPIE_REDIS_URL": redis_url, "KELPIE_REDIS_TIMEOUT_S": "3"}))
    yield made
    made.close()


def ledger(app: KelpieApp) -> Any:
    return app.ledger.redis.connection_pool.get_connection()


def results(app: KelpieApp) -> Any:
    backend: Any = app.backend
    return backend.client.connection_pool.get_connection()


def broker(app: KelpieApp) -> Any:
    """What the consumer, remote control and events use."""
    channel: Any = app.connection_for_read().default_channel
    return channel.client.connection_pool.get_connection()


@pytest.mark.parametrize(("kind", "timeout_s"), [(ledger, 3.0), (results, 6.0), (broker, 6.0)])
def test_a_connection_that_is_silent_is_given_up_in_time(app: KelpieApp, kind: Any, timeout_s: float) -> None:
    connection = kind(app)
    connection.connect()
    try:
        assert (connection.socket_timeout, connection.socket_connect_timeout) == (timeout_s, timeout_s)
        assert connection.health_check_interval == 6
        sock: socket.socket = connection._sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert {name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in TCP} == TCP
    finally:
        connection.disconnect()


def test_the_defaults_are_shorter_than_the_shortest_lease() -> None:
    settings = load_settings({"KELPIE_REDIS_URL": "rediss://h"})
    assert 2 * settings.redis_timeout_s < settings.min_lease_s - settings.margin_s(settings.min_lease_s)
    assert 1 + 2 * health_check_s(settings.redis_timeout_s) < settings.deaf_s


def test_a_unix_socket_gets_no_options_that_it_does_not_know() -> None:
    assert "socket_keepalive" not in client_options(5.0, tcp=False)
    made: Any = connect("unix:///nowhere?db=1").connection_pool.make_connection()
    assert made.socket_timeout == 5.0
    app = create_app(load_settings({"KELPIE_REDIS_URL": "unix:///nowhere?db=1"}))
    backend: Any = app.backend
    assert "socket_keepalive_options" not in backend.connparams


def test_short_timeouts_make_whole_options() -> None:
    assert set(kernel_options(0.2).values()) == {3, 1, 6000}
    assert health_check_s(0.1) == 1
