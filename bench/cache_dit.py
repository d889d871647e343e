"""Measures cache-dit on the shipped model: the saving of a cache within one request of four steps.

`python -m bench.cache_dit` samples prompts of the split `test` with diffusers' `WanTransformer3DModel` and
the model's weights, from the same noise: plain, with DBCache of the package `cache-dit`, and without a cache
in fewer steps, the alternative to both. It also runs the steps that remain after reuse of a donor (the
donor's latents, the host adapter), plain and with DBCache within them. Every run is timed directly after a
plain one, in one process on one thread, so the figures cover denoising only and no service. Writes
cache_dit.json into --out and prints a table. cache-dit is part of the extra `rivals`: pip install -e ./client
-e '.[rivals]'.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import torch
import typer
from rich.progress import track
from torch import Tensor

from bench import results
from bench.gpu.networks import build_diffusers_network
from bench.results import Figure
from evaluation.prompts import Group
from evaluation.scenes import SINGLE_EDITS, make_groups
from models.shapes.yardstick.comparison import compare
from models.shapes.yardstick.reader import read
from services.contract.schedule import shifted_schedule
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.positions import position_channels
from services.denoiser.network.sampler import sample
from services.denoiser.settings import SHIPPED_MODEL
from services.embedder.encoders import MiniLMEncoder

FEWER: Final = (3, 2, 1)
PLAIN: Final = "plain"


@dataclass(frozen=True)
class Setting:
    """Configuration of DBCache with cache-dit's field names.

    Its defaults are not measured: they compute the first 8 blocks and the first 8 steps, more than the model
    has. Nor is TaylorSeer, whose extrapolation needs four computed steps before it differs from plain reuse.

    Attributes:
        residual_diff_threshold: Upper bound on the relative L1 difference between the residuals of a step's
            first blocks and those of the last computed step. Below it, the step reuses that step's residual
            for the remaining blocks; 1 always reuses.
        Fn_compute_blocks: Number of first blocks that are always computed.
        Bn_compute_blocks: Number of last blocks that are always computed.
        max_warmup_steps: Number of first steps that are always computed. 0 equals 1, because no step precedes
            the first.
        steps_computation_mask: 1 for each step to compute, 0 for each step to reuse, regardless of
            differences.
    """

    residual_diff_threshold: float = 1.0
    Fn_compute_blocks: int = 1
    Bn_compute_blocks: int = 0
    max_warmup_steps: int = 1
    steps_computation_mask: tuple[int, ...] | None = None


# "threshold" reuses steps with a smaller difference; "steps" computes the listed steps and reuses the others.
SETTINGS: Final[Mapping[str, Setting]] = {
    **{f"threshold {t:g}": Setting(t) for t in (0.08, 0.12, 0.16, 0.2, 0.24, 0.3, 0.5, 1.0)},
    "threshold 0.24, last block too": Setting(0.24, Bn_compute_blocks=1),
    "threshold 1, last block too": Setting(Bn_compute_blocks=1),
    "steps 1, 2": Setting(max_warmup_steps=2),
    "steps 1, 4": Setting(steps_computation_mask=(1, 0, 0, 1)),
    "steps 1, 2, 3": Setting(max_warmup_steps=3),
    "steps 1, 2, 4": Setting(steps_computation_mask=(1, 1, 0, 1)),
    "steps 1, 3, 4": Setting(steps_computation_mask=(1, 0, 1, 1)),
}
# Name -> steps reused from a donor, and the cache within the remaining steps, if any.
AFTER_REUSE: Final[Mapping[str, tuple[int, Setting | None]]] = {
    "reuse of 1 step": (1, None),
    "reuse of 1 step, then steps 1, 3": (1, Setting(steps_computation_mask=(1, 0, 1))),
    "reuse of 2 steps": (2, None),
    "reuse of 2 steps, then step 1": (2, Setting(steps_computation_mask=(1, 0))),
    "reuse of 3 steps": (3, None),
}


@dataclass(frozen=True)
class Output:
    """Result of one run.

    Attributes:
        steps: Latents [C, T, H, W] after each step.
        seconds: Run time, in seconds.
        blocks: Number of blocks that ran.
        cached_steps: Steps that were reused instead of computed.
    """

    steps: Sequence[Tensor]
    seconds: float
    blocks: int
    cached_steps: tuple[int, ...] = ()

    @property
    def latents(self) -> Tensor:
        """Clean latents [C, T, H, W]."""
        return self.steps[-1]


class Network:
    """diffusers' form of the shipped model's network with shared weights, with or without DBCache.

    Args:
        setting: Configuration of DBCache; None for no cache.
        steps: Number of steps of a run; default: those of the model's schedule.

    Raises ImportError if a setting is given and cache-dit is not installed.
    """

    def __init__(self, model: LoadedModel, setting: Setting | None = None, steps: int | None = None) -> None:
        video = model.spec.video
        # All networks share the weights in memory: copies would compete for the processor's caches.
        self._network = build_diffusers_network(model.transformer)
        self._condition = model.condition
        self._predicts_data = model.spec.transformer.prediction == "data"
        self.shape = model.latent_shape(video.frames, video.height, video.width)
        self._positions = position_channels(model.spec.transformer.position_order, self.shape[1:])
        self._blocks_run = 0
        for block in self._network.blocks:
            block.register_forward_hook(self._count)
        self._cached = setting is not None
        if setting is not None:
            _enable(self._network, setting, steps or len(model.spec.schedule.sigmas) - 1)

    def _count(self, *_: object) -> None:
        self._blocks_run += 1

    @torch.inference_mode()
    def run(self, states: Tensor, latents: Tensor, sigmas: Sequence[float]) -> Output:
        """Samples at the given noise levels, from latents at the first and token states [1, L, text_dim]."""
        states = self._condition(states[0])

        def velocity(x: Tensor, sigma: float) -> Tensor:
            inputs = torch.cat((x, self._positions))[None]
            time_step = torch.tensor([1000.0 * sigma])
            out: Tensor = self._network(inputs, time_step, states, return_dict=False)[0][0]
            return (x - out) / sigma if self._predicts_data else out

        if self._cached:
            import cache_dit

            # Not timed. Without the refresh, the context counts one step too many before it resets, and every
            # request after the first would start with the residuals of another one.
            cache_dit.refresh_context(self._network)
        self._blocks_run = 0
        begin = time.perf_counter()
        steps = list(sample(velocity, latents, sigmas))
        seconds = time.perf_counter() - begin
        return Output(steps, seconds, self._blocks_run, self._get_cached_steps())

    def _get_cached_steps(self) -> tuple[int, ...]:
        if not self._cached:
            return ()
        import cache_dit

        return tuple(cache_dit.summary(self._network, logging=False)[0].cached_steps)


def _enable(network: Any, setting: Setting, steps: int) -> None:
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "WARNING")  # cache-dit reads it at import
    import cache_dit

    cache_dit.enable_cache(
        network,
        cache_config=cache_dit.DBCacheConfig(
            **asdict(setting),
            num_inference_steps=steps,
            steps_computation_policy="static",
            # One call per step: the distilled student needs no guidance.
            enable_separate_cfg=False,
        ),
    )


@dataclass(frozen=True)
class Outcome:
    """Result of one prompt with one method, compared with the plain run directly before it.

    Attributes:
        seconds: Run time, in seconds.
        speedup: Run time of the plain run divided by `seconds`.
        correct: Whether the video shows everything that the prompt requests.
        change: L2 norm of the difference from the plain latents, divided by the norm of these.
        blocks: Number of blocks that ran.
        cached_steps: Number of steps that were reused instead of computed.
    """

    seconds: float
    speedup: float
    correct: bool
    change: float
    blocks: int
    cached_steps: int


@dataclass(frozen=True)
class Start:
    """What a run may start from: the noise, or a donor's latents after each step, each [C, T, H, W]."""

    noise: Tensor
    donor: Sequence[Tensor]


