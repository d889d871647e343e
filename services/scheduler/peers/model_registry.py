"""Models that the denoiser serves, kept in the job store so that jobs are accepted while it is down."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.scheduler.jobs.passing_faults import PassingFault
from services.scheduler.jobs.store import JobStore
from services.scheduler.peers.denoiser import DenoiserClient

log = get_logger("model_registry")


class ModelRegistry:
    """Models in the denoiser's latest response to DescribeModels."""

    def __init__(self, store: JobStore, denoiser: DenoiserClient) -> None:
        self._store = store
        self._denoiser = denoiser
        self._models: dict[str, denoiser_pb2.ModelInfo] = {}

    async def load(self) -> None:
        """Loads the models that an earlier process saved."""
        self._replace(denoiser_pb2.DescribeModelsResponse.FromString(await self._store.load_models()))

    async def refresh(self) -> None:
        """Requests the models from the denoiser and saves them. On ChorusError the known models are kept.

        Models that cannot be saved now are used nevertheless.
        """
        reply = await self._denoiser.describe_models()
        if not reply.models:
            raise errors.unavailable("denoiser", "it serves no model yet")
        self._replace(reply)
        try:
            await self._store.save_models(reply.SerializeToString())
        except PassingFault as fault:
            log.warning("models not saved", error=fault.message)
        log.info("models updated", models=list(self._models))

    def known(self) -> Collection[denoiser_pb2.ModelInfo]:
        """Returns the models that are known now; none before the denoiser was ever reached."""
        return self._models.values()

    async def models(self) -> Mapping[str, denoiser_pb2.ModelInfo]:
        """Returns the models by id, in the denoiser's order.

        Raises DEPENDENCY_UNAVAILABLE that names the denoiser while it has never been reached.
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
        """Returns one model. Raises UNKNOWN_MODEL if the denoiser no longer serves it."""
        try:
            return self._models[model_id]
        except KeyError:
            raise ChorusError(
                errors.UNKNOWN_MODEL,
                f"the denoiser no longer serves {model_id!r}; available: {', '.join(self._models)}",
                metadata={"available": ",".join(self._models)},
            ) from None

    def _replace(self, reply: denoiser_pb2.DescribeModelsResponse) -> None:
        self._models = {model.model_id: model for model in reply.models}
