"""Models that the denoisers serve, kept in the job store so that jobs are accepted while they are down."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.scheduler.jobs.passing_faults import PassingFault
from services.scheduler.jobs.store import JobStore
from services.scheduler.peers.denoiser_pool import DenoiserPool

log = get_logger("model_registry")


class ModelRegistry:
    """Models in the denoisers' latest responses to DescribeModels."""

    def __init__(self, store: JobStore, denoisers: DenoiserPool) -> None:
        self._store = store
        self._denoisers = denoisers
        self._saving = asyncio.Lock()
        self._saved = b""

    async def load(self) -> None:
        """Loads the models that an earlier process saved."""
        self._saved = await self._store.load_models()
        self._denoisers.remember(denoiser_pb2.DescribeModelsResponse.FromString(self._saved).models)

    async def save(self) -> None:
        """Saves the models if they have changed. Models that cannot be saved now are used nevertheless."""
        async with self._saving:
            data = denoiser_pb2.DescribeModelsResponse(models=self.known()).SerializeToString()
            if data == self._saved:
                return
            try:
                await self._store.save_models(data)
            except PassingFault as fault:
                log.warning("models not saved", error=fault.message)
                return
            self._saved = data
            log.info("models updated", models=[model.model_id for model in self.known()])

    def known(self) -> Collection[denoiser_pb2.ModelInfo]:
        """Returns the models that are known now; none before a denoiser was ever reached."""
        return self._denoisers.models.values()

    async def models(self) -> Mapping[str, denoiser_pb2.ModelInfo]:
        """Returns the models by id, the first denoiser's first.

        Raises DEPENDENCY_UNAVAILABLE that names the denoiser while none has ever been reached.
        """
        if not self._denoisers.models:
            try:
                await self._denoisers.describe()
            except ChorusError as error:
                if error.reason == errors.DEPENDENCY_UNAVAILABLE:
                    raise
                raise errors.unavailable("denoiser", error.message) from error
            await self.save()
        return self._denoisers.models

    def model(self, model_id: str) -> denoiser_pb2.ModelInfo:
        """Returns one model. Raises UNKNOWN_MODEL if no denoiser serves it any more."""
        models = self._denoisers.models
        try:
            return models[model_id]
        except KeyError:
            raise ChorusError(
                errors.UNKNOWN_MODEL,
                f"the denoiser no longer serves {model_id!r}; available: {', '.join(models)}",
                metadata={"available": ",".join(models)},
            ) from None
