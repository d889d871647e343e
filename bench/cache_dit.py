"""cache-dit on the shipped model: what a cache inside one request saves of four steps.

`python -m bench.cache_dit` samples prompts of the split `test` with diffusers' `WanTransformer3DModel`, which
takes the model's own weights, plain and with DBCache of the package `cache-dit`, from the same noise; and in
fewer steps without it, which is the rival of both. Every run is timed right after a plain one, in one process
on one thread: the figures are of denoising alone, and say nothing of a service around it. Writes
cache_dit.json into --out and prints a table. cache-dit is the extra `rivals`: pip install -e '.[rivals]'.
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
from bench.gpu.networks import as_diffusers
from bench.results import Figure
from evaluation.scenes import make_groups
from models.movingshapes.analyzer import compare, read_scene
from models.movingshapes.evaluate import STUDENT
from services.contract.schedule import shifted_schedule
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.positions import position_channels
from services.denoiser.network.sampler import sample
from services.embedder.encoders import MiniLMEncoder

FEWER: Final = (3, 2, 1)
PLAIN: Final = "plain"


@dataclass(frozen=True)
class Setting:
    """A configuration of DBCache, by cache-dit's own names.

    Not measured: its defaults, which compute the first 8 blocks and the first 8 steps, more than there are;
    and TaylorSeer, whose extrapolation asks for four computed steps before it differs from plain reuse.

    Attributes:
        residual_diff_threshold: a step whose first blocks add what those of the last computed step added, up
            to this relative L1 difference, takes that step's residual for the blocks after them; 1 always
            does.
        Fn_compute_blocks, Bn_compute_blocks: how many first and last blocks are always computed.
        max_warmup_steps: first steps that are computed in any case. 0 is as 1: nothing precedes the first.
        steps_computation_mask: 1 for each step that is computed, 0 for one that is not, whatever the
            differences.
    """

    residual_diff_threshold: float = 1.0
    Fn_compute_blocks: int = 1
    Bn_compute_blocks: int = 0
    max_warmup_steps: int = 1
    steps_computation_mask: tuple[int, ...] | None = None


# "Threshold" reuses a step that differs by less; "steps" computes those and reuses the others.
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


@dataclass(frozen=True)
class Made:
    """One run: clean latents [C, T, H, W], seconds, how many blocks ran, which steps were not computed."""

    latents: Tensor
    seconds: float
    blocks: int
    cached_steps: tuple[int, ...] = ()


class Network:
    """The shipped model's network as diffusers has it, with its weights shared, perhaps under DBCache.

    Raises ImportError where a setting is asked for and cache-dit is not installed.
    """

    def __init__(self, model: LoadedModel, setting: Setting | None = None) -> None:
        video = model.spec.video
        # The same memory for all: copies would compete for the processor's caches.
        self._network = as_diffusers(model.transformer)
        self._predicts_data = model.spec.transformer.prediction == "data"
        self.shape = model.latent_shape(video.frames, video.height, video.width)
        self._positions = position_channels(model.spec.transformer.position_order, self.shape[1:])
        self._ran = 0
        for block in self._network.blocks:
            block.register_forward_hook(self._count)
        self._cached = setting is not None
        if setting is not None:
            _enable(self._network, setting, len(model.spec.schedule.sigmas) - 1)

    def _count(self, *_: object) -> None:
        self._ran += 1

    @torch.inference_mode()
    def run(self, states: Tensor, noise: Tensor, sigmas: Sequence[float]) -> Made:
        """Args: `states`: token states [1, L, text_dim]."""

        def velocity(x: Tensor, sigma: float) -> Tensor:
            inputs = torch.cat((x, self._positions))[None]
            time_step = torch.tensor([1000.0 * sigma])
            out: Tensor = self._network(inputs, time_step, states, return_dict=False)[0][0]
            return (x - out) / sigma if self._predicts_data else out

        if self._cached:
            import cache_dit

            # Not timed. Left alone, the context counts one step too many before it starts anew, so that every
            # request after the first would begin with the residuals of another one.
            cache_dit.refresh_context(self._network)
        self._ran = 0
        begin = time.perf_counter()
        *_, last = sample(velocity, noise, sigmas)
        seconds = time.perf_counter() - begin
        return Made(last, seconds, self._ran, self._steps())

    def _steps(self) -> tuple[int, ...]:
        if not self._cached:
            return ()
        import cache_dit

        return tuple(cache_dit.summary(self._network, logging=False)[0].cached_steps)


def _enable(network: Any, setting: Setting, steps: int) -> None:
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "WARNING")  # read at its import
    import cache_dit

    cache_dit.enable_cache(
        network,
        cache_config=cache_dit.DBCacheConfig(
            **asdict(setting),
            num_inference_steps=steps,
            steps_computation_policy="static",
            # One call a step: the student is distilled to need no guidance.
            enable_separate_cfg=False,
        ),
    )


@dataclass(frozen=True)
class Tried:
    """A prompt by one way, beside the plain run just before.

    Attributes:
        faster: the plain run's seconds by this one's, which are `seconds`.
        right: whether the video shows all that was asked.
        change: L2 norm of the difference from the plain latents, over theirs.
    """

    seconds: float
    faster: float
    right: bool
    change: float
    blocks: int
    cached_steps: int


Way: TypeAlias = Callable[[Tensor, Tensor], Made]


class Bench:
    """The model plain and by every way, on one thread."""

    def __init__(self, settings: Mapping[str, Setting] = SETTINGS) -> None:
        torch.set_num_threads(1)
        self.model = LoadedModel.load(STUDENT)
        self.encoder = MiniLMEncoder()
        sigmas, shift = self.model.spec.schedule.sigmas, self.model.spec.schedule.shift
        self.network = Network(self.model)
        self.ways: dict[str, Way] = {}
        for name, setting in settings.items():
            self.ways[name] = self._way(Network(self.model, setting), sigmas)
        for steps in FEWER:
            self.ways[f"{steps} steps, no cache"] = self._way(self.network, shifted_schedule(steps, shift))
        self._plain = self._way(self.network, sigmas)

    @staticmethod
    def _way(network: Network, sigmas: Sequence[float]) -> Way:
        return lambda states, noise: network.run(states, noise, sigmas)

    def difference(self, prompt: str, seed: int) -> float:
        """How far diffusers' clean latents are from the denoiser's own, relative."""
        noise, states = self.model.noise(seed, self.network.shape), self.encoder.encode([prompt])[0].states
        text = self.model.prepare_text(states)
        predictor, sigmas = Predictor.eager(self.model), self.model.spec.schedule.sigmas
        *_, own = sample(lambda x, s: predictor.latent_velocity(x, s, text), noise, sigmas)
        return _relative(self._plain(torch.as_tensor(states)[None], noise).latents, own)

    def trial(self, prompt: str, wanted: Any, seed: int) -> dict[str, Tried]:
        """Args: `wanted`: the scene that the prompt asks for."""
        noise = self.model.noise(seed, self.network.shape)
        states = torch.as_tensor(self.encoder.encode([prompt])[0].states)[None]

        def right(latents: Tensor) -> bool:
            return compare(read_scene(self.model.decode(latents)), wanted)["all"]

        reference = self._plain(states, noise)
        found = {PLAIN: Tried(reference.seconds, 1.0, right(reference.latents), 0.0, reference.blocks, 0)}
        turn = seed % len(self.ways)  # so that none has the same neighbours each time
        names = list(self.ways)
        for name in names[turn:] + names[:turn]:
            before, made = self._plain(states, noise), self.ways[name](states, noise)
            found[name] = Tried(
                made.seconds,
                before.seconds / made.seconds,
                right(made.latents),
                _relative(made.latents, reference.latents),
                made.blocks,
                len(made.cached_steps),
            )
        return {name: found[name] for name in (PLAIN, *names)}


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def figures_of(trials: Sequence[Mapping[str, Tried]]) -> dict[str, Figure]:
    found = {}
    for name in trials[0]:
        tried = [trial[name] for trial in trials]
        found[f"{name}.seconds_p50"] = results.median([t.seconds for t in tried], "s")
        found[f"{name}.speedup"] = results.median([t.faster for t in tried], "x")
        found[f"{name}.alignment"] = results.share(sum(t.right for t in tried), len(tried))
        found[f"{name}.alignment_loss_points"] = results.mean(
            [100.0 * (trial[PLAIN].right - trial[name].right) for trial in trials], "percentage points"
        )
        found[f"{name}.change"] = results.mean([t.change for t in tried], "of the plain latents' norm")
        found[f"{name}.cached_steps"] = results.mean([float(t.cached_steps) for t in tried], "steps")
        found[f"{name}.blocks"] = results.mean([float(t.blocks) for t in tried], "blocks")
    return found


def table(figures: Mapping[str, Figure]) -> str:
    """Markdown, a row for each way."""
    lines = [
        "| | steps reused | blocks run | faster | shows all | latents changed |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(key.rpartition(".")[0] for key in figures if "." in key):

        def of(what: str, name: str = name) -> Figure:
            return figures[f"{name}.{what}"]

        low, high = of("speedup").ci95 or (of("speedup").value,) * 2
        lines.append(
            f"| {name} | {of('cached_steps').value:.2f} | {of('blocks').value:.1f} |"
            f" {of('speedup').value:.2f}× ({low:.2f}–{high:.2f}) | {100 * of('alignment').value:.0f} % |"
            f" {100 * of('change').value:.1f} % |"
        )
    return "\n".join(lines)


def main(
    count: Annotated[int, typer.Option(min=2, help="Prompts, each by every way.")] = 100,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the result.")] = results.RESULTS,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts, and the first of the videos.")] = 9000,
) -> None:
    try:
        bench = Bench()
    except ImportError as error:
        if error.name != "cache_dit":
            raise
        raise typer.BadParameter("cache-dit is not installed: pip install -e '.[rivals]'") from None
    groups = make_groups("test", count, seed, "unseen")
    asks = [group.targets[0] for group in groups]
    difference = bench.difference(asks[0].prompt, seed)  # and warms up
    trials = [bench.trial(ask.prompt, ask.scene, seed + i) for i, ask in enumerate(track(asks, "generating"))]
    figures = figures_of(trials)
    figures["diffusers_to_denoiser"] = results.single(difference, "of the latents' norm")
    command = f"python -m bench.cache_dit {shlex.join(sys.argv[1:])}".strip()
    settings = {name: asdict(setting) for name, setting in SETTINGS.items()}
    results.write(out / "cache_dit.json", command, figures, settings=settings)
    print(table(figures))


if __name__ == "__main__":
    typer.run(main)
