"""What the scheduler says of itself and of the services that it uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from chorus.scheduler.v1 import scheduler_pb2 as pb

from services.runtime.version import VERSION
from services.scheduler.peers.denoiser_pool import DenoiserPool
from services.scheduler.peers.health import Peer, PeerHealth
from services.scheduler.peers.pooled_denoiser import PooledDenoiser

# Upper bound on the denoisers of one answer.
_LISTED_DENOISERS: Final = 100
_SELF: Final = "scheduler"


class ServerInfo:
    """Describes the deployment to callers.

    Args:
        peers: the services other than denoisers.
        confidential: whether callers are tenants with keys: they learn which services serve, and neither
            where these are nor which versions they have.
    """

    def __init__(self, peers: Sequence[PeerHealth], denoisers: DenoiserPool, *, confidential: bool) -> None:
        self._peers = peers
        self._denoisers = denoisers
        self._confidential = confidential

    def describe(self, tenant: str) -> pb.GetServerInfoResponse:
        """Returns the answer to a caller of a tenant."""
        if self._confidential:
            serving: Iterable[Peer] = (*self._peers, self._denoisers)
            return pb.GetServerInfoResponse(
                tenant=tenant,
                services=[
                    pb.ServiceInfo(name=_SELF, state=pb.SERVICE_STATE_SERVING),
                    *(pb.ServiceInfo(name=each.name, state=_to_state(each.serving)) for each in serving),
                ],
            )
        members = self._denoisers.members
        return pb.GetServerInfoResponse(
            services=[
                pb.ServiceInfo(name=_SELF, state=pb.SERVICE_STATE_SERVING, version=VERSION),
                *map(_describe_peer, self._peers),
                *map(_describe_denoiser, members[:_LISTED_DENOISERS]),
            ],
            denoisers_left_out=max(0, len(members) - _LISTED_DENOISERS),
        )


def _describe_peer(peer: PeerHealth) -> pb.ServiceInfo:
    return _describe(peer, peer.serving, peer.target, peer.version)


def _describe_denoiser(denoiser: PooledDenoiser) -> pb.ServiceInfo:
    ready = None if denoiser.undecided else denoiser.ready
    return _describe(denoiser, ready, denoiser.address, denoiser.version)


def _describe(
    service: PeerHealth | PooledDenoiser, serving: bool | None, address: str, version: str
) -> pb.ServiceInfo:
    found = pb.ServiceInfo(name=service.name, state=_to_state(serving), address=address)
    if serving:
        found.version = version
    elif serving is False:
        found.detail = service.unavailable().message
    return found


def _to_state(serving: bool | None) -> pb.ServiceState.ValueType:
    if serving is None:
        return pb.SERVICE_STATE_UNSPECIFIED
    return pb.SERVICE_STATE_SERVING if serving else pb.SERVICE_STATE_NOT_SERVING
