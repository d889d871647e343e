"""Adapters (LoRA): files of small changes to the weights of a network, merged into them at load time.

A file holds, for some of the modules, two factors whose product is added (`down`, `up`), the whole difference
(`diff`), or the trained values themselves (biases and modules that PEFT trained in full). `lora_names` reads
the names of its tensors, `lora_scaling` the factors.

Sources: LoRA, arXiv 2106.09685; the formats as PEFT and diffusers (loaders/lora_conversion_utils.py) read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from services.contract.safetensors_header import SafetensorsHeader
from services.denoiser.checkpoint.lora_names import ModuleNames, Part, Place, find_collision
from services.denoiser.checkpoint.lora_scaling import Scaling
from services.denoiser.checkpoint.weights import (
    NETWORK_TYPES,
    WeightsError,
    check_types,
    read_header,
    read_tensors,
    verify_digest,
    weight_files,
)

_ALPHA_TYPES = (*NETWORK_TYPES, "F64", "I64", "I32", "I16", "U8")
# Names under which PEFT and diffusers save an adapter in a folder.
_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class _Change:
    """Change of one parameter: factor * up @ down, or factor * diff; or its new values."""

    kind: Literal["product", "difference", "values"]
    tensor: Tensor  # up [out, r], the difference, or the values
    down: Tensor | None = None  # [r, in]
    factor: float = 1.0

    def compute(self, weight: Tensor) -> Tensor:
        """Returns the change in float32, with the shape and on the device of `weight`."""
        own = self.tensor.to(weight.device).float()
        if self.down is None:
            return self.factor * own
        product = own.flatten(1) @ self.down.to(weight.device).float().flatten(1)
        return self.factor * product.view_as(weight)


@dataclass(frozen=True)
class Adapter:
    """Properties of an adapter that are part of the identity of latents.

    Attributes:
        digest: SHA-256 of the file's digest and of the factor of every change, lower-case hex: another file
            may declare the factors.
        scale: Factor with which the adapter is merged; 1 is as trained.
    """

    id: str
    digest: str
    scale: float


class Lora:
    """Changes of one adapter, checked against the network, in their stored types."""

    def __init__(self, path: Path, adapter: Adapter, changes: Mapping[str, _Change]) -> None:
        self.path = path
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
        """Reads a safetensors file, or the folder in which PEFT or diffusers saved one.

        Args:
            expected: Shape of every parameter of the network.

        Raises WeightsError for a tensor that does not fit the network and a setting that cannot be honoured.
        """
        file = _find_file(path)
        header = read_header(file)
        places = _locate_tensors(file, header, ModuleNames(expected))
        try:
            has_alphas = any(place.part == "alpha" for place in places.values())
            scaling = Scaling.read(file, header.metadata, has_alphas)
            _check_declared(file, places, scaling)
        except ValueError as error:
            raise WeightsError(file, str(error)) from error
        digest = verify_digest(file, sha256)
        modules: dict[str, dict[str, Tensor]] = {}
        for name, tensor in read_tensors(file):
            modules.setdefault(places[name].module, {})[name] = tensor
        changes: dict[str, _Change] = {}
        for tensors in modules.values():
            changes |= _create_changes(file, tensors, places, expected, scaling)
        if scale != 1 and (whole := [name for name, each in changes.items() if each.kind == "values"]):
            raise WeightsError(
                file, f"scale must be 1, not {scale:g}: it replaces {whole[0]}, whose change it does not hold"
            )
        factors = {name: repr(change.factor) for name, change in changes.items()}
        effective = hashlib.sha256(json.dumps([digest, factors], sort_keys=True).encode()).hexdigest()
        return cls(file, Adapter(id, effective, scale), changes)

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """Returns a parameter with its change, in float32; unchanged if the adapter does not contain it."""
        change = self._changes.get(name)
        if change is None:
            return weight
        if change.kind == "values":
            return change.compute(weight)
        return weight.float() + self.adapter.scale * change.compute(weight)

    def replaces(self, name: str) -> bool:
        """Returns whether the adapter holds the values of a parameter, not their change."""
        return name in self._changes and self._changes[name].kind == "values"

    def changes(self, name: str) -> bool:
        """Returns whether the adapter changes a parameter."""
        return name in self._changes


def check_overlap(loras: Sequence[Lora], parameters: Sequence[str]) -> None:
    """Raises WeightsError if an adapter replaces a parameter that another changes: their order matters."""
    for name in parameters:
        changing = [lora for lora in loras if lora.changes(name)]
        replacing = next((lora for lora in changing if lora.replaces(name)), None)
        if replacing is not None and len(changing) > 1:
            other = next(lora for lora in changing if lora is not replacing)
            raise WeightsError(
                replacing.path, f"replaces {name}, which {other.path} changes as well: use one of the two"
            )


def _find_file(path: Path) -> Path:
    """Returns the safetensors file of an adapter, given itself or its folder."""
    if path.is_dir():
        if found := next((path / name for name in _FILES if (path / name).is_file()), None):
            return found
        if inner := sorted(path.glob(f"*/{_FILES[0]}")):
            raise WeightsError(path, f"holds a folder for each adapter: name one, such as {inner[0].parent}")
    file, *others = weight_files(path)
    if others:
        raise WeightsError(path, "an adapter must be one safetensors file")
    return file


def _locate_tensors(file: Path, header: SafetensorsHeader, names: ModuleNames) -> dict[str, Place]:
    """Returns the meaning of every tensor of the file."""
    found = {tensor.name: names.locate(tensor.name) for tensor in header.tensors}
    if not found:
        raise WeightsError(file, "holds no tensors")
    if unknown := [name for name, place in found.items() if place is None]:
        raise WeightsError(file, names.explain(unknown))
    places = {name: place for name, place in found.items() if place is not None}
    if all(place.part == "value" for place in places.values()):
        raise WeightsError(
            file, "holds whole weights, not an adapter: name it under [weights], or extract a LoRA from it"
        )
    if fault := find_collision(places):
        raise WeightsError(file, fault)
    for tensor in header.tensors:
        check_types(file, tensor, _ALPHA_TYPES if places[tensor.name].part == "alpha" else NETWORK_TYPES)
    return places


def _check_declared(file: Path, places: Mapping[str, Place], scaling: Scaling) -> None:
    """Raises ValueError for tensors that need a declaration and have none, or are denied by one."""
    parts = {place.part for place in places.values()}
    if "up_bias" in parts:
        scaling.check_up_bias()
    for name, place in places.items():
        if place.part == "value" and not scaling.holds_in_full(place.written, place.parameter):
            raise ValueError(
                f"tensor {name}: is a whole parameter, but no place declares it as trained in full "
                "(bias, modules_to_save)"
            )
    saved_by_peft = file.name == _FILES[0] or any(name.startswith(_PEFT_PREFIX) for name in places)
    if saved_by_peft and "down" in parts and "alpha" not in parts and not scaling.is_declared:
        raise ValueError(
            "adapter_config.json is missing, in which PEFT saves alpha: put it next to this file, "
            'with at least {"r": …, "lora_alpha": …}'
        )


def _create_changes(
    file: Path,
    tensors: Mapping[str, Tensor],
    places: Mapping[str, Place],
    expected: Mapping[str, torch.Size],
    scaling: Scaling,
) -> dict[str, _Change]:
    """Returns the changes of one module's parameters."""
    changes: dict[str, _Change] = {}
    low_rank: dict[Part, Tensor] = {}
    names: dict[Part, str] = {}
    for name, tensor in tensors.items():
        place = places[name]
        if place.part not in ("diff", "value"):
            low_rank[place.part], names[place.part] = tensor, name
            continue
        shape = expected[place.parameter]
        what = "difference" if place.part == "diff" else "values"
        if tensor.shape != shape:
            raise WeightsError(
                file, f"{what} of {place.parameter}: shape {list(tensor.shape)}, expected {list(shape)}"
            )
        if place.parameter in changes:
            raise WeightsError(file, f"{place.parameter}: has both a difference and values")
        changes[place.parameter] = _Change("difference" if place.part == "diff" else "values", tensor)
    if not low_rank:
        return changes
    place = places[next(iter(names.values()))]
    weight = next((places[name].parameter for part, name in names.items() if part != "up_bias"), None)
    if not {"down", "up"} <= set(low_rank) or weight is None or weight in changes:
        parts = sorted(low_rank) + ["diff"] * (weight in changes)
        subject = weight or place.parameter
        raise WeightsError(file, f"change of {subject}: has {parts}, expected down and up, or only diff")
    up, down = low_rank["up"], low_rank["down"]
    rank = _check_factors(file, weight, up, down, expected[weight])
    if (alpha := low_rank.get("alpha")) is not None and alpha.numel() != 1:
        raise WeightsError(file, f"alpha of {weight}: shape {list(alpha.shape)}, expected one number")
    try:
        factor = scaling.compute_factor(place.written, rank, alpha)
    except ValueError as error:
        raise WeightsError(file, f"change of {weight}: {error}") from error
    changes[weight] = _Change("product", up, down, factor)
    if (bias := low_rank.get("up_bias")) is not None:
        parameter = places[names["up_bias"]].parameter
        if bias.shape != expected[parameter]:
            raise WeightsError(
                file,
                f"bias of up for {parameter}: shape {list(bias.shape)}, expected {list(expected[parameter])}",
            )
        if parameter in changes:
            raise WeightsError(file, f"{parameter}: is changed by two of its tensors")
        changes[parameter] = _Change("difference", bias, factor=factor)
    return changes


def _check_factors(file: Path, name: str, up: Tensor, down: Tensor, shape: torch.Size) -> int:
    """Returns the rank of two factors. Raises WeightsError if their product does not have the shape."""
    rank = down.shape[0] if down.ndim else 0
    inner = shape[1:].numel()
    if (up.shape[:1], up.shape[1:].numel(), down.shape[1:].numel()) != (shape[:1], rank, inner) or not rank:
        raise WeightsError(
            file,
            f"change of {name}: up {list(up.shape)} times down {list(down.shape)}, "
            f"expected [{shape[0]}, r] times [r, {inner}]",
        )
    return rank
