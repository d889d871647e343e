"""`compiled`: the graph through torch's compiler, for any number of tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from services.denoiser.backends.base import BackendError
from services.denoiser.backends.graph import GraphPart, parts_of
from services.denoiser.backends.parts import GraphBackend, PartRunner
from services.denoiser.models.wan import WanTransformer


class _CompiledPart(PartRunner):
    def __init__(self, part: GraphPart) -> None:
        self._part = part
        # One compilation for any number of tokens and words: a region's size differs in every step.
        self._compiled = torch.compile(part, dynamic=True)

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        try:
            out = self._compiled(*(inputs[name] for name in self._part.inputs))
        except torch._dynamo.exc.TorchDynamoException as error:
            raise BackendError(f"torch.compile failed: {error}") from error
        return dict(zip(self._part.outputs, out, strict=True))


def compiled_backend(transformer: WanTransformer) -> GraphBackend:
    """Compiles at the first step of each number of texts, which takes a minute or so."""
    return GraphBackend(
        "compiled", transformer, 0, [_CompiledPart(part) for part in parts_of(transformer, 0)]
    )
