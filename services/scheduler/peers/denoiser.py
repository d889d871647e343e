"""Client of the denoiser."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus_rpc import errors
from chorus_rpc.channels import calling
from chorus_rpc.errors import ChorusError

from services.scheduler.jobs.deadline import Deadline
from services.scheduler.peers.connection import PeerConnection

if TYPE_CHECKING:
    from chorus.denoiser.v1.denoiser_pb2_grpc import DenoiserServiceAsyncStub

SERVICE = denoiser_pb2.DESCRIPTOR.services_by_name["DenoiserService"].full_name

# A caller waits for this call only while no model has been seen yet.
_DESCRIBE_SECONDS = 5.0


class DenoiserClient:
    """Describes models and runs plans."""

    def __init__(self, connection: PeerConnection) -> None:
        self.health = connection.health
        self._connection = connection
        self._stub: DenoiserServiceAsyncStub = denoiser_pb2_grpc.DenoiserServiceStub(connection.channel)

    async def describe_models(self) -> denoiser_pb2.DescribeModelsResponse:
        """Returns the models that the denoiser serves. Raises ChorusError."""
        request = denoiser_pb2.DescribeModelsRequest()
        try:
            with calling(self._connection.name):
                return await self._stub.DescribeModels(
                    request, timeout=_DESCRIBE_SECONDS, metadata=self._connection.metadata
                )
        except ChorusError as error:
            if error.reason != errors.DEADLINE_EXCEEDED:
                raise
            cause = f"it did not describe its models in {_DESCRIBE_SECONDS:g} s"
            raise errors.unavailable(self._connection.name, cause) from error

    async def denoise(
        self, request: denoiser_pb2.DenoiseRequest, deadline: Deadline
    ) -> AsyncGenerator[denoiser_pb2.DenoiseResponse, None]:
        """Yields the replies of one run. Close the generator (`aclosing`) to cancel the run.

        Raises the errors of `PeerConnection.limit`.
        """
        with self._connection.limit(deadline) as timeout:
            call = self._stub.Denoise(request, timeout=timeout, metadata=self._connection.metadata)
            try:
                async for reply in call:
                    yield reply
            finally:
                call.cancel()
