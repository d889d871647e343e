"""Sections "wan1_3b" and "wan14b": full, region and amplified steps on every backend and on diffusers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu import sequences
from bench.gpu.networks import build_diffusers_step, random_network
from bench.gpu.section import Bench
from bench.gpu.shapes import REGIONS, SIGMAS, select_region, step_flops
from bench.gpu.timing import measure_milliseconds, measure_seconds, profile_top_kernels, relative_error
from bench.results import Figure, median, ratio, single
from services.denoiser.backends.base import Backend, BackendError, StepInputs
from services.denoiser.backends.compiled import compiled_backend
from services.denoiser.backends.eager import EagerBackend
from services.denoiser.network.text import AmplifiedText, LayerAmplification
from services.denoiser.network.wan import WanTransformer, rope_table

ITEMS = ("full", *REGIONS, "amplified")
# Upper bound on the relative error against eager, by type: accumulated rounding of all blocks.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
# Estimated compile time of a network, in seconds; measured: 20 s on two CPU cores for a small one.
_COMPILE_SECONDS = 60.0


@dataclass
class _Steps:
    """Steps of one network, with times in milliseconds and expected results by item."""

    bench: Bench
    name: str
    network: WanTransformer
    video: sequences.Video
    states: Tensor
    inputs: dict[str, StepInputs]
    repeats: int
    times: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    expected: dict[str, Tensor] = field(default_factory=dict)

    def estimate(self, item: str, runs: int) -> float:
        """Estimates the time of `runs` steps from eager's full step, in seconds; 0 before it is measured."""
        if not (full := self.times.get(("eager", "full"))):
            return 0.0
        config, keys = self.network.config, self.bench.scale.keys
        share = step_flops(config, self.inputs[item].tokens.shape[1], keys) / step_flops(
            config, self.bench.scale.tokens, keys
        )
        return 1.2 * runs * share * max(full) / 1e3

    def measure(self, backend: str, item: str, step: Callable[[], Tensor]) -> bool:
        """Times a step if its result agrees with eager's. Returns whether it was timed.

        Errors of the step are not caught.
        """
        label = f"{self.name}_{backend}_{item}"
        if not self.bench.has_time_for(label, self.estimate(item, self.repeats + 1)):
            return False
        out = step()
        if item not in self.expected:
            self.expected[item] = out.clone()
        error = relative_error(out, self.expected[item])
        if backend != "eager":
            self.figure(f"{label}_to_eager_rel", single(error, "relative"))
        if not error <= TOLERANCES[out.dtype]:
            detail = f"differs from eager by {error:.2g}, more than {TOLERANCES[out.dtype]:g}: not timed"
            self.bench.report.note("failed", label, detail)
            return False
        del out
        self.times[backend, item] = measure_milliseconds(step, self.repeats, self.bench.device, warmups=0)
        self.figure(f"{label}_ms", median(self.times[backend, item], "ms"))
        return True

    def figure(self, name: str, figure: Figure) -> None:
        self.bench.report.figure(name, figure)

    def median_ms(self, backend: str, item: str) -> float | None:
        times = self.times.get((backend, item))
        return sorted(times)[len(times) // 2] if times else None


def run(bench: Bench, name: str) -> None:
    """Measures the network `name` of the scale. Records backends that fail and continues."""
    network = random_network(bench.scale.networks[name].config, bench.device, bench.dtype)
    # As in the service: weights are loaded outside of inference mode, all other tensors are created inside.
    # The compiler treats tensors created outside as a different kind and would compile them separately.
    with torch.inference_mode():
        _measure(_prepare(bench, name, network))


def _measure(steps: _Steps) -> None:
    bench, name = steps.bench, steps.name
    eager = EagerBackend(steps.network)
    for item in ITEMS:
        steps.measure("eager", item, partial(eager.predict, steps.inputs[item]))
    if bench.device.type == "cuda":
        gigabytes = torch.cuda.max_memory_allocated(bench.device) / 1e9
        steps.figure(f"{name}_memory_gb", single(gigabytes, "GB"))
    if ("eager", "full") not in steps.times:
        return
    backends: dict[str, Backend] = {"eager": eager}
    if (compiled := _measure_compiled(steps)) is not None:
        backends["compiled"] = compiled
    best = _select_best(steps, backends)
    _report_best(steps, best)
    _measure_requests(steps, backends[best])
    _measure_diffusers(steps, best)
    _measure_cuda_graph(steps, eager)
    if bench.device.type == "cuda":
        for label, backend in backends.items():
            _profile(steps, label, partial(backend.predict, steps.inputs["full"]))


def _prepare(bench: Bench, name: str, transformer: WanTransformer) -> _Steps:
    scale, device, config = bench.scale, bench.device, transformer.config
    bench.report.note(
        "facts",
        name,
        {
            "tokens": scale.tokens,
            "text_keys": scale.keys,
            "parameters": sum(p.numel() for p in transformer.parameters()),
            "full_step_pflop": step_flops(config, scale.tokens, scale.keys) / 1e15,
        },
    )
    generator = torch.Generator(device).manual_seed(1)
    random = partial(torch.randn, generator=generator, device=device)
    cos, sin = (table.to(device) for table in rope_table(config, scale.grid))
    states, donor_states = (random(1, scale.keys, config.text_dim).to(bench.dtype) for _ in range(2))
    text, donor = transformer.encode_text(states), transformer.encode_text(donor_states)
    latents = random(len(SIGMAS), scale.tokens, config.in_channels * config.patch_volume)
    video = sequences.Video(scale.grid, latents, cos, sin, AmplifiedText(text), bench.dtype)
    x, sigma = latents[0], SIGMAS[1]
    inputs = {"full": video.inputs(x, sigma)}
    for item, share in REGIONS.items():
        inputs[item] = video.inputs(x, sigma, select_region(scale.grid, share, device))
    full = inputs["full"]
    contrast = AmplifiedText(text, tuple(LayerAmplification(other=kv, strength=0.5) for kv in donor))
    inputs["amplified"] = StepInputs(full.tokens, full.rope_cos, full.rope_sin, contrast, full.timestep)
    return _Steps(bench, name, transformer, video, states, inputs, scale.networks[name].repeats)


def _measure_compiled(steps: _Steps) -> Backend | None:
    """Measures the compiled backend. Returns None if it was skipped or its full step is wrong."""
    bench, label = steps.bench, f"{steps.name}_compiled"
    if not bench.compiling:
        bench.skip(label, "not requested: compilation on a CPU is not representative of a GPU")
        return None
    if not bench.has_time_for(label, _COMPILE_SECONDS + steps.estimate("full", steps.repeats + 1)):
        return None
    backend, correct = compiled_backend(steps.network), False
    try:
        for item in ITEMS:
            if item in ("full", "amplified"):  # the first step with one and with two texts compiles
                first = measure_seconds(partial(backend.predict, steps.inputs[item]), bench.device)
                steps.figure(f"{label}_{item}_first_s", single(first, "s"))
            if not steps.measure("compiled", item, partial(backend.predict, steps.inputs[item])):
                break
            correct = correct or item == "full"
    except (BackendError, RuntimeError) as error:
        bench.report.note("failed", label, f"{type(error).__name__}: {error}")
    # Expected: a few. If every block were compiled separately, dynamo would fall back to eager execution.
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    bench.report.note("facts", f"{label}_graphs", graphs)
    return backend if correct else None


def _select_best(steps: _Steps, backends: Mapping[str, Backend]) -> str:
    """Returns the backend with the fastest full step among those used for serving."""

    def full_ms(label: str) -> float:
        median_ms = steps.median_ms(label, "full")
        return float("inf") if median_ms is None else median_ms

    best = min(backends, key=full_ms)
    steps.bench.report.note("facts", f"{steps.name}_best_backend", best)
    return best


def _report_best(steps: _Steps, best: str) -> None:
    """Reports figures derived from the times of the best backend. Omits regions without times."""
    name, bench = steps.name, steps.bench
    full = steps.times[best, "full"]
    steps.figure(f"{name}_full_step_ms", median(full, "ms"))
    flops = step_flops(steps.network.config, bench.scale.tokens, bench.scale.keys)
    steps.figure(f"{name}_full_step_tflops", median([flops / ms / 1e9 for ms in full], "TFLOP/s"))
    if bench.matmul_tflops is None:
        bench.skip(f"{name}_full_step_of_bound", "matmul_tflops was not measured")
    else:
        bound = flops / bench.matmul_tflops / 1e9
        steps.figure(f"{name}_full_step_of_bound", median([bound / ms for ms in full], "share"))
    for item in REGIONS:
        if times := steps.times.get((best, item)):
            steps.figure(f"{name}_{item}_ratio", ratio(times, full))
    if times := steps.times.get((best, "amplified")):
        quotient = ratio(times, full, "share")
        low, high = quotient.ci95 or (quotient.value, quotient.value)
        overhead = Figure(quotient.value - 1, "share", quotient.n, (low - 1, high - 1))
        steps.figure(f"{name}_amplify_overhead", overhead)


def _measure_requests(steps: _Steps, backend: Backend) -> None:
    """Measures `hit_plan_speedup`.

    It compares four full steps with the plan K1 = 1: two steps of 30 % of the tokens and a full one.
    """
    name, bench = steps.name, steps.bench
    at = select_region(bench.scale.grid, REGIONS["region30"], bench.device)
    seconds_per_repeat = steps.estimate("full", 5) + steps.estimate("region30", 2)
    if not bench.has_time_for(f"{name}_hit_plan_speedup", steps.repeats * seconds_per_repeat):
        return
    x, full_ms, hit_ms = steps.video.latents[0], [], []
    for tokens in (None, at):
        backend.predict(steps.video.inputs(x, SIGMAS[0], tokens))
    for _ in range(steps.repeats):  # alternating, so that a falling clock rate affects both
        full_ms += measure_milliseconds(partial(sequences.run_full, backend, steps.video), 1, bench.device, 0)
        hit_ms += measure_milliseconds(
            partial(sequences.run_hit, backend, steps.video, at), 1, bench.device, 0
        )
    steps.figure(f"{name}_full_plan_ms", median(full_ms, "ms"))
    steps.figure(f"{name}_hit_plan_ms", median(hit_ms, "ms"))
    steps.figure(f"{name}_hit_plan_speedup", ratio(full_ms, hit_ms))


def _measure_diffusers(steps: _Steps, best: str) -> None:
    """Measures `vs_diffusers`, the time of diffusers' full step divided by that of the best backend."""
    name, video = steps.name, steps.video
    full = steps.inputs["full"]
    try:
        step = build_diffusers_step(steps.network, full.tokens, video.grid, steps.states, full.timestep)
        measured = steps.measure("diffusers", "full", step)
    except ImportError as error:
        steps.bench.skip(f"{name}_diffusers", f"{type(error).__name__}: {error}")
        return
    except (RuntimeError, ValueError, TypeError) as error:
        steps.bench.report.note("failed", f"{name}_diffusers", f"{type(error).__name__}: {error}")
        return
    if measured:
        diffusers_ms, best_ms = steps.times["diffusers", "full"], steps.times[best, "full"]
        steps.figure(f"{name}_vs_diffusers", ratio(diffusers_ms, best_ms))


def _measure_cuda_graph(steps: _Steps, eager: EagerBackend) -> None:
    """Measures eager's steps as CUDA graphs, which excludes the launch overhead of the host."""
    label, bench = f"{steps.name}_cuda_graph", steps.bench
    if bench.device.type != "cuda":
        bench.skip(label, "needs a CUDA device")
        return
    for item in ("region10", "full"):  # launches take a larger share of shorter steps
        if not bench.has_time_for(f"{label}_{item}", steps.estimate(item, steps.repeats + 4)):
            continue
        try:
            replay = _capture(partial(eager.predict, steps.inputs[item]))
            steps.measure("cuda_graph", item, replay)
        except RuntimeError as error:
            bench.report.note("failed", f"{label}_{item}", f"{type(error).__name__}: {error}")
            return
        del replay
        gc.collect()
        torch.cuda.empty_cache()


def _capture(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Captures a step with inputs at fixed addresses as a CUDA graph. Returns its replay."""
    construct: Any = torch.cuda.Stream
    side = construct()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries must create their handles before the capture
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def _profile(steps: _Steps, label: str, step: Callable[[], Tensor]) -> None:
    name = f"{steps.name}_{label}_kernels"
    if not steps.bench.has_time_for(name, steps.estimate("full", 3) + 5):
        return
    try:
        steps.bench.report.note("facts", name, profile_top_kernels(step))
    except (RuntimeError, AttributeError) as error:
        steps.bench.report.note("failed", name, f"{type(error).__name__}: {error}")