Method: TypeAlias = Callable[[Tensor, Start], Output]


class Harness:
    """Runs the model plain and with every method, on one thread."""

    def __init__(self, settings: Mapping[str, Setting] = SETTINGS) -> None:
        torch.set_num_threads(1)
        self.model = LoadedModel.load(SHIPPED_MODEL)
        self.encoder = MiniLMEncoder()
        sigmas, shift = self.model.spec.schedule.sigmas, self.model.spec.schedule.shift
        self.network = Network(self.model)
        self.methods: dict[str, Method] = {}
        for name, setting in settings.items():
            self.methods[name] = self._build_method(Network(self.model, setting), sigmas)
        for steps in FEWER:
            schedule = shifted_schedule(steps, shift)
            self.methods[f"{steps} steps, no cache"] = self._build_method(self.network, schedule)
        host = self.model.host or self.model
        for name, (reused, within) in (AFTER_REUSE if settings else {}).items():
            network = Network(host, within, len(sigmas) - 1 - reused)
            self.methods[name] = self._build_hit(network, sigmas[reused:], reused)
        self._plain = self._build_method(self.network, sigmas)

    @staticmethod
    def _build_method(network: Network, sigmas: Sequence[float]) -> Method:
        return lambda states, start: network.run(states, start.noise, sigmas)

    @staticmethod
    def _build_hit(network: Network, sigmas: Sequence[float], reused: int) -> Method:
        return lambda states, start: network.run(states, start.donor[reused - 1], sigmas)

    def measure_difference(self, prompt: str, seed: int) -> float:
        """Measures the relative difference of diffusers' clean latents from the denoiser's."""
        noise, states = self.model.noise(seed, self.network.shape), self.encoder.encode([prompt])[0].states
        start = Start(noise, [])
        text = self.model.prepare_text(states)
        predictor, sigmas = Predictor.eager(self.model), self.model.spec.schedule.sigmas
        *_, own = sample(lambda x, s: predictor.latent_velocity(x, s, text), noise, sigmas)
        return _relative_error(self._plain(torch.as_tensor(states)[None], start).latents, own)

    def run_trial(self, donor: str, prompt: str, scene: Any, seed: int) -> dict[str, Outcome]:
        """Runs one prompt with every method.

        Args:
            donor: Prompt of the donor, which has the same seed.
            scene: Scene that `prompt` requests.
        """
        noise = self.model.noise(seed, self.network.shape)
        states, theirs = (torch.as_tensor(e.states)[None] for e in self.encoder.encode([prompt, donor]))
        start = Start(noise, self._plain(theirs, Start(noise, [])).steps)

        def is_correct(latents: Tensor) -> bool:
            return compare(read(self.model.decode(latents)).scene, scene)["all"]

        reference = self._plain(states, start)
        correct = is_correct(reference.latents)
        outcomes = {PLAIN: Outcome(reference.seconds, 1.0, correct, 0.0, reference.blocks, 0)}
        offset = seed % len(self.methods)  # rotates the order, so that the neighbours of a method vary
        names = list(self.methods)
        for name in names[offset:] + names[:offset]:
            before, output = self._plain(states, start), self.methods[name](states, start)
            outcomes[name] = Outcome(
                output.seconds,
                before.seconds / output.seconds,
                is_correct(output.latents),
                _relative_error(output.latents, reference.latents),
                output.blocks,
                len(output.cached_steps),
            )
        return {name: outcomes[name] for name in (PLAIN, *names)}


