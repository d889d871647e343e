"""Steps of one network: full, of a region, amplified; by every backend, and by diffusers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu import sequences
from bench.gpu.networks import diffusers_step, random_network
from bench.gpu.section import Bench
from bench.gpu.shapes import REGIONS, SIGMAS, region, step_flops
from bench.gpu.timing import milliseconds, relative, seconds, top_kernels
from bench.results import Figure, median, ratio, single
from services.denoiser.backends.base import Backend, BackendError, StepInputs
from services.denoiser.backends.compiled import compiled_backend
from services.denoiser.backends.eager import EagerBackend
from services.denoiser.network.text import AmplifiedText, LayerAmplification
from services.denoiser.network.wan import WanTransformer, rope_table

ITEMS = ("full", *REGIONS, "amplified")
# How far another backend's step may lie from eager's, by relative norm: rounding of all its blocks.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
# Of torch's compiler, for all it compiles of a network; it was 20 s on two CPU cores for a small one.
_COMPILE_SECONDS = 60.0


@dataclass
class _Steps:
    """One network's steps, and what was measured of them: milliseconds by backend and item."""

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
        """Seconds, from eager's full step; 0 before there is one."""
        if not (full := self.times.get(("eager", "full"))):
            return 0.0
        config, keys = self.network.config, self.bench.scale.keys
        share = step_flops(config, self.inputs[item].tokens.shape[1], keys) / step_flops(
            config, self.bench.scale.tokens, keys
        )
        return 1.2 * runs * share * max(full) / 1e3

    def measure(self, backend: str, item: str, step: Callable[[], Tensor]) -> bool:
        """Times a step, once its result is near eager's; whether it is.

        Raises whatever the step does.
        """
        what = f"{self.name}_{backend}_{item}"
        if not self.bench.affords(what, self.estimate(item, self.repeats + 1)):
            return False
        out = step()
        if item not in self.expected:
            self.expected[item] = out.clone()
        error = relative(out, self.expected[item])
        if backend != "eager":
            self.figure(f"{what}_to_eager_rel", single(error, "relative"))
        if not error <= TOLERANCES[out.dtype]:
            words = f"lies {error:.2g} from eager, more than {TOLERANCES[out.dtype]:g}: not timed"
            self.bench.report.note("failed", what, words)
            return False
        del out
        self.times[backend, item] = milliseconds(step, self.repeats, self.bench.device, warmups=0)
        self.figure(f"{what}_ms", median(self.times[backend, item], "ms"))
        return True

    def figure(self, name: str, figure: Figure) -> None:
        self.bench.report.figure(name, figure)

    def median_ms(self, backend: str, item: str) -> float | None:
        times = self.times.get((backend, item))
        return sorted(times)[len(times) // 2] if times else None


def run(bench: Bench, name: str) -> None:
    """Everything about the scale's network `name`. A backend that fails is noted, and the rest goes on."""
    network = random_network(bench.scale.networks[name].config, bench.device, bench.dtype)
    # As the service does: weights are loaded outside of inference mode, everything else is made inside. To
    # the compiler, what is made outside is of another kind, and is compiled apart.
    with torch.inference_mode():
        _measure(_prepared(bench, name, network))


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
    if (compiled := _compiled(steps)) is not None:
        backends["compiled"] = compiled
    best = _best(steps, backends)
    _compared(steps, best)
    _whole_requests(steps, backends[best])
    _diffusers(steps, best)
    _cuda_graph(steps, eager)
    if bench.device.type == "cuda":
        for label, backend in backends.items():
            _profile(steps, label, partial(backend.predict, steps.inputs["full"]))


def _prepared(bench: Bench, name: str, transformer: WanTransformer) -> _Steps:
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
        inputs[item] = video.inputs(x, sigma, region(scale.grid, share, device))
    full = inputs["full"]
    contrast = AmplifiedText(text, tuple(LayerAmplification(other=kv, strength=0.5) for kv in donor))
    inputs["amplified"] = StepInputs(full.tokens, full.rope_cos, full.rope_sin, contrast, full.timestep)
    return _Steps(bench, name, transformer, video, states, inputs, scale.networks[name].repeats)


def _compiled(steps: _Steps) -> Backend | None:
    """The compiled backend, measured; None where it was not, or its full step is not right."""
    bench, what = steps.bench, f"{steps.name}_compiled"
    if not bench.compiling:
        bench.skip(what, "not asked for: on a CPU, compiling says nothing of a GPU")
        return None
    if not bench.affords(what, _COMPILE_SECONDS + steps.estimate("full", steps.repeats + 1)):
        return None
    backend, right = compiled_backend(steps.network), False
    try:
        for item in ITEMS:
            if item in ("full", "amplified"):  # where something is compiled
                took = seconds(partial(backend.predict, steps.inputs[item]), bench.device)
                steps.figure(f"{what}_{item}_first_s", single(took, "s"))
            if not steps.measure("compiled", item, partial(backend.predict, steps.inputs[item])):
                break
            right = right or item == "full"
    except (BackendError, RuntimeError) as error:
        bench.report.note("failed", what, f"{type(error).__name__}: {error}")
    # A few: were every block compiled apart, dynamo would give up and run the rest as it is.
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    bench.report.note("facts", f"{what}_graphs", graphs)
    return backend if right else None


def _best(steps: _Steps, backends: Mapping[str, Backend]) -> str:
    """The backend of the fastest full step, of those that serve."""

    def full_ms(label: str) -> float:
        found = steps.median_ms(label, "full")
        return float("inf") if found is None else found

    best = min(backends, key=full_ms)
    steps.bench.report.note("facts", f"{steps.name}_best_backend", best)
    return best


def _compared(steps: _Steps, best: str) -> None:
    """Figures that follow from the best backend's times; those of regions that have none are left out."""
    name, bench = steps.name, steps.bench
    full = steps.times[best, "full"]
    steps.figure(f"{name}_full_step_ms", median(full, "ms"))
    flops = step_flops(steps.network.config, bench.scale.tokens, bench.scale.keys)
    steps.figure(f"{name}_full_step_tflops", median([flops / ms / 1e9 for ms in full], "TFLOP/s"))
    if bench.matmul_tflops is None:
        bench.skip(f"{name}_full_step_of_bound", "the rate of matrix products was not measured")
    else:
        bound = flops / bench.matmul_tflops / 1e9
        steps.figure(f"{name}_full_step_of_bound", median([bound / ms for ms in full], "share"))
    for item in REGIONS:
        if times := steps.times.get((best, item)):
            steps.figure(f"{name}_{item}_ratio", ratio(times, full))
    if times := steps.times.get((best, "amplified")):
        over = ratio(times, full, "share")
        low, high = over.ci95 or (over.value, over.value)
        steps.figure(f"{name}_amplify_overhead", Figure(over.value - 1, "share", over.n, (low - 1, high - 1)))


def _whole_requests(steps: _Steps, backend: Backend) -> None:
    """`hit_plan_speedup`: four full steps by K1 = 1, two steps of 30 % of the tokens and a full one."""
    name, bench = steps.name, steps.bench
    at = region(bench.scale.grid, REGIONS["region30"], bench.device)
    one = steps.estimate("full", 5) + steps.estimate("region30", 2)
    if not bench.affords(f"{name}_hit_plan_speedup", steps.repeats * one):
        return
    x, full_ms, hit_ms = steps.video.latents[0], [], []
    for where in (None, at):
        backend.predict(steps.video.inputs(x, SIGMAS[0], where))
    for _ in range(steps.repeats):  # in turn, so that a clock rate that falls hits both
        full_ms += milliseconds(partial(sequences.full, backend, steps.video), 1, bench.device, 0)
        hit_ms += milliseconds(partial(sequences.hit, backend, steps.video, at), 1, bench.device, 0)
    steps.figure(f"{name}_full_plan_ms", median(full_ms, "ms"))
    steps.figure(f"{name}_hit_plan_ms", median(hit_ms, "ms"))
    steps.figure(f"{name}_hit_plan_speedup", ratio(full_ms, hit_ms))


def _diffusers(steps: _Steps, best: str) -> None:
    """`vs_diffusers`: its full step by ours."""
    name, video = steps.name, steps.video
    full = steps.inputs["full"]
    try:
        step = diffusers_step(steps.network, full.tokens, video.grid, steps.states, full.timestep)
        measured = steps.measure("diffusers", "full", step)
    except ImportError as error:
        steps.bench.skip(f"{name}_diffusers", f"{type(error).__name__}: {error}")
        return
    except (RuntimeError, ValueError, TypeError) as error:
        steps.bench.report.note("failed", f"{name}_diffusers", f"{type(error).__name__}: {error}")
        return
    if measured:
        theirs, ours = steps.times["diffusers", "full"], steps.times[best, "full"]
        steps.figure(f"{name}_vs_diffusers", ratio(theirs, ours))


def _cuda_graph(steps: _Steps, eager: EagerBackend) -> None:
    """Eager's step without the host's part: what launches cost."""
    what, bench = f"{steps.name}_cuda_graph", steps.bench
    if bench.device.type != "cuda":
        bench.skip(what, "needs a CUDA device")
        return
    for item in ("region10", "full"):  # the shorter, the more of it are launches
        if not bench.affords(f"{what}_{item}", steps.estimate(item, steps.repeats + 4)):
            continue
        try:
            replay = _captured(partial(eager.predict, steps.inputs[item]))
            steps.measure("cuda_graph", item, replay)
        except RuntimeError as error:
            bench.report.note("failed", f"{what}_{item}", f"{type(error).__name__}: {error}")
            return
        del replay
        gc.collect()
        torch.cuda.empty_cache()


def _captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A step over inputs that stay where they are, as a CUDA graph."""
    make: Any = torch.cuda.Stream
    side = make()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries make their handles before they are captured
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
    what = f"{steps.name}_{label}_kernels"
    if not steps.bench.affords(what, steps.estimate("full", 3) + 5):
        return
    try:
        steps.bench.report.note("facts", what, top_kernels(step))
    except (RuntimeError, AttributeError) as error:
        steps.bench.report.note("failed", what, f"{type(error).__name__}: {error}")
