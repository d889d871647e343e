"""Verifies addresses as text: hosts, ports in brackets, targets of channels."""

from __future__ import annotations

import pytest
from chorus_rpc import errors
from chorus_rpc.addresses import is_wildcard, join_host_port, parse_host, parse_target
from chorus_rpc.channels import open_channel
from chorus_rpc.errors import ChorusError

pytestmark = pytest.mark.fault("helm")


@pytest.mark.parametrize(
    ("host", "joined"),
    [
        ("127.0.0.1", "127.0.0.1:7400"),
        ("0.0.0.0", "0.0.0.0:7400"),
        ("::", "[::]:7400"),
        ("[::]", "[::]:7400"),
        ("::1", "[::1]:7400"),
        ("[2001:db8::7]", "[2001:db8::7]:7400"),
        ("fe80::1%eth0", "[fe80::1%eth0]:7400"),
        ("localhost", "localhost:7400"),
        ("cache-0.cache.video.svc", "cache-0.cache.video.svc:7400"),
    ],
)
def test_host_and_port_are_joined_with_brackets_around_ipv6(host: str, joined: str) -> None:
    assert join_host_port(parse_host(host), 7400) == joined


@pytest.mark.parametrize(
    "host", ["", "127.0.0.1:7400", "[::1]:7400", "[127.0.0.1]", "[::1", "unix:/run/chorus", "http://x", "a b"]
)
def test_host_with_a_port_or_scheme_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="must "):
        parse_host(host)


def test_wildcards_are_recognised() -> None:
    hosts = ("0.0.0.0", "::", "127.0.0.1", "::1", "localhost")
    assert [is_wildcard(host) for host in hosts] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("cache:7402", "dns:///cache:7402"),
        ("127.0.0.1:7402", "dns:///127.0.0.1:7402"),
        ("[::1]:7402", "dns:///[::1]:7402"),
        ("dns:7402", "dns:///dns:7402"),
        ("dns:///cache:7402", "dns:///cache:7402"),
        ("dns:cache:7402", "dns:cache:7402"),
        ("unix:/run/chorus.sock", "unix:/run/chorus.sock"),
        ("ipv6:[::1]:7402", "ipv6:[::1]:7402"),
        ("ipv4:10.0.0.1:7402,10.0.0.2:7402", "ipv4:10.0.0.1:7402,10.0.0.2:7402"),
    ],
)
def test_target_becomes_a_name_of_grpc(target: str, name: str) -> None:
    assert parse_target(target) == name


@pytest.mark.parametrize("target", ["::1:7400", "2001:db8::7:7400", "::1"])
async def test_ipv6_target_without_brackets_is_refused_by_the_channel(target: str) -> None:
    with pytest.raises(ChorusError, match="brackets") as caught:
        open_channel(target)
    assert caught.value.reason == errors.INVALID_FIELD


async def test_url_is_refused_by_the_channel() -> None:
    with pytest.raises(ChorusError, match="without the scheme"):
        open_channel("https://cache:7402")