def _relative_error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def build_figures(trials: Sequence[Mapping[str, Outcome]]) -> dict[str, Figure]:
    figures = {}
    for name in trials[0]:
        outcomes = [trial[name] for trial in trials]
        figures[f"{name}.seconds_p50"] = results.median([o.seconds for o in outcomes], "s")
        figures[f"{name}.speedup"] = results.median([o.speedup for o in outcomes], "x")
        figures[f"{name}.alignment"] = results.share(sum(o.correct for o in outcomes), len(outcomes))
        figures[f"{name}.alignment_loss_points"] = results.mean(
            [100.0 * (trial[PLAIN].correct - trial[name].correct) for trial in trials], "percentage points"
        )
        figures[f"{name}.change"] = results.mean([o.change for o in outcomes], "of the plain latents' norm")
        figures[f"{name}.cached_steps"] = results.mean([float(o.cached_steps) for o in outcomes], "steps")
        figures[f"{name}.blocks"] = results.mean([float(o.blocks) for o in outcomes], "blocks")
    return figures


def run_trials(harness: Harness, groups: Sequence[Group], seed: int) -> list[dict[str, Outcome]]:
    """Runs the first target of each group with every method; each group has the next seed."""
    return [
        harness.run_trial(group.donor.prompt, group.targets[0].prompt, group.targets[0].scene, seed + i)
        for i, group in enumerate(track(groups, "caches within a request"))
    ]


def format_table(figures: Mapping[str, Figure]) -> str:
    """Formats the figures as a Markdown table with a row for each method."""
    lines = [
        "| | steps reused | blocks run | faster | shows all | latents changed |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(key.rpartition(".")[0] for key in figures if "." in key):

        def get(field: str, name: str = name) -> Figure:
            return figures[f"{name}.{field}"]

        low, high = get("speedup").ci95 or (get("speedup").value,) * 2
        lines.append(
            f"| {name} | {get('cached_steps').value:.2f} | {get('blocks').value:.1f} |"
            f" {get('speedup').value:.2f}× ({low:.2f}–{high:.2f}) | {100 * get('alignment').value:.0f} % |"
            f" {100 * get('change').value:.1f} % |"
        )
    return "\n".join(lines)


def main(
    count: Annotated[
        int, typer.Option(min=20, help="Number of prompt pairs of all kinds; single edits are run.")
    ] = 100,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder to write the result to.")
    ] = results.RESULTS,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts and of the first video.")] = 9000,
) -> None:
    try:
        harness = Harness()
    except ImportError as error:
        if error.name != "cache_dit":
            raise
        raise typer.BadParameter(
            "cache-dit is not installed: pip install -e ./client -e '.[rivals]'"
        ) from None
    groups = [group for group in make_groups("test", count, seed, "unseen") if group.kind in SINGLE_EDITS]
    difference = harness.measure_difference(groups[0].targets[0].prompt, seed)  # also the warm-up
    trials = run_trials(harness, groups, seed)
    figures = build_figures(trials)
    figures["diffusers_to_denoiser"] = results.single(difference, "of the latents' norm")
    command = f"python -m bench.cache_dit {shlex.join(sys.argv[1:])}".strip()
    settings = {name: asdict(setting) for name, setting in SETTINGS.items()}
    results.write(out / "cache_dit.json", command, figures, settings=settings)
    print(format_table(figures))


if __name__ == "__main__":
    typer.run(main)
