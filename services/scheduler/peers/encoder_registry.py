"""Encoders that the embedder serves, and the models that they leave without token states."""

from __future__ import annotations

from collections.abc import Iterable

from chorus.denoiser.v1 import denoiser_pb2
from chorus.embedder.v1 import embedder_pb2
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, Violation

from services.runtime.logs import get_logger
from services.scheduler.peers.embedder import EmbedderClient

log = get_logger("encoder_registry")


class EncoderRegistry:
    """Encoders in the embedder's latest response to DescribeEncoders.

    Attributes:
        retrieval: encoder that finds donors; None while the embedder has not been reached.
    """

    def __init__(self, embedder: EmbedderClient) -> None:
        self._embedder = embedder
        self.retrieval: embedder_pb2.EncoderInfo | None = None
        self._served: tuple[str, ...] | None = None  # None while the embedder has not been reached

    async def refresh(self) -> None:
        """Requests the encoders from the embedder. On ChorusError the known encoders are kept."""
        reply = await self._embedder.describe_encoders()
        self._served = tuple(encoder.encoder_id for encoder in reply.encoders if encoder.conditioning)
        self.retrieval = next((encoder for encoder in reply.encoders if encoder.retrieval), None)

    def find_fault(self, model: denoiser_pb2.ModelInfo) -> str | None:
        """Describes why requests for a model would fail; returns None if its encoder is served or unknown."""
        encoder_id = model.conditioning_encoder_id
        if self._served is None or encoder_id in self._served:
            return None
        return (
            f"{model.model_id} cannot be served: its text.encoder_id is {encoder_id!r}, but the embedder"
            f" serves {', '.join(self._served) or 'none'}; correct text.encoder_id in the model file, or"
            " CHORUS_EMBEDDER_CONDITIONING"
        )

    def require_encoder(self, model: denoiser_pb2.ModelInfo) -> None:
        """Raises UNKNOWN_ENCODER with the cause if requests for the model would fail."""
        if (fault := self.find_fault(model)) is not None:
            raise ChorusError(
                errors.UNKNOWN_ENCODER,
                f"spec.model_id: {fault}",
                metadata={
                    "available": ",".join(self._served or ()),
                    "encoder_id": model.conditioning_encoder_id,
                },
                violations=[Violation("spec.model_id", fault)],
            )

    def warn_of_faults(self, models: Iterable[denoiser_pb2.ModelInfo]) -> None:
        """Logs a warning for each model that cannot be served."""
        for model in models:
            if (fault := self.find_fault(model)) is not None:
                log.warning("model cannot be served", model_id=model.model_id, cause=fault)
