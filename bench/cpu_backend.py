"""Compares the denoiser's backends on a CPU; writes bench/results/cpu_backend.json.

`taskset -c 1 python -m bench.cpu_backend` measures the shipped model with one thread; the options of the
sizes select another network, with random weights.

All backends run in one process and take turns, so that a ratio compares neighbouring steps. Ratios are those
of the process's CPU time, which other processes on the machine disturb less. Memory and the time of a start
are measured in a new process each, with everything that the start imports.
"""

from __future__ import annotations

import multiprocessing
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final, ParamSpec, TypeVar

import torch
import typer
from chorus.common.v1 import plan_pb2
from torch import Tensor

from bench import results
from bench.results import Figure
from services.denoiser.backends.base import Backend, StepInputs
from services.denoiser.backends.compiled import compiled_backend
from services.denoiser.backends.eager import EagerBackend
from services.denoiser.backends.onnx_runtime import onnx_backend
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.network.text import AmplifiedText
from services.denoiser.network.wan import TextKV, WanConfig, WanTransformer, rope_table
from services.denoiser.reuse.amplification import amplify_text
from services.denoiser.settings import SHIPPED_MODEL

BACKENDS: Final = ("torch", "compiled", "onnxruntime")
# Share of the tokens of a step, and whether its text is amplified by contrast.
STEPS: Final = {"full": (1.0, False), "region": (0.3, False), "full_contrast": (1.0, True)}
TIMESTEP: Final = 900.0
MIB: Final = 1 << 20

# Wall and CPU seconds of every round, by backend and kind of step.
Seconds = dict[tuple[str, str], list[tuple[float, float]]]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Network:
    """Network to measure.

    Attributes:
        config: Sizes; None for the shipped model's network and weights.
        grid: Tokens along time, rows and columns.
        text_tokens: Tokens of a prompt.
    """

    config: WanConfig | None
    grid: tuple[int, int, int]
    text_tokens: int
    threads: int

    def load(self) -> WanTransformer:
        """Returns the network on the CPU. Sets torch's number of threads."""
        torch.set_num_threads(self.threads)
        if self.config is None:
            return LoadedModel.load(SHIPPED_MODEL).transformer
        torch.manual_seed(0)
        return WanTransformer(self.config).eval().requires_grad_(False)


@dataclass(frozen=True)
class Start:
    """Start of a backend in a new process.

    Attributes:
        seconds: Time until the first full step has run, without importing torch and loading the weights. With
            torch's compiler most of it is spent in other processes.
        cpu_seconds: CPU time of the process in it.
        peak_mib: Largest resident memory of the process after some steps.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float


def build_inputs(network: Network, transformer: WanTransformer) -> dict[str, StepInputs]:
    """Returns the seeded inputs of each kind of step."""
    config, generator = transformer.config, torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def prepare_text() -> TextKV:
        return transformer.encode_text(draw(1, network.text_tokens, config.text_dim))

    cos, sin = rope_table(config, network.grid)
    own = prepare_text()
    contrast = plan_pb2.Amplification(form=plan_pb2.AMPLIFICATION_FORM_CONTRAST, strength=0.5)
    amplified = amplify_text(own, contrast, donor=prepare_text())
    tokens = draw(1, len(cos), config.in_channels * config.patch_volume)
    inputs = {}
    for name, (share, contrasted) in STEPS.items():
        index = torch.randperm(len(cos), generator=generator)[: max(1, round(share * len(cos)))].sort().values
        text = amplified if contrasted else AmplifiedText(own)
        inputs[name] = StepInputs(tokens[:, index], cos[index], sin[index], text, torch.tensor([TIMESTEP]))
    return inputs


def build_backend(name: str, transformer: WanTransformer, graphs: Sequence[Path], threads: int) -> Backend:
    """Creates a backend; `graphs` are the exported files."""
    if name == "torch":
        return EagerBackend(transformer)
    if name == "compiled":
        return compiled_backend(transformer)
    return onnx_backend(transformer, graphs, 0, threads=threads)


def measure_export(network: Network, folder: Path) -> tuple[list[Path], float, float]:
    """Exports the graph. Returns its files, CPU seconds with the exporter's imports, and the peak memory."""
    transformer = network.load()
    begin = time.process_time()
    from services.denoiser.engines.onnx_export import export

    graphs = export(transformer, folder, torch.float32, 0, lambda _: None, fused=True)
    return graphs, time.process_time() - begin, _peak_mib()


@torch.inference_mode()
def measure_start(network: Network, name: str, graphs: Sequence[Path]) -> Start:
    """Creates a backend and runs every kind of step."""
    transformer = network.load()
    inputs = build_inputs(network, transformer)
    begin, cpu = time.perf_counter(), time.process_time()
    backend = build_backend(name, transformer, graphs, network.threads)
    backend.predict(inputs["full"])
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    for step in inputs.values():
        for _ in range(3):
            backend.predict(step)
    return Start(seconds, cpu_seconds, _peak_mib())


