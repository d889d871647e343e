"""Exports the graph to ONNX, part by part, with attention decomposed into products and softmax.

Uses opset 20, because opset 23 introduces an Attention operator that TensorRT rejects in float32 and
onnxruntime rejects with a broadcast mask. TensorRT fuses the decomposed form again.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor

from services.denoiser.backends.base import BackendError, Progress
from services.denoiser.backends.graph import GraphPart, split_into_parts
from services.denoiser.backends.tensorrt.onnx_domain import add_function as add_plugin_function
from services.denoiser.backends.tensorrt.onnx_domain import build_translation_table
from services.denoiser.engines.build import OPSET
from services.denoiser.engines.fp8 import quantise
from services.denoiser.engines.onnx_fusion import fuse_self_attention
from services.denoiser.network.wan import WanTransformer, parameter_dtype

# Upper bounds on the dynamic dimensions of the graph, for any profile.
_MAX_TOKENS, _MAX_KEYS, _MAX_TEXTS = 1 << 20, 1 << 14, 2
# Sizes of the example inputs. All exceed 1, because the exporter treats sizes 0 and 1 as constants.
_TOKENS, _KEYS, _TEXTS = 24, 7, 2


def export(
    transformer: WanTransformer,
    folder: Path,
    dtype: torch.dtype,
    blocks_each: int,
    report: Progress,
    *,
    fp8_ranges: Mapping[str, float] | None = None,
    plugin: bool = False,
    fused: bool = False,
) -> list[Path]:
    """Writes part-00.onnx, part-00.onnx.data, … to `folder`. Returns the .onnx files.

    Args:
        dtype: Type of the graph: float32, float16 or bfloat16. Norms and modulation stay float32.
        blocks_each: Number of blocks in each part; 0 for a single part.
        report: Progress callback. Return False to cancel before the next part.
        fp8_ranges: Ranges from `fp8.measure_input_ranges`, for 8-bit matrices in the blocks.
        plugin: Whether cross-attention is one node of the domain `chorus` (`tensorrt/onnx_domain.py`).
        fused: Whether self-attention uses operators that only onnxruntime has.
    """
    network = _copy(transformer, dtype)
    if fused:
        fuse_self_attention(network)
    if fp8_ranges is not None:
        quantise(network, fp8_ranges)
    parts, paths = split_into_parts(network, blocks_each, plugin=plugin), []
    for number, part in enumerate(parts):
        path = folder / f"part-{number:02d}.onnx"
        blocks = f"blocks {part.blocks.start} to {part.blocks.stop - 1}"
        if report(f"exporting part {number + 1} of {len(parts)}: {blocks}") is False:
            raise BackendError("the export was cancelled")
        _export_part(part, path, dtype)
        paths.append(path)
    return paths


def add_function(path: Path) -> None:
    """Adds the definition of the plugin's node to a graph file, for runtimes without the plugin."""
    model = onnx.load(path, load_external_data=False)
    onnx.save(add_plugin_function(model), path)


def _copy(transformer: WanTransformer, dtype: torch.dtype) -> WanTransformer:
    """Returns a copy of the network on the CPU with parameters in `dtype`, except those that stay float32.

    Parameters that already have the right type and device are shared.
    """
    with torch.device("meta"):
        network = WanTransformer(transformer.config)
    state = {
        name: tensor.detach().to("cpu", parameter_dtype(name, dtype))
        for name, tensor in transformer.state_dict().items()
    }
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _export_part(part: GraphPart, path: Path, dtype: torch.dtype) -> None:
    tokens, keys, texts = (
        torch.export.Dim(name, min=1, max=size)
        for name, size in (("tokens", _MAX_TOKENS), ("keys", _MAX_KEYS), ("texts", _MAX_TEXTS))
    )
    dynamic = {
        "tokens": {1: tokens},
        "x": {1: tokens},
        "rope_cos": {0: tokens},
        "rope_sin": {0: tokens},
        "text_kv": {2: texts, 4: keys},
        "key_bias": {1: texts, 2: keys},
        "gate": {0: tokens},
        "gained": {1: keys},
    }
    with warnings.catch_warnings(), _quiet("torch.onnx"), torch.inference_mode(False):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            part,
            tuple(_build_example(part, name, dtype) for name in part.inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_shapes=(tuple(dynamic.get(name) for name in part.inputs),),
            custom_translation_table=build_translation_table() if part.plugin else None,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=True)


def _build_example(part: GraphPart, name: str, dtype: torch.dtype) -> Tensor:
    config, blocks = part.transformer.config, len(part.blocks)
    heads, width = config.heads, config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "tokens": (1, _TOKENS, config.in_channels * config.patch_volume),
        "timestep": (1,),
        "x": (1, _TOKENS, config.dim),
        "modulation": (1, 6, config.dim),
        "embedding": (1, config.dim),
        "rope_cos": (_TOKENS, width),
        "rope_sin": (_TOKENS, width),
        "text_kv": (blocks, 2, _TEXTS, heads, _KEYS, width),
        "key_bias": (blocks, _TEXTS, _KEYS),
        "strength": (blocks,),
        "gate": (_TOKENS,),
        "gained": (blocks, _KEYS),
    }
    return torch.zeros(shapes[name], dtype=dtype if name in ("tokens", "x", "text_kv") else torch.float32)


class _quiet:
    """Suppresses the exporter's progress and its warnings about operators of packages not installed."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)
