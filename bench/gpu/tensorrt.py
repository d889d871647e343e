"""TensorRT or TensorRT-RTX, where there is one: an engine built here, beside torch."""

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
from bench.gpu.shapes import REGIONS, SIGMAS, region
from bench.gpu.steps import TOLERANCES
from bench.gpu.timing import milliseconds, relative
from bench.results import median, ratio, single
from services.denoiser.backends.base import BackendError
from services.denoiser.backends.eager import EagerBackend
from services.denoiser.backends.graph_backend import Profile, Sizes
from services.denoiser.backends.tensorrt.module import describe_module, load_module
from services.denoiser.network.text import AmplifiedText
from services.denoiser.network.wan import WanConfig, WanTransformer, rope_table

_REPEATS = 10
# Export and build of two blocks: 10 s on two CPU cores.
_BUILD_SECONDS = 25.0


def run(bench: Bench) -> None:
    """What refuses is noted in its own words. Raises ValueError where an engine is not right."""
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
        if not bench.affords(f"tensorrt_{name}", _BUILD_SECONDS):
            continue
        try:
            _engine(bench, module, name, config)
        except BackendError as error:
            bench.report.note("refused", f"tensorrt_{name}", str(error))


@torch.no_grad()
def _engine(bench: Bench, module: ModuleType, name: str, config: WanConfig) -> None:
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
    at = region(scale.grid, REGIONS["region30"], device)
    try:
        for item, inputs in {
            "full": video.inputs(latents[0], SIGMAS[1]),
            "region30": video.inputs(latents[0], SIGMAS[1], at),
        }.items():
            error = relative(backend.predict(inputs), eager.predict(inputs))
            bench.report.figure(f"tensorrt_{name}_{item}_to_eager_rel", single(error, "relative"))
            if not error <= TOLERANCES[bench.dtype]:
                raise ValueError(f"{name}, {item}: the engine lies {error:.2g} from torch")
            ours = milliseconds(partial(backend.predict, inputs), _REPEATS, device, warmups=2)
            torchs = milliseconds(partial(eager.predict, inputs), _REPEATS, device, warmups=2)
            bench.report.figure(f"tensorrt_{name}_{item}_ms", median(ours, "ms"))
            bench.report.figure(f"tensorrt_{name}_{item}_speedup", ratio(torchs, ours))
    finally:
        backend.close()


def build(bench: Bench, module: ModuleType, name: str, network: WanTransformer, folder: Path) -> Path:
    """The engine of a whole network, built for the device that is there. Raises BackendError."""
    from services.denoiser.backends.graph import split_into_parts
    from services.denoiser.engines.onnx_export import export
    from services.denoiser.engines.tensorrt_builder import BuildOptions, build_engine

    begin = time.perf_counter()
    (graph,) = export(network, folder, bench.dtype, 0, lambda _: None)
    exported = time.perf_counter()
    (part,) = split_into_parts(network, 0)
    # Every block attends to the tokens and to the text.
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
