"""Section "tensorrt": builds engines with TensorRT or TensorRT-RTX, if installed, and compares with torch."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from bench.gpu.networks import random_network
from bench.gpu.section import Bench
from bench.gpu.sequences import Video
from bench.gpu.shapes import REGIONS, SIGMAS, select_region
from bench.gpu.steps import TOLERANCES
from bench.gpu.timing import measure_milliseconds, relative_error
from bench.results import median, ratio, single
from services.denoiser.backends.base import BackendError
from services.denoiser.backends.eager import EagerBackend
from services.denoiser.backends.graph_backend import Profile, Sizes
from services.denoiser.backends.tensorrt.module import describe_module, load_module
from services.denoiser.network.text import AmplifiedText
from services.denoiser.network.wan import WanConfig, WanTransformer, rope_table

_REPEATS = 10
# Time for export and build of two blocks, in seconds; measured: 10 s on two CPU cores.
_BUILD_SECONDS = 25.0


def run(bench: Bench) -> None:
    """Measures the engines and records rejections. Raises ValueError if an engine's result is wrong."""
    try:
        module = load_module()
    except BackendError as error:
        bench.report.note("refused", "tensorrt", str(error))
        bench.skip("tensorrt", "no TensorRT module can be imported")
        return
    bench.report.note("facts", "tensorrt", describe_module(module))
    if bench.device.type != "cuda":
        bench.skip("tensorrt", "needs a CUDA device")
        return
    for name, config in bench.scale.engine.items():
        if not bench.has_time_for(f"tensorrt_{name}", _BUILD_SECONDS):
            continue
        try:
            _measure_engine(bench, module, name, config)
        except BackendError as error:
            bench.report.note("refused", f"tensorrt_{name}", str(error))


@torch.no_grad()
def _measure_engine(bench: Bench, module: ModuleType, name: str, config: WanConfig) -> None:
    from services.denoiser.backends.tensorrt.runtime import engine_backend

    scale, device = bench.scale, bench.device
    network = random_network(config, device, bench.dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = build(bench, module, name, network, Path(folder))
        backend = engine_backend(module, network, [path], 0, _profile(bench), device, bench.dtype)
    eager = EagerBackend(network)
    cos, sin = (table.to(device) for table in rope_table(config, scale.grid))
    states = torch.randn(1, scale.keys, config.text_dim, device=device).to(bench.dtype)
    latents = torch.randn(len(SIGMAS), scale.tokens, config.in_channels * config.patch_volume, device=device)
    text = AmplifiedText(network.encode_text(states))
    video = Video(scale.grid, latents, cos, sin, text, bench.dtype)
    at = select_region(scale.grid, REGIONS["region30"], device)
    try:
        for item, inputs in {
            "full": video.inputs(latents[0], SIGMAS[1]),
            "region30": video.inputs(latents[0], SIGMAS[1], at),
        }.items():
            error = relative_error(backend.predict(inputs), eager.predict(inputs))
            bench.report.figure(f"tensorrt_{name}_{item}_to_eager_rel", single(error, "relative"))
            if not error <= TOLERANCES[bench.dtype]:
                raise ValueError(f"{name}, {item}: the engine differs from torch by {error:.2g}")
            engine_ms = measure_milliseconds(partial(backend.predict, inputs), _REPEATS, device, warmups=2)
            torch_ms = measure_milliseconds(partial(eager.predict, inputs), _REPEATS, device, warmups=2)
            bench.report.figure(f"tensorrt_{name}_{item}_ms", median(engine_ms, "ms"))
            bench.report.figure(f"tensorrt_{name}_{item}_speedup", ratio(torch_ms, engine_ms))
    finally:
        backend.close()


def build(bench: Bench, module: ModuleType, name: str, network: WanTransformer, folder: Path) -> Path:
    """Builds the engine of a network for the current device. Returns its path. Raises BackendError."""
    from services.denoiser.backends.graph import split_into_parts
    from services.denoiser.engines.onnx_export import export
    from services.denoiser.engines.tensorrt_builder import BuildOptions, build_engine

    begin = time.perf_counter()
    (graph,) = export(network, folder, bench.dtype, 0, lambda _: None)
    exported = time.perf_counter()
    (part,) = split_into_parts(network, 0)
    # Every block has self-attention and cross-attention.
    attentions = 2 * len(part.blocks)
    built = build_engine(module, graph, attentions, _profile(bench), BuildOptions(), lambda _: None)
    path = graph.with_suffix(".engine")
    with path.open("wb") as file:
        file.write(memoryview(built.engine))
    bench.report.figure(f"tensorrt_{name}_export_s", single(exported - begin, "s"))
    bench.report.figure(f"tensorrt_{name}_build_s", single(time.perf_counter() - exported, "s"))
    bench.report.note("facts", f"tensorrt_{name}_layers", built.layers.as_dict())
    return path


def _profile(bench: Bench) -> Profile:
    return Profile(
        Sizes(1, bench.scale.tokens, bench.scale.tokens), Sizes(1, bench.scale.keys, bench.scale.keys)
    )
