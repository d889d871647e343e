"""Backend composed of graph parts that a runtime executes: torch.compile, onnxruntime or TensorRT."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.denoiser.backends.base import Backend, BackendError, StepInputs
from services.denoiser.backends.eager import fast_attention
from services.denoiser.backends.graph import (
    TEXT_INPUTS,
    GraphPart,
    GraphText,
    build_graph_text,
    report_attention,
    split_into_parts,
    unsupported_text_reason,
)
from services.denoiser.network.wan import WanTransformer


@dataclass(frozen=True)
class Sizes:
    """Range of a dynamic dimension.

    Attributes:
        min: Smallest size, at least 1.
        opt: Typical size, for which the engine is optimised.
        max: Largest size.

    Raises:
        ValueError: The sizes do not ascend, or the smallest is below 1.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ValueError(f"must be 1 <= min <= opt <= max, not {self.min}, {self.opt}, {self.max}")

    def covers(self, other: Sizes) -> bool:
        return self.min <= other.min and other.max <= self.max

    def unsupported_reason(self, name: str, size: int) -> str | None:
        if self.min <= size <= self.max:
            return None
        return f"{size} {name}, outside {self.min} to {self.max}"


@dataclass(frozen=True)
class Profile:
    """Sizes that a graph is built for.

    Attributes:
        tokens: Video tokens computed in a step.
        keys: Tokens of a text.
    """

    tokens: Sizes
    keys: Sizes

    def covers(self, other: Profile) -> bool:
        """Returns whether this profile supports all sizes of the other one."""
        return self.tokens.covers(other.tokens) and self.keys.covers(other.keys)

    def unsupported_reason(self, tokens: int, keys: int) -> str | None:
        """Returns the reason why a step of these sizes does not fit, or None if it does."""
        return self.tokens.unsupported_reason("tokens", tokens) or self.keys.unsupported_reason(
            "text tokens", keys
        )

    @classmethod
    def from_dict(cls, sizes: Mapping[str, Mapping[str, int]]) -> Profile:
        return cls(Sizes(**sizes["tokens"]), Sizes(**sizes["keys"]))


class PartRunner(ABC):
    """Runs one part of the graph on the model's device. Inputs and outputs are tensors by name."""

    @abstractmethod
    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Runs the part. Raises BackendError."""

    def close(self) -> None:  # noqa: B027  most runners hold no resources
        """Releases the runner's resources."""


class GraphBackend(Backend):
    """Runs the parts of the graph in sequence.

    Args:
        name: Name of the backend in the settings.
        blocks_each: Number of blocks in each part; 0 for a single part.
        runners: One runner per part.
        profile: Sizes that the parts were built for; None for any size.
        dtype: Type of tokens and texts, if the parts compute in a different type than the network.
        plugin: Whether the parts belong to the plugin graph.
    """

    def __init__(
        self,
        name: str,
        transformer: WanTransformer,
        blocks_each: int,
        runners: Sequence[PartRunner],
        *,
        profile: Profile | None = None,
        dtype: torch.dtype | None = None,
        plugin: bool = False,
    ) -> None:
        self._name, self._runners, self._profile, self._dtype = name, runners, profile, dtype
        self._parts, self._plugin = split_into_parts(transformer, blocks_each, plugin=plugin), plugin
        self._watched = transformer.config.watched_heads
        if len(runners) != len(self._parts):
            raise BackendError(f"{name}: {len(runners)} parts for a network with {len(self._parts)}")

    @property
    def name(self) -> str:
        return self._name

    def unsupported_reason(self, inputs: StepInputs) -> str | None:
        if reason := unsupported_text_reason(inputs.text, self._plugin):
            return reason
        keys = [inputs.text.kv[0][0].shape[2]]
        for layer in inputs.text.layers or ():
            if layer is not None and layer.other is not None:
                keys.append(layer.other[0].shape[2])
        if self._profile is None:
            return None
        return self._profile.unsupported_reason(inputs.tokens.shape[1], max(keys))

    def predict(self, inputs: StepInputs) -> Tensor:
        text = build_graph_text(inputs.text, inputs.tokens.shape[1])
        dtype = self._dtype or inputs.tokens.dtype
        values = {
            "tokens": inputs.tokens.to(dtype),
            "timestep": inputs.timestep,
            "rope_cos": inputs.rope_cos,
            "rope_sin": inputs.rope_sin,
        }
        queries = []
        with fast_attention(inputs.tokens.device):
            for part, runner in zip(self._parts, self._runners, strict=True):
                out = runner.run({**_select(values, part.inputs), **_slice_text(text, part, dtype)})
                if "queries" in out:
                    queries.append(out["queries"])
                values.update({name.removesuffix("_out"): tensor for name, tensor in out.items()})
        if inputs.on_attention is not None:
            report_attention(
                self._watched, torch.cat(queries).to(inputs.tokens.dtype), inputs.text, inputs.on_attention
            )
        return values["prediction"].to(inputs.tokens.dtype)

    def close(self) -> None:
        for runner in self._runners:
            runner.close()


def _select(values: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    return {name: values[name] for name in names if name not in TEXT_INPUTS}


def _slice_text(text: GraphText, part: GraphPart, dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns the text inputs for the blocks of one part."""
    blocks = slice(part.blocks.start, part.blocks.stop)
    return {
        "text_kv": text.text_kv[blocks].to(dtype),
        "key_bias": text.key_bias[blocks],
        "strength": text.strength[blocks],
        "gate": text.gate,
        **({"gained": text.gained[blocks]} if part.plugin else {}),
    }
