"""Adapters (LoRA): files of small changes to the weights of a network, merged into them at load time.

A file holds, for some of the parameters, two factors whose product is added (`down`, `up`), or the whole
difference (`diff`). The formats of diffusers and PEFT, of LightX2V and of Kohya's tools are supported:

    transformer.blocks.0.attn1.to_q.lora_A.weight, .lora_B.weight            diffusers, PEFT
    diffusion_model.blocks.0.self_attn.q.lora_down.weight, .lora_up.weight   LightX2V; .alpha if not the rank
    diffusion_model.blocks.0.norm3.diff, .diff_b, blocks.0.diff_m            weight, bias, modulation
    lora_unet_blocks_0_self_attn_q.lora_down.weight                          Kohya

Sources: LoRA, arXiv 2106.09685; the names as diffusers' loaders/lora_conversion_utils.py reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from services.contract.safetensors_header import SafetensorsHeader
from services.denoiser.checkpoint.names import strip_prefix, to_original_name
from services.denoiser.checkpoint.weights import (
    WeightsError,
    read_header,
    read_tensors,
    verify_digest,
    weight_files,
)

Part = Literal["down", "up", "alpha", "diff"]
_SUFFIXES: tuple[tuple[str, Part, str], ...] = (  # name in the file, part, name of the changed tensor
    (r"\.lora_(A|down)(\.default)?\.weight$", "down", ".weight"),
    (r"\.lora_(B|up)(\.default)?\.weight$", "up", ".weight"),
    (r"\.alpha$", "alpha", ".weight"),
    (r"\.diff$", "diff", ".weight"),
    (r"\.diff_b$", "diff", ".bias"),
    (r"\.diff_m$", "diff", ".modulation"),
)


@dataclass(frozen=True)
class _Change:
    """Change of one parameter: factor * up @ down, or the whole difference."""

    diff: Tensor | None = None
    up: Tensor | None = None  # [out, r]
    down: Tensor | None = None  # [r, in]
    factor: float = 1.0  # alpha / r

    def compute(self, weight: Tensor) -> Tensor:
        """Returns the change in float32, with the shape and on the device of `weight`."""
        if self.diff is not None:
            return self.diff.to(weight.device).float()
        assert self.up is not None
        assert self.down is not None
        up, down = (t.to(weight.device).float().flatten(1) for t in (self.up, self.down))
        return self.factor * (up @ down).view_as(weight)


@dataclass(frozen=True)
class Adapter:
    """Properties of an adapter that are part of the identity of latents.

    Attributes:
        digest: SHA-256 of the file, lower-case hex.
        scale: Factor with which the adapter is merged; 1 is as trained.
    """

    id: str
    digest: str
    scale: float


class Lora:
    """Changes of one adapter, checked against the network, in their stored types."""

    def __init__(self, adapter: Adapter, changes: Mapping[str, _Change]) -> None:
        self.adapter = adapter
        self._changes = changes

    @classmethod
    def load(
        cls,
        path: Path,
        expected: Mapping[str, torch.Size],
        *,
        id: str,
        scale: float = 1.0,
        sha256: str | None = None,
    ) -> Lora:
        """Reads a safetensors file. Raises WeightsError for a tensor that does not fit the network.

        Args:
            expected: Shape of every parameter of the network.
        """
        file, *others = weight_files(path)
        if others:
            raise WeightsError(path, "an adapter must be one safetensors file")
        header = read_header(file)
        places = _locate_parameters(file, header, expected)
        digest = verify_digest(file, sha256)
        parts: dict[str, dict[Part, Tensor]] = {}
        for name, tensor in read_tensors(file):
            parameter, part = places[name]
            parts.setdefault(parameter, {})[part] = tensor
        alpha = _read_alpha(file, header)
        changes = {
            name: _create_change(file, name, found, expected[name], alpha) for name, found in parts.items()
        }
        return cls(Adapter(id, digest, scale), changes)

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """Returns a parameter with its change, in float32; unchanged if the adapter does not contain it."""
        change = self._changes.get(name)
        return weight if change is None else weight.float() + self.adapter.scale * change.compute(weight)


def _locate_parameters(
    file: Path, header: SafetensorsHeader, expected: Iterable[str]
) -> dict[str, tuple[str, Part]]:
    """Returns for every tensor of the file the parameter that it changes, and its part of the change."""
    known: dict[str, str] = {}
    for name in expected:
        original = to_original_name(name)
        module, _, leaf = original.rpartition(".")
        known |= {name: name, original: name, f"lora_unet_{module.replace('.', '_')}.{leaf}": name}
    places: dict[str, tuple[str, Part]] = {}
    for name in (tensor.name for tensor in header.tensors):
        for pattern, part, leaf in _SUFFIXES:
            module, count = re.subn(pattern, "", strip_prefix(name))
            if count and (parameter := known.get(module + leaf)):
                places[name] = (parameter, part)
                break
        else:
            raise WeightsError(file, f"tensor {name}: changes no known parameter of this network")
    if len(set(places.values())) < len(places):
        raise WeightsError(file, "two of its tensors hold the same part of one parameter")
    return places


def _create_change(
    file: Path, name: str, parts: Mapping[Part, Tensor], shape: torch.Size, alpha: float | None
) -> _Change:
    found = {part: list(tensor.shape) for part, tensor in parts.items()}
    if set(parts) == {"diff"}:
        if parts["diff"].shape != shape:
            raise WeightsError(file, f"difference of {name}: shape {found['diff']}, expected {list(shape)}")
        return _Change(diff=parts["diff"])
    if set(parts) - {"alpha"} != {"down", "up"}:
        raise WeightsError(file, f"change of {name}: has {sorted(parts)}, expected down and up, or only diff")
    up, down = parts["up"], parts["down"]
    rank = down.shape[0] if down.ndim else 0
    inner = shape[1:].numel()
    if (up.shape[:1], up.shape[1:].numel(), down.shape[1:].numel()) != (shape[:1], rank, inner) or not rank:
        raise WeightsError(
            file,
            f"change of {name}: up {found['up']} times down {found['down']}, "
            f"expected [{shape[0]}, r] times [r, {inner}]",
        )
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            raise WeightsError(file, f"alpha of {name}: shape {found['alpha']}, expected one number")
        alpha = float(parts["alpha"])
    return _Change(up=up, down=down, factor=1.0 if alpha is None else alpha / rank)


def _read_alpha(file: Path, header: SafetensorsHeader) -> float | None:
    """Returns the alpha in diffusers' metadata; None means that alpha is the rank of each change."""
    try:
        adapter_metadata = json.loads(header.metadata.get("lora_adapter_metadata", "{}"))
        settings = {key.removeprefix("transformer."): value for key, value in adapter_metadata.items()}
        alpha = settings.get("lora_alpha")
        found = None if alpha is None else float(alpha)
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(file, f"lora_adapter_metadata: cannot be read ({error})") from error
    for key in ("alpha_pattern", "use_rslora", "use_dora"):
        if settings.get(key):
            raise WeightsError(file, f"lora_adapter_metadata: {key} is not supported here")
    return found
