"""Which addresses count as public: none that leads inside, in whatever disguise."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie_scaler.webhooks.addresses import (
    ForbiddenAddress,
    UnknownHost,
    allowed_addresses,
    is_public,
    system_resolver,
)

INSIDE = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.8.8.8", "169.254.169.254", "172.16.0.1", "172.31.255.255",
    "192.0.0.1", "192.0.2.1", "192.168.1.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1",
    "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1",
    "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:7f00:1", "::127.0.0.1",
    "64:ff9b::127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::", "2002:a9fe:a9fe::1",
    "2001:0:7f00:1::", "100::1", "", "localhost", "not an address", "1", "127.1", "0x7f000001",
    "168.63.129.16", "192.0.0.192", "192.88.99.1", "::ffff:192.0.0.192", "3fff::1",  # not by Python's tables
]  # fmt: skip
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "2606:4700::1111",
    "2a00:1450:4001::1",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_inside_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_open_internet_is_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_no_wrapping_makes_an_inside_address_public(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    wrapped = [
        ipaddress.IPv6Address(0xFFFF_0000_0000 + number),
        ipaddress.IPv6Address(number),
        ipaddress.IPv6Address((0x0064_FF9B << 96) + number),
        ipaddress.IPv6Address((0x2002 << 112) + (number << 80)),
    ]
    leads_inside = any(
        address in ipaddress.ip_network(one) for one in ("168.63.129.16", "192.0.0.0/24", "192.88.99.0/24")
    )
    inside = not address.is_global or address.is_multicast or leads_inside
    assert is_public(str(address)) is not inside
    if inside:
        assert not any(is_public(str(each)) for each in wrapped)


@given(st.ip_addresses(v=6) | st.ip_addresses(v=4) | st.text(max_size=20))
def test_any_text_is_judged(address: Any) -> None:
    assert is_public(str(address)) in (True, False)


def test_one_address_inside_forbids_the_host() -> None:
    with pytest.raises(ForbiddenAddress, match=r"hooks\.example has the address 10\.0\.0\.1, which is not public"):
        allowed_addresses("hooks.example", 443, allow_private=False, resolve=lambda *_: ["8.8.8.8", "10.0.0.1"])


def test_a_setting_allows_any_address() -> None:
    assert allowed_addresses("h", 1, allow_private=True, resolve=lambda *_: ["10.0.0.1"]) == ["10.0.0.1"]


def test_each_address_counts_once_and_few_are_tried() -> None:
    many = ["8.8.8.1", "8.8.8.1", "8.8.8.2", "8.8.8.3", "8.8.8.4"]
    found = allowed_addresses("h", 1, allow_private=False, resolve=lambda *_: many)
    assert found == ["8.8.8.1", "8.8.8.2", "8.8.8.3"]


def test_a_host_without_an_address_is_told() -> None:
    with pytest.raises(UnknownHost, match="has no address"):
        allowed_addresses("h", 1, allow_private=True, resolve=lambda *_: [])


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
def test_a_name_that_cannot_be_looked_up_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(UnknownHost, match=r"^the host h cannot be looked up"):
        system_resolver("h", 1)
