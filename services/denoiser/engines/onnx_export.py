"""The graph as ONNX, part by part, with attention decomposed.

Opset 20: from 23 on there is an Attention operator, which TensorRT refuses in float32 and onnxruntime with a
broadcast mask; the decomposed form is fused again by TensorRT.
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
from services.denoiser.engines.fp8 import quantise
from services.denoiser.network.wan import WanTransformer, parameter_dtype

OPSET = 20
# The most that the graph's dynamic dimensions may reach, whatever a profile says.
_MOST_TOKENS, _MOST_KEYS, _MOST_TEXTS = 1 << 20, 1 << 14, 2
# Sizes at the export. None is 1: the exporter takes 0 and 1 for constants.
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
) -> list[Path]:
    """Writes part-00.onnx, part-00.onnx.data, … into `folder`; returns the .onnx files.

    Args:
        dtype: what the graph computes in, float32, float16 or bfloat16; norms and modulation stay float32.
        blocks_each: blocks of one part; 0 is the whole network.
        report: of the progress; may stop it between two parts.
        fp8_ranges: as `fp8.input_ranges` gives them: the blocks' matrices are then in 8 bits.
        plugin: cross-attention is then one node of our own domain, `tensorrt.onnx_domain`.
    """
    network = _copy(transformer, dtype)
    if fp8_ranges is not None:
        quantise(network, fp8_ranges)
    parts, paths = split_into_parts(network, blocks_each, plugin=plugin), []
    for number, part in enumerate(parts):
        path = folder / f"part-{number:02d}.onnx"
        words = f"export {number + 1} of {len(parts)}: blocks {part.blocks.start} to {part.blocks.stop - 1}"
        if report(words) is False:
            raise BackendError("the export was stopped")
        _export_part(part, path, dtype)
        paths.append(path)
    return paths


def add_function(path: Path) -> None:
    """Writes what the plugin's node means into a graph, for runtimes that have no plugin."""
    model = onnx.load(path, load_external_data=False)
    onnx.save(add_plugin_function(model), path)


def _copy(transformer: WanTransformer, dtype: torch.dtype) -> WanTransformer:
    """The network on the CPU, its parameters in `dtype` where they may be; shares those that already are."""
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
        torch.export.Dim(name, min=1, max=most)
        for name, most in (("tokens", _MOST_TOKENS), ("keys", _MOST_KEYS), ("texts", _MOST_TEXTS))
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
            tuple(_example(part, name, dtype) for name in part.inputs),
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


def _example(part: GraphPart, name: str, dtype: torch.dtype) -> Tensor:
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
    """The exporter's own progress and its remarks about operators of packages that nobody installed."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)
