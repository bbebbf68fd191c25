"""What may go over a network in the clear, and that certificates are always verified."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from kelpie_celery._transport import in_the_clear, is_loopback, tls_options, unverified, without_tls_options
from kelpie_celery.app import connect
from kelpie_celery.celery import create_app
from kelpie_celery.errors import SettingsError
from kelpie_celery.settings import load_settings

PASSWORD = "hunter2-canary"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.3.2.1", "::1"])
def test_this_machine_is_known_by_name_and_address(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "redis", "localhost.example", "10.0.0.1", "0.0.0.0", "::", "2130706433", "xlocalhost"]
)
def test_whatever_may_be_another_machine_counts_as_one(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "url", ["redis://redis:6379/0", "redis://10.0.0.5", "redis://[fd00::1]:6379", "http://minio:9000"]
)
def test_what_would_leave_the_machine_unencrypted_is_told(url: str) -> None:
    assert in_the_clear(url)


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:6379", "rediss://h", "unix:///run/r.sock", "https://s3", "http://[::1]:1"]
)
def test_what_does_not_is_not(url: str) -> None:
    assert not in_the_clear(url)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "KELPIE_REDIS_URL",
            f"redis://:{PASSWORD}@redis.example/0",
            "KELPIE_REDIS_URL: redis://***@redis.example/*** would carry",
        ),
        (
            "AWS_ENDPOINT_URL",
            f"http://u:{PASSWORD}@minio:9000",
            "http://***@minio:9000 would carry data to another machine",
        ),
    ],
)
def test_a_connection_in_the_clear_is_refused_unless_it_is_allowed(name: str, value: str, words: str) -> None:
    env = {"KELPIE_REDIS_URL": "rediss://h", name: value}
    with pytest.raises(SettingsError) as refused:
        load_settings(env)
    assert words in str(refused.value)
    assert "KELPIE_ALLOW_INSECURE=1" in str(refused.value)
    assert PASSWORD not in str(refused.value)
    assert load_settings({**env, "KELPIE_ALLOW_INSECURE": "1"}).allow_insecure


@pytest.mark.parametrize(
    "option",
    [
        "ssl_cert_reqs=none",
        "ssl_cert_reqs=CERT_NONE",
        "ssl_cert_reqs=optional",
        "ssl_cert_reqs=",
        "ssl_check_hostname=false",
        "ssl_check_hostname=0",
        "ssl_ca_certs=/ca.pem&ssl_cert_reqs=none",
    ],
)
@pytest.mark.parametrize("allowed", ["", "1"])
def test_nothing_turns_the_check_of_a_certificate_off(option: str, allowed: str) -> None:
    env = {"KELPIE_REDIS_URL": f"rediss://h/0?{option}", "KELPIE_ALLOW_INSECURE": allowed}
    with pytest.raises(SettingsError, match=r"KELPIE_REDIS_URL: ssl_\w+ must not turn the check"):
        load_settings(env)


@pytest.mark.parametrize(
    "option", ["", "?ssl_cert_reqs=required", "?ssl_cert_reqs=CERT_REQUIRED&ssl_check_hostname=true"]
)
def test_options_that_say_what_is_the_case_are_taken(option: str) -> None:
    assert unverified(f"rediss://h/0{option}") is None


def test_every_library_is_told_to_verify_the_certificate_and_the_name() -> None:
    url = "rediss://:p@h:1/2?ssl_ca_certs=/etc/ca.pem"
    app = create_app(load_settings({"KELPIE_REDIS_URL": url}))
    expected = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, "ssl_ca_certs": "/etc/ca.pem"}
    assert tls_options(url) == expected
    broker: Any = app.connection_for_read()
    assert broker.ssl == expected
    backend: Any = app.backend
    assert expected.items() <= backend.connparams.items()
    client = connect(url).connection_pool.connection_kwargs
    assert expected.items() <= client.items()
    assert without_tls_options(f"{url}&socket_timeout=3") == "rediss://:p@h:1/2?socket_timeout=3"
    assert str(app.conf.broker_use_ssl) == str(expected)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0?ssl_x=1", "unix:///run/redis.sock?db=2"])
def test_without_tls_nothing_is_said_of_it(url: str) -> None:
    assert tls_options(url) == {}
    assert without_tls_options(url) == url
