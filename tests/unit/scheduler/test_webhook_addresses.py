"""Verifies which addresses are public, and the list of those that are allowed in addition."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.settings import load_settings
from services.scheduler.settings import SchedulerSettings
from services.scheduler.webhook_addresses import AddressRules, is_public, parse_address, parse_rules, unwrap

IPV4 = st.ip_addresses(v=4)
IPV6 = st.ip_addresses(v=6)
# Around the edges of special networks, which random addresses seldom meet.
EDGES = st.sampled_from(
    [
        str(address)
        for text in ("10.0.0.0/8", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/4")
        for network in [ipaddress.IPv4Network(text)]
        for address in (network[0] - 1, network[0], network[-1])
    ]
).map(ipaddress.IPv4Address)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "0.0.0.0",
            "0.1.2.3",
            "10.255.255.255",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.0.1",
        ),
        *("168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1"),
        *("192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
        "127.255.0.1",
        *("239.255.255.250", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:192.168.0.1", "64:ff9b::10.0.0.1"),
        *("64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:c0a8:101::1", "3fff::1"),
        *("5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "4000::1"),
    ],
)
def test_special_address_is_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "172.32.0.1", "192.169.0.1", "223.255.255.255"),
        *("2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"),
    ],
)
def test_other_address_is_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@given(IPV4 | EDGES)
def test_public_ipv4_is_global_by_the_standard_library(address: ipaddress.IPv4Address) -> None:
    if is_public(address):
        assert address.is_global
        assert not any((address.is_multicast, address.is_reserved, address.is_loopback))


@given(IPV6)
def test_public_ipv6_is_global_by_the_standard_library(address: ipaddress.IPv6Address) -> None:
    if is_public(address) and unwrap(address) is address:
        assert address.is_global
        assert not any((address.is_multicast, address.is_reserved, address.is_link_local))


@given(IPV4 | EDGES, st.integers(0, 2**80 - 1))
def test_address_that_contains_another_counts_as_that(address: ipaddress.IPv4Address, rest: int) -> None:
    inner = int(address)
    for outer in (
        (0xFFFF << 32) + inner,
        (0x64FF9B << 96) + inner,
        (0x2002 << 112) + (inner << 80) + rest,
    ):
        assert is_public(ipaddress.IPv6Address(outer)) == is_public(address)


@given(IPV6, st.text("abc0123456789", min_size=1, max_size=8))
def test_address_with_an_interface_is_none(address: ipaddress.IPv6Address, scope: str) -> None:
    assert parse_address(str(address)) == address
    assert parse_address(f"{address}%{scope}") is None


@given(IPV4 | IPV6)
def test_nothing_but_the_public_is_allowed_by_default(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assert AddressRules().allows("a.example", address) == is_public(address)


def test_networks_and_hosts_are_allowed_in_addition() -> None:
    rules = parse_rules(["10.1.0.0/16", "fd00::/8", "127.0.0.1", "Hooks.Internal"])

    def allows(host: str, address: str) -> bool:
        return rules.allows(host, ipaddress.ip_address(address))

    for address in ("10.1.2.3", "fd12::1", "127.0.0.1", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "8.8.8.8"):
        assert allows("a.example", address), address
    for address in ("10.2.0.1", "127.0.0.2", "fe80::1", "::1"):
        assert not allows("a.example", address), address
        assert allows("hooks.internal", address), address


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("10.0.0.1/8", "'10.0.0.1/8' is no network such as 10.1.0.0/16"),
        ("10.0.0.0/33", "is no network"),
        ("https://a.example", "is no network"),
        ("a.example:443", "must be a network such as 10.1.0.0/16, or a host name"),
        ("a,a", "names 'a' twice"),
        (",".join(f"h{number}" for number in range(65)), "at most 64 items"),
    ],
)
def test_wrong_list_is_rejected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, fault: str
) -> None:
    monkeypatch.setenv("CHORUS_SCHEDULER_WEBHOOK_ALLOWED", text)
    with pytest.raises(SystemExit):
        load_settings(SchedulerSettings)
    error = capsys.readouterr().err
    assert error.startswith("CHORUS_SCHEDULER_WEBHOOK_ALLOWED: ")
    assert fault in error


def test_list_and_pauses_are_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHORUS_SCHEDULER_WEBHOOK_ALLOWED", "10.0.0.0/8, hooks")
    assert load_settings(SchedulerSettings).webhook_allowed == ("10.0.0.0/8", "hooks")
    monkeypatch.setenv("CHORUS_SCHEDULER_WEBHOOK_RETRY_SECONDS", "60")
    monkeypatch.setenv("CHORUS_SCHEDULER_WEBHOOK_MAX_RETRY_SECONDS", "59")
    with pytest.raises(SystemExit):
        load_settings(SchedulerSettings)
    assert "must be at least CHORUS_SCHEDULER_WEBHOOK_RETRY_SECONDS, 60, not 59" in capsys.readouterr().err
