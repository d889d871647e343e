"""Adapters (LoRA): files of small changes to a network's weights, merged into them when it is loaded.

A file holds, for some of the parameters, two factors whose product is added (`down`, `up`), or the whole
difference (`diff`). Read as diffusers and PEFT write them, and as LightX2V and Kohya's tools do:

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
from services.denoiser.checkpoint.names import original_name, without_prefix
from services.denoiser.checkpoint.weights import (
    WeightsError,
    read_header,
    read_tensors,
    verified_digest,
    weight_files,
)

Part = Literal["down", "up", "alpha", "diff"]
_SUFFIXES: tuple[tuple[str, Part, str], ...] = (  # in the file; what it is; of which tensor of the module
    (r"\.lora_(A|down)(\.default)?\.weight$", "down", ".weight"),
    (r"\.lora_(B|up)(\.default)?\.weight$", "up", ".weight"),
    (r"\.alpha$", "alpha", ".weight"),
    (r"\.diff$", "diff", ".weight"),
    (r"\.diff_b$", "diff", ".bias"),
    (r"\.diff_m$", "diff", ".modulation"),
)


@dataclass(frozen=True)
class _Change:
    """What is added to one parameter: factor * up @ down, or the whole difference."""

    diff: Tensor | None = None
    up: Tensor | None = None  # [out, r]
    down: Tensor | None = None  # [r, in]
    factor: float = 1.0  # alpha / r

    def of(self, weight: Tensor) -> Tensor:
        """The change in float32, in the weight's shape and on its device."""
        if self.diff is not None:
            return self.diff.to(weight.device).float()
        assert self.up is not None
        assert self.down is not None
        up, down = (t.to(weight.device).float().flatten(1) for t in (self.up, self.down))
        return self.factor * (up @ down).view_as(weight)


@dataclass(frozen=True)
class Adapter:
    """What of an adapter is part of the identity of latents.

    Attributes:
        digest: SHA-256 of the file, lower-case hex.
        scale: how strongly it is merged; 1 is as trained.
    """

    id: str
    digest: str
    scale: float


class Lora:
    """An adapter's changes, checked against the network and in memory as stored."""

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
        """Reads a safetensors file. Raises WeightsError where it does not fit the network, naming the tensor.

        Args:
            expected: shape of every parameter of the network.
        """
        file, *others = weight_files(path)
        if others:
            raise WeightsError(path, "an adapter is one safetensors file")
        header = read_header(file)
        places = _places(file, header, expected)
        digest = verified_digest(file, sha256)
        parts: dict[str, dict[Part, Tensor]] = {}
        for name, tensor in read_tensors(file):
            parameter, part = places[name]
            parts.setdefault(parameter, {})[part] = tensor
        alpha = _written_alpha(file, header)
        changes = {name: _change(file, name, found, expected[name], alpha) for name, found in parts.items()}
        return cls(Adapter(id, digest, scale), changes)

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """A parameter with its change, in float32; as it was where the adapter leaves it alone."""
        change = self._changes.get(name)
        return weight if change is None else weight.float() + self.adapter.scale * change.of(weight)


def _places(file: Path, header: SafetensorsHeader, expected: Iterable[str]) -> dict[str, tuple[str, Part]]:
    """For every tensor of the file: the parameter it changes, and which part of the change it is."""
    known: dict[str, str] = {}
    for name in expected:
        original = original_name(name)
        module, _, leaf = original.rpartition(".")
        known |= {name: name, original: name, f"lora_unet_{module.replace('.', '_')}.{leaf}": name}
    places: dict[str, tuple[str, Part]] = {}
    for name in (tensor.name for tensor in header.tensors):
        for pattern, part, leaf in _SUFFIXES:
            module, count = re.subn(pattern, "", without_prefix(name))
            if count and (parameter := known.get(module + leaf)):
                places[name] = (parameter, part)
                break
        else:
            raise WeightsError(
                file, f"tensor {name}: changes no parameter of this network that is known here"
            )
    if len(set(places.values())) < len(places):
        raise WeightsError(file, "two of its tensors say the same of one parameter")
    return places


def _change(
    file: Path, name: str, parts: Mapping[Part, Tensor], shape: torch.Size, alpha: float | None
) -> _Change:
    found = {part: list(tensor.shape) for part, tensor in parts.items()}
    if set(parts) == {"diff"}:
        if parts["diff"].shape != shape:
            raise WeightsError(file, f"difference of {name}: shape {found['diff']}, expected {list(shape)}")
        return _Change(diff=parts["diff"])
    if set(parts) - {"alpha"} != {"down", "up"}:
        raise WeightsError(
            file, f"change of {name}: has {sorted(parts)}, expected down and up, or diff alone"
        )
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


def _written_alpha(file: Path, header: SafetensorsHeader) -> float | None:
    """The alpha that diffusers notes beside the tensors; None: the rank of each change."""
    try:
        noted = json.loads(header.metadata.get("lora_adapter_metadata", "{}"))
        settings = {key.removeprefix("transformer."): value for key, value in noted.items()}
        alpha = settings.get("lora_alpha")
        found = None if alpha is None else float(alpha)
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(file, f"lora_adapter_metadata: cannot be read ({error})") from error
    for key in ("alpha_pattern", "use_rslora", "use_dora"):
        if settings.get(key):
            raise WeightsError(file, f"lora_adapter_metadata: {key} is not supported here")
    return found
