"""Verifies which hosts count as this machine, and that they are exempt from proxies."""

from __future__ import annotations

import pytest
from chorus_rpc.proxies import exempt_loopback, is_loopback

pytestmark = pytest.mark.fault("proxy")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:7400", True),
        ("127.1.2.3:7400", True),
        ("localhost:7400", True),
        ("LOCALHOST", True),
        ("[::1]:7400", True),
        ("dns:///localhost:7400", True),
        ("dns://8.8.8.8/localhost:7400", True),
        ("ipv4:127.0.0.1:7400", True),
        ("unix:/run/chorus.sock", True),
        ("0.0.0.0:7400", True),
        ("[::]:7400", True),
        ("localhost.:7400", True),
        ("localhost.", True),
        ("::ffff:127.0.0.1", True),
        ("[::ffff:127.0.0.1]:7400", True),
        ("[::ffff:10.0.0.1]:7400", False),
        ("chorus.example:7400", False),
        ("dns:///chorus.example:443", False),
        ("10.0.0.1:7400", False),
        ("[2001:db8::1]:7400", False),
        ("localhost.example:7400", False),
    ],
)
def test_loopback_targets_are_recognised(target: str, expected: bool) -> None:
    assert is_loopback(target) == expected


def test_loopback_is_added_to_the_exemptions_once() -> None:
    environment = {"NO_PROXY": "example.com, 127.0.0.1", "no_grpc_proxy": ""}
    exempt_loopback(environment)
    expected = {
        "no_proxy": "localhost,127.0.0.1,::1",
        "NO_PROXY": "example.com,127.0.0.1,localhost,::1",
        "no_grpc_proxy": "",
    }
    assert environment == expected
    exempt_loopback(environment)
    assert environment == expected


def test_wildcard_is_left_alone() -> None:
    """urllib exempts every host only if the variable is exactly "*"."""
    environment = {"no_proxy": "*", "NO_PROXY": "*"}
    exempt_loopback(environment)
    assert environment == {"no_proxy": "*", "NO_PROXY": "*"}
