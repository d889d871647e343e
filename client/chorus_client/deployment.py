"""The deployment behind a scheduler: the caller's tenant, and the services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Self

from chorus.scheduler.v1 import scheduler_pb2

# "unknown" before the scheduler knows it, and for a state of a later version.
ServiceState = Literal["serving", "not serving", "unknown"]
_STATES: Final[Mapping[scheduler_pb2.ServiceState.ValueType, ServiceState]] = {
    scheduler_pb2.SERVICE_STATE_SERVING: "serving",
    scheduler_pb2.SERVICE_STATE_NOT_SERVING: "not serving",
}


@dataclass(frozen=True)
class Service:
    """A service, as the scheduler sees it.

    Attributes:
        name: "scheduler", "embedder", "cache" or "denoiser".
        address: address at which the scheduler calls it; empty for the scheduler itself, and for a caller
            with an API key.
        version: empty if it is not known, or the caller has an API key.
        detail: reason why it does not serve; empty as the version is.
    """

    name: str
    state: ServiceState
    address: str
    version: str
    detail: str

    @classmethod
    def from_proto(cls, message: scheduler_pb2.ServiceInfo) -> Self:
        state = _STATES.get(message.state, "unknown")
        return cls(message.name, state, message.address, message.version, message.detail)


@dataclass(frozen=True)
class ServerInfo:
    """What a scheduler tells a caller.

    Attributes:
        tenant: tenant of the caller's API key; empty if the scheduler needs no keys.
        services: the scheduler first. A caller with a key sees all denoisers as one service.
        denoisers_left_out: number of denoisers that are not among them.
    """

    tenant: str
    services: tuple[Service, ...]
    denoisers_left_out: int
    proto: scheduler_pb2.GetServerInfoResponse = field(repr=False, compare=False)

    @classmethod
    def from_proto(cls, message: scheduler_pb2.GetServerInfoResponse) -> Self:
        services = tuple(map(Service.from_proto, message.services))
        return cls(message.tenant, services, message.denoisers_left_out, message)
