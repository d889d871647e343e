"""Checks a text encoder's weights: no tensor is missing, foreign, quantised, misshapen or not finite.

transformers loads most of such files with at most a warning, and converts 8-bit numbers without their scales.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from chorus_rpc.chunks import BlobFault

from services.contract import safetensors_header

TYPES = ("F32", "F16", "BF16")  # floating types an encoder is stored in
# Numbers of the positions, which older releases store although every model computes them.
_POSITIONS = "position_ids"
_MAX_HEADER_BYTES = 64 << 20


def check_not_quantized(directory: Path) -> None:
    """Raises ValueError if `config.json` states a quantisation."""
    method = json.loads((directory / "config.json").read_bytes()).get("quantization_config")
    if method:
        name = method.get("quant_method", "unnamed") if isinstance(method, dict) else method
        raise ValueError(
            f"{directory}: its weights are quantised ({name}), which is not supported: use the float16, "
            f"bfloat16 or float32 release"
        )


def check_types(files: Iterable[Path], unused: tuple[str, ...]) -> None:
    """Raises ValueError naming file, tensor and type of a weight whose type is not one of TYPES.

    Args:
        unused: Prefixes of the tensors that the encoder does not use.
    """
    for file in files:
        try:
            with file.open("rb") as stream:
                header = safetensors_header.read_header(stream, file.stat().st_size, _MAX_HEADER_BYTES)
        except BlobFault as fault:
            raise ValueError(f"{file}: {fault}") from fault
        for tensor in header.tensors:
            if tensor.name.startswith(unused) or tensor.name.endswith(_POSITIONS):
                continue
            if tensor.dtype not in TYPES:
                raise ValueError(
                    f"{file}: tensor {tensor.name}: type {tensor.dtype}, expected {' or '.join(TYPES)}: "
                    f"quantised weights are not supported"
                )


def check_report(directory: Path, report: Mapping[str, Any], unused: tuple[str, ...]) -> None:
    """Raises ValueError naming a tensor that transformers could not match with the model's parameters.

    Args:
        report: Loading info of `from_pretrained`.
        unused: Prefixes of the tensors that the encoder does not use.
    """
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{directory}: lacks the weight {missing[0]} (and {len(missing) - 1} more)")
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise ValueError(f"{directory}: tensor {name}: shape {list(found)}, expected {list(expected)}")
    for name in sorted(report["unexpected_keys"]):
        if not name.startswith(unused) and not name.endswith(_POSITIONS):
            raise ValueError(f"{directory}: tensor {name}: no such parameter in this encoder")


def check_values(directory: Path, model: Any) -> None:
    """Raises ValueError naming a parameter that holds NaN or infinity, or that differs from its copy."""
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        # Much faster than `isfinite` on every value.
        if not torch.stack(parameter.aminmax()).isfinite().all():
            raise ValueError(f"{directory}: tensor {name}: holds NaN or infinity")
    # transformers ties the two unless the file holds both and they differ.
    if {"shared.weight", "encoder.embed_tokens.weight"} <= parameters.keys():
        raise ValueError(
            f"{directory}: tensor shared.weight: differs from encoder.embed_tokens.weight; they must be equal"
        )
