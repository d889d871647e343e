"""What can be proved of engines without a GPU; writes bench/results/tensorrt_cpu.json.

    python -m bench.tensorrt_cpu --wan

The shipped model's graph is exported, run by onnxruntime beside torch at five token counts and by every form
of amplification, and built by TensorRT-RTX, whose log tells which attentions became one kernel. The project's
own kernel runs in Triton's interpreter beside float64. With --wan, a network of Wan2.1-1.3B's shapes with
random weights is exported and built as well, which takes ten minutes and 16 GB of memory. Nothing here tells
the speed of an engine.
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


def report(words: str) -> None:
    print(words, file=sys.stderr)


def of_layers(prefix: str, facts: dict[str, Any], size_bytes: int) -> dict[str, Figure]:
    layers = facts["layers"]
    return {
        f"{prefix}attentions": single(layers["attentions"], "attentions"),
        f"{prefix}attentions_fused": single(layers["fused"], "attentions"),
        f"{prefix}masks_expanded": single(layers["masks_expanded"], "masks"),
        f"{prefix}export_seconds": single(facts["export_seconds"], "s"),
        f"{prefix}engine_build_seconds": single(facts["build_seconds"], "s"),
        f"{prefix}engine_megabytes": single(size_bytes / 1e6, "MB"),
    }


def shipped(folder: Path) -> dict[str, Figure]:
    """The shipped model: numerics of its graphs, layers of its engines."""
    model, store = LoadedModel.load(SHIPPED_MODEL), EngineStore(folder)
    figures = {}
    for name, options in (
        ("onnx", ONNX),
        ("onnx_plugin", replace(ONNX, plugin=True)),
        ("onnx_fp8", replace(ONNX, fp8=True)),
    ):
        backend = load_engine(model, ensure_engine(model, options, store, report), options)
        found = list(compare(model, backend).values())
        figures[f"{name}_max_abs_error"] = Figure(max(d.absolute for d in found), "of velocity", len(found))
        figures[f"{name}_max_rel_error"] = Figure(max(d.relative for d in found), "of velocity", len(found))
        backend.close()
    rtx = EngineOptions(runtime="tensorrt_rtx")
    made = ensure_engine(model, rtx, store, report)
    figures |= of_layers("", dict(made.facts), made.size_bytes)
    made = ensure_engine(model, replace(rtx, fp8=True, target="sm_89"), store, report)
    return figures | of_layers("fp8_", dict(made.facts), made.size_bytes)


def wan(folder: Path) -> dict[str, Figure]:
    """All 30 blocks at the widths of Wan2.1-1.3B, 32,760 tokens and 512 text tokens at the most."""

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
    return of_layers("wan1_3b_", facts, built.engine.nbytes)


def main(
    with_wan: Annotated[
        bool, typer.Option("--wan", help="Wan2.1-1.3B's shapes as well: ten minutes.")
    ] = False,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = shipped(Path(folder))
        figures |= {
            name: single(value, "of the largest value")
            for name, value in measure_interpreter_errors().items()
        }
        if with_wan:
            figures |= wan(Path(folder))
    command = f"python -m bench.tensorrt_cpu {shlex.join(sys.argv[1:])}".strip()
    results.write(results.RESULTS / "tensorrt_cpu.json", command, figures)
    for name, figure in figures.items():
        print(f"{name:32} {figure.value:.4g} {figure.unit}")


if __name__ == "__main__":
    typer.run(main)
