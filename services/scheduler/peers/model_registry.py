"""The models that the denoiser serves, remembered, so that jobs are accepted while it is away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc import errors
from chorus_rpc.channels import calling
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.scheduler.jobs.store import JobStore

if TYPE_CHECKING:
    from chorus.denoiser.v1.denoiser_pb2_grpc import DenoiserServiceAsyncStub

log = get_logger("catalogue")

# A caller waits for it only while no model was ever seen.
_DESCRIBE_SECONDS = 5.0


class ModelRegistry:
    """The newest answer of DescribeModels, kept in the job store."""

    def __init__(
        self, store: JobStore, denoiser: DenoiserServiceAsyncStub, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        self._store = store
        self._denoiser = denoiser
        self._metadata = metadata
        self._models: dict[str, denoiser_pb2.ModelInfo] = {}

    async def load(self) -> None:
        """What was known before this process."""
        self._take(denoiser_pb2.DescribeModelsResponse.FromString(await self._store.load_models()))

    async def refresh(self) -> None:
        """Asks the denoiser; keeps what is known when it does not answer, and raises ChorusError."""
        with calling("denoiser"):
            reply = await self._denoiser.DescribeModels(
                denoiser_pb2.DescribeModelsRequest(), timeout=_DESCRIBE_SECONDS, metadata=self._metadata
            )
        if not reply.models:
            raise errors.unavailable("denoiser", "it serves no model yet")
        self._take(reply)
        await self._store.save_models(reply.SerializeToString())
        log.info("models known", models=list(self._models))

    async def models(self) -> Mapping[str, denoiser_pb2.ModelInfo]:
        """By id, in the denoiser's order.

        Raises DEPENDENCY_UNAVAILABLE that names the denoiser when it was never reached and is not now.
        """
        if not self._models:
            try:
                await self.refresh()
            except ChorusError as error:
                if error.reason == errors.DEPENDENCY_UNAVAILABLE:
                    raise
                raise errors.unavailable("denoiser", error.message) from error
        return self._models

    def model(self, model_id: str) -> denoiser_pb2.ModelInfo:
        """Raises UNKNOWN_MODEL when the denoiser no longer serves it."""
        try:
            return self._models[model_id]
        except KeyError:
            raise ChorusError(
                errors.UNKNOWN_MODEL,
                f"the denoiser no longer serves {model_id!r}; available: {', '.join(self._models)}",
                metadata={"available": ",".join(self._models)},
            ) from None

    def _take(self, reply: denoiser_pb2.DescribeModelsResponse) -> None:
        self._models = {model.model_id: model for model in reply.models}
