"""Verifies how the addresses of denoisers are found."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import pytest

from services.scheduler.peers.discovery import MAX_DENOISERS, Discovery, resolve_host


class Names:
    """DNS with these addresses by host; a host without any cannot be resolved."""

    def __init__(self, **addresses: list[str]) -> None:
        self.addresses = addresses

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        if host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [f"{address}:{port}" for address in self.addresses[host]]


@pytest.mark.parametrize(
    "target", ["127.0.0.1:7403", "denoiser:7403", "unix:/run/d.sock", "dns://10.0.0.1/host:7403", "dns:7403"]
)
async def test_other_names_are_one_denoiser_each(target: str) -> None:
    found = Discovery([target], Names().resolve)
    assert not found.changes
    assert await found.find() == [target]


@pytest.mark.parametrize("target", ["dns:///gpus:7403", "dns:gpus:7403"])
async def test_each_address_of_a_dns_name_is_a_denoiser(target: str) -> None:
    names = Names(gpus=["10.0.0.2", "10.0.0.3"])
    found = Discovery(["10.0.0.1:7403", target, "dns:///[::1]:7403"], names.resolve)
    names.addresses["::1"] = ["[::1]"]
    assert found.changes
    assert await found.find() == ["10.0.0.1:7403", "10.0.0.2:7403", "10.0.0.3:7403", "[::1]:7403"]
    names.addresses["gpus"] = ["10.0.0.3", "10.0.0.1"]
    assert await found.find() == ["10.0.0.1:7403", "10.0.0.3:7403", "[::1]:7403"], "each is listed once"


async def test_name_that_cannot_be_resolved_keeps_its_addresses() -> None:
    names = Names()
    found = Discovery(["dns:///gpus:7403", "dns:///more:7403"], names.resolve)
    assert await found.find() == []
    assert "dns:///gpus:7403 cannot be resolved" in found.fault
    names.addresses.update(gpus=["10.0.0.2"], more=["10.0.0.3"])
    assert await found.find() == ["10.0.0.2:7403", "10.0.0.3:7403"]
    assert not found.fault
    del names.addresses["gpus"]
    assert await found.find() == ["10.0.0.2:7403", "10.0.0.3:7403"]
    assert not found.fault, "its denoisers are known"


async def test_number_of_denoisers_is_bounded() -> None:
    names = Names(gpus=[f"10.0.{n // 250}.{n % 250}" for n in range(MAX_DENOISERS + 1)])
    assert len(await Discovery(["dns:///gpus:7403"], names.resolve).find()) == MAX_DENOISERS


async def test_host_with_two_families_is_one_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Any] = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::2", 7403, 0, 0)),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", 7403, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 7403)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: rows)
    assert await resolve_host("gpus", 7403) == ["[fd00::1]:7403", "[fd00::2]:7403"]


async def test_this_machine_is_resolved() -> None:
    assert await resolve_host("127.0.0.1", 7403) == ["127.0.0.1:7403"]


async def test_server_that_does_not_answer_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def time_out(host: str, port: int) -> Sequence[str]:
        raise TimeoutError

    found = Discovery(["dns:///gpus:7403"], time_out)
    assert await found.find() == []
    assert found.fault == "dns:///gpus:7403 cannot be resolved: no answer in time"
