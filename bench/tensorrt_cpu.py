"""Measures properties of engines without a GPU; writes bench/results/tensorrt_cpu.json.

    python -m bench.tensorrt_cpu --wan

The benchmark exports the graph of the shipped model, compares onnxruntime with torch at five token counts and
for every form of amplification, and builds engines with TensorRT-RTX, whose log shows which attentions became
one kernel. It compares the amplified attention kernel in Triton's interpreter with float64. With --wan it
also exports and builds a network with the shapes of Wan2.1-1.3B and random weights, which takes ten minutes
and 16 GB of memory. The speed of engines is not measured.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench import results
from bench.results import Figure, single
from services.denoiser.backends.graph_backend import Profile, Sizes
from services.denoiser.backends.tensorrt.module import load_module
from services.denoiser.engines.build import ONNX, EngineOptions, ensure_engine, load_engine
from services.denoiser.engines.onnx_export import export
from services.denoiser.engines.store import EngineStore
from services.denoiser.engines.tensorrt_builder import BuildOptions, build_engine
from services.denoiser.engines.verify import compare
from services.denoiser.kernels.check import measure_interpreter_errors
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.network.wan import WanConfig, WanTransformer
from services.denoiser.settings import SHIPPED_MODEL


def report(message: str) -> None:
    print(message, file=sys.stderr)


def build_layer_figures(prefix: str, facts: dict[str, Any], size_bytes: int) -> dict[str, Figure]:
    layers = facts["layers"]
    return {
        f"{prefix}attentions": single(layers["attentions"], "attentions"),
        f"{prefix}attentions_fused": single(layers["fused"], "attentions"),
        f"{prefix}masks_expanded": single(layers["masks_expanded"], "masks"),
        f"{prefix}export_seconds": single(facts["export_seconds"], "s"),
        f"{prefix}engine_build_seconds": single(facts["build_seconds"], "s"),
        f"{prefix}engine_megabytes": single(size_bytes / 1e6, "MB"),
    }


def measure_shipped_model(folder: Path) -> dict[str, Figure]:
    """Measures the shipped model: errors of its graphs and layers of its engines."""
    model, store = LoadedModel.load(SHIPPED_MODEL), EngineStore(folder)
    figures = {}
    for name, options in (
        ("onnx", ONNX),
        ("onnx_plugin", replace(ONNX, plugin=True)),
        ("onnx_fp8", replace(ONNX, fp8=True)),
    ):
        backend = load_engine(model, ensure_engine(model, options, store, report), options)
        errors = list(compare(model, backend).values())
        count = len(errors)
        figures[f"{name}_max_abs_error"] = Figure(max(e.absolute for e in errors), "of velocity", count)
        figures[f"{name}_max_rel_error"] = Figure(max(e.relative for e in errors), "of velocity", count)
        backend.close()
    rtx = EngineOptions(runtime="tensorrt_rtx")
    engine = ensure_engine(model, rtx, store, report)
    figures |= build_layer_figures("", dict(engine.facts), engine.size_bytes)
    engine = ensure_engine(model, replace(rtx, fp8=True, target="sm_89"), store, report)
    return figures | build_layer_figures("fp8_", dict(engine.facts), engine.size_bytes)


def measure_wan(folder: Path) -> dict[str, Figure]:
    """Measures all 30 blocks with the shapes of Wan2.1-1.3B, for up to 32,760 tokens and 512 text tokens."""
    torch.manual_seed(0)
    network = WanTransformer(WanConfig()).to(torch.bfloat16).eval().requires_grad_(False)
    begin = time.perf_counter()
    [graph] = export(network, folder, torch.bfloat16, 0, report)
    export_seconds, begin = time.perf_counter() - begin, time.perf_counter()
    attentions = 2 * network.config.layers
    del network
    profile = Profile(Sizes(1, 32_760, 32_760), Sizes(1, 512, 512))
    built = build_engine(load_module("tensorrt_rtx"), graph, attentions, profile, BuildOptions(), report)
    facts = {
        "layers": built.layers.as_dict(),
        "export_seconds": export_seconds,
        "build_seconds": time.perf_counter() - begin,
    }
    return build_layer_figures("wan1_3b_", facts, built.engine.nbytes)


def main(
    with_wan: Annotated[
        bool,
        typer.Option("--wan", help="Measure a network with the shapes of Wan2.1-1.3B too (ten minutes)."),
    ] = False,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = measure_shipped_model(Path(folder))
        figures |= {
            name: single(value, "of the largest value")
            for name, value in measure_interpreter_errors().items()
        }
        if with_wan:
            figures |= measure_wan(Path(folder))
    command = f"python -m bench.tensorrt_cpu {shlex.join(sys.argv[1:])}".strip()
    results.write(results.RESULTS / "tensorrt_cpu.json", command, figures)
    for name, figure in figures.items():
        print(f"{name:32} {figure.value:.4g} {figure.unit}")


if __name__ == "__main__":
    typer.run(main)
