"""Client of the denoiser."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc

from services.scheduler.jobs.caller import Caller
from services.scheduler.peers.connection import PeerConnection

if TYPE_CHECKING:
    from chorus.denoiser.v1.denoiser_pb2_grpc import DenoiserServiceAsyncStub

SERVICE = denoiser_pb2.DESCRIPTOR.services_by_name["DenoiserService"].full_name

# A caller waits for this call only while no model has been seen yet.
_DESCRIBE_SECONDS = 5.0
# The denoiser answers without waiting for the device.
_PAUSE_SECONDS = 5.0


class DenoiserClient:
    """Describes models and runs plans."""

    def __init__(self, connection: PeerConnection) -> None:
        self.health = connection.health
        self._connection = connection
        self._stub: DenoiserServiceAsyncStub = denoiser_pb2_grpc.DenoiserServiceStub(connection.channel)

    async def describe_models(self) -> denoiser_pb2.DescribeModelsResponse:
        """Returns the models that the denoiser serves.

        Raises the errors of `PeerConnection.limit`; a denoiser that is known to be down fails without a call.
        """
        request = denoiser_pb2.DescribeModelsRequest()
        with self._connection.limit(None, _DESCRIBE_SECONDS) as timeout:
            if self.health.serving is False:
                raise self.health.unavailable()
            return await self._stub.DescribeModels(
                request, timeout=timeout, metadata=self._connection.metadata()
            )

    async def pause(self, generation_id: str, caller: Caller) -> None:
        """Ends a run at its next step.

        Raises the errors of `PeerConnection.limit`, and NOT_FOUND if the run cannot be paused.
        """
        request = denoiser_pb2.PauseRunRequest(generation_id=generation_id)
        with self._connection.limit(caller.deadline, _PAUSE_SECONDS) as timeout:
            await self._stub.PauseRun(
                request, timeout=timeout, metadata=self._connection.metadata(caller.tenant)
            )

    async def denoise(
        self, request: denoiser_pb2.DenoiseRequest, caller: Caller
    ) -> AsyncGenerator[denoiser_pb2.DenoiseResponse, None]:
        """Yields the replies of one run. Close the generator (`aclosing`) to cancel the run.

        Raises the errors of `PeerConnection.limit`.
        """
        with self._connection.limit(caller.deadline) as timeout:
            call = self._stub.Denoise(
                request, timeout=timeout, metadata=self._connection.metadata(caller.tenant)
            )
            try:
                async for reply in call:
                    yield reply
            finally:
                call.cancel()