@torch.inference_mode()
def measure_steps(
    network: Network, graphs: Sequence[Path], rounds: int
) -> tuple[Seconds, dict[str, tuple[float, float]]]:
    """Measures steps in turns.

    Returns:
        Wall and CPU seconds by (backend, step) in the order of the rounds, and by backend the largest error
        of a prediction relative to torch: of the L2 norm, and of a single value relative to the largest one.
    """
    transformer = network.load()
    inputs = build_inputs(network, transformer)
    backends = {name: build_backend(name, transformer, graphs, network.threads) for name in BACKENDS}
    errors: dict[str, tuple[float, float]] = {}
    for step in inputs.values():
        want = backends["torch"].predict(step)
        for name in BACKENDS[1:]:  # also the warm-up
            error = backends[name].predict(step) - want
            norm = float(error.norm() / want.norm())
            largest = float(error.abs().max() / want.abs().max())
            before = errors.get(name, (0.0, 0.0))
            errors[name] = (max(before[0], norm), max(before[1], largest))
    seconds: Seconds = {(b, s): [] for b in BACKENDS for s in STEPS}
    for number in range(rounds):
        for kind, step in inputs.items():
            for name in BACKENDS if number % 2 else BACKENDS[::-1]:
                begin, cpu = time.perf_counter(), time.process_time()
                backends[name].predict(step)
                seconds[name, kind].append((time.perf_counter() - begin, time.process_time() - cpu))
    return seconds, errors


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def _in_new_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def measure(network: Network, rounds: int, folder: Path) -> dict[str, Figure]:
    graphs, export_seconds, export_mib = _in_new_process(measure_export, network, folder)
    figures = {
        "export_cpu_seconds": results.single(export_seconds, "s"),
        "export_peak_mib": results.single(export_mib, "MiB"),
        "graph_mib": results.single(sum(path.stat().st_size for path in folder.iterdir()) / MIB, "MiB"),
    }
    for name in BACKENDS:
        start = _in_new_process(measure_start, network, name, graphs)
        figures |= {
            f"{name}_start_seconds": results.single(start.seconds, "s"),
            f"{name}_start_cpu_seconds": results.single(start.cpu_seconds, "s"),
            f"{name}_peak_mib": results.single(start.peak_mib, "MiB"),
        }
    seconds, errors = _in_new_process(measure_steps, network, graphs, rounds)
    return figures | build_figures(seconds, errors)


def build_figures(seconds: Seconds, errors: dict[str, tuple[float, float]]) -> dict[str, Figure]:
    """Computes medians of steps, medians of the ratios to torch's step of the same round, and errors."""
    figures = {}
    for (name, kind), values in seconds.items():
        figures[f"{name}_{kind}_seconds_p50"] = results.median([wall for wall, _ in values], "s")
        figures[f"{name}_{kind}_cpu_seconds_p50"] = results.median([cpu for _, cpu in values], "s")
        if name != "torch":
            ratios = [
                cpu / torchs for (_, cpu), (_, torchs) in zip(values, seconds["torch", kind], strict=True)
            ]
            figures[f"{name}_{kind}_cpu_ratio_p50"] = results.median(ratios, "x")
    for name, (norm, largest) in errors.items():
        figures[f"{name}_rel_l2"] = Figure(norm, "relative", len(STEPS))
        figures[f"{name}_rel_max"] = Figure(largest, "relative", len(STEPS))
    return figures


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = results.RESULTS / "cpu_backend.json",
    rounds: Annotated[int, typer.Option(min=2, help="Number of measured steps of each kind.")] = 40,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a step.")] = 1,
    layers: Annotated[int, typer.Option(min=0, help="Blocks; 0: the shipped model.")] = 0,
    heads: Annotated[int, typer.Option(min=1)] = 4,
    head_dim: Annotated[int, typer.Option(min=6)] = 48,
    ffn_dim: Annotated[int, typer.Option(min=1)] = 768,
    in_channels: Annotated[int, typer.Option(min=1)] = 82,
    out_channels: Annotated[int, typer.Option(min=1)] = 48,
    text_dim: Annotated[int, typer.Option(min=1)] = 384,
    grid: Annotated[tuple[int, int, int], typer.Option(help="Tokens along time, rows, columns.")] = (
        4,
        16,
        16,
    ),
    text_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 32,
) -> None:
    config = WanConfig(
        in_channels=in_channels,
        out_channels=out_channels,
        heads=heads,
        head_dim=head_dim,
        ffn_dim=ffn_dim,
        layers=layers,
        text_dim=text_dim,
    )
    if not layers:
        model = LoadedModel.load(SHIPPED_MODEL)
        video = model.spec.video
        grid = model.token_grid(model.latent_shape(video.frames, video.height, video.width))
        config = model.transformer.config
    network = Network(config if layers else None, grid, text_tokens, threads)
    with tempfile.TemporaryDirectory() as directory:
        figures = measure(network, rounds, Path(directory))
    results.write(
        out,
        f"python -m bench.cpu_backend {shlex.join(sys.argv[1:])}".strip(),
        figures,
        network={**asdict(config), "grid": grid, "text_tokens": text_tokens, "threads": threads},
    )
    for name, figure in figures.items():
        print(f"{name}: {figure.value:.4g} {figure.unit} {figure.ci95 or ''}")


if __name__ == "__main__":
    typer.run(main)
