"""A backend made of the graph's parts, each run by something else: a compiler, onnxruntime, an engine."""

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
    graph_text,
    parts_of,
    report_attention,
    unsupported_text,
)
from services.denoiser.network.wan import WanTransformer


@dataclass(frozen=True)
class Sizes:
    """Fewest, typical and most of a dimension: 1 <= min <= opt <= max, else ValueError."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ValueError(f"must be min <= opt <= max from 1 on, not {self.min}, {self.opt}, {self.max}")

    def covers(self, other: Sizes) -> bool:
        return self.min <= other.min and other.max <= self.max

    def fault(self, name: str, size: int) -> str | None:
        if self.min <= size <= self.max:
            return None
        return f"{size} {name}, outside {self.min} to {self.max}"


@dataclass(frozen=True)
class Profile:
    """What a graph is built for: tokens computed in a step, and tokens of a text."""

    tokens: Sizes
    keys: Sizes

    def covers(self, other: Profile) -> bool:
        """Whether it takes all that the other does."""
        return self.tokens.covers(other.tokens) and self.keys.covers(other.keys)

    def fault(self, tokens: int, keys: int) -> str | None:
        """Why such a step does not fit; None where it does."""
        return self.tokens.fault("tokens", tokens) or self.keys.fault("text tokens", keys)

    @classmethod
    def from_dict(cls, sizes: Mapping[str, Mapping[str, int]]) -> Profile:
        return cls(Sizes(**sizes["tokens"]), Sizes(**sizes["keys"]))


class PartRunner(ABC):
    """Runs one part of the graph: named tensors in, named tensors out, on the model's device."""

    @abstractmethod
    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Raises BackendError."""

    def close(self) -> None:  # noqa: B027  most hold nothing
        """Gives back what it holds."""


class GraphBackend(Backend):
    """Runs the graph's parts one after the other.

    Args:
        runners: one for each part of so many blocks.
        profile: what the parts were built for; None is any size.
        dtype: of tokens and texts, where the parts compute in another type than the network.
        plugin: whether the parts are those of the graph with the plugin.
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
        self._parts, self._plugin = parts_of(transformer, blocks_each, plugin=plugin), plugin
        self._watched = transformer.config.watched_heads
        if len(runners) != len(self._parts):
            raise BackendError(f"{name}: {len(runners)} parts for a network of {len(self._parts)}")

    @property
    def name(self) -> str:
        return self._name

    def unsupported(self, inputs: StepInputs) -> str | None:
        if fault := unsupported_text(inputs.text, self._plugin):
            return fault
        keys = [inputs.text.kv[0][0].shape[2]]
        for layer in inputs.text.layers or ():
            if layer is not None and layer.other is not None:
                keys.append(layer.other[0].shape[2])
        return self._profile.fault(inputs.tokens.shape[1], max(keys)) if self._profile else None

    def predict(self, inputs: StepInputs) -> Tensor:
        text = graph_text(inputs.text, inputs.tokens.shape[1])
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
                out = runner.run({**_select(values, part.inputs), **_text_of(text, part, dtype)})
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


def _text_of(text: GraphText, part: GraphPart, dtype: torch.dtype) -> dict[str, Tensor]:
    """A part's share of the text."""
    blocks = slice(part.blocks.start, part.blocks.stop)
    return {
        "text_kv": text.text_kv[blocks].to(dtype),
        "key_bias": text.key_bias[blocks],
        "strength": text.strength[blocks],
        "gate": text.gate,
        **({"gained": text.gained[blocks]} if part.plugin else {}),
    }
