"""The run: every donor stored, every target in full and then in each other way, from the same seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch
from chorus.scheduler.v1.scheduler_pb2 import Generation
from chorus_client import ChorusClient, SpecOptions
from chorus_rpc.errors import WRONG_STATE, ChorusError

from evaluation.methods import FULL, IN_FULL, PROBE, Method
from evaluation.pixels import Video, decode, psnr, seam_score, ssim, token_grid
from evaluation.prompts import Ask, Group
from evaluation.runs import Run, timed
from evaluation.scenes import Verdict, judge
from models.movingshapes import world
from models.movingshapes.analyzer import read_scene

SCENE_SHAPE: Final = (world.FRAMES, world.HEIGHT, world.WIDTH)
# The policy of donors that look into an emptied cache: what a miss costs is the same by any.
_LOOKING: Final = "balanced"
# Whose latents a generation started from: nobody's, its group's donor's, or another request's.
Source: TypeAlias = Literal["none", "donor", "other"]


@dataclass(frozen=True)
class Served:
    """A target, generated in one way.

    Attributes:
        seconds: as in `Run`.
        source: whose latents it started from; `score` their similarity, None without any.
        verdict: what it shows; None where nobody can tell.
        psnr, ssim, seam: against the full computation; None for that itself.
    """

    seconds: float
    steps_run: int
    total_steps: int
    source: Source
    score: float | None
    verdict: Verdict | None
    psnr: float | None
    ssim: float | None
    seam: float | None


@dataclass(frozen=True)
class Case:
    """One target in every way, the full computation among them."""

    kind: str
    donor: str
    prompt: str
    seed: int
    ways: dict[str, Served]


@dataclass(frozen=True)
class Outcome:
    """A group. `miss_seconds`: its donor's, if that looked into an empty cache first."""

    miss_seconds: float | None
    cases: tuple[Case, ...]


def measure(
    client: ChorusClient,
    groups: Sequence[Group],
    ways: Sequence[Method],
    seed: int,
    model: str | None,
    token_pixels: int,
    empty_cache: Callable[[], None] | None,
) -> Iterator[Outcome]:
    """Runs the groups, one after the other; donors and targets have seeds of their own, from `seed` on.

    Only donors are stored. Raises what `client.generate` raises.

    Args:
        token_pixels: side of a token, for the seams.
        empty_cache: called before each group; None leaves in the cache what is there, and donors are
            generated without looking into it.
    """
    seeds = itertools.count(seed)
    look = "off" if empty_cache is None else _LOOKING
    for group in groups:
        if empty_cache is not None:
            empty_cache()
        donor = timed(client, group.donor.prompt, seed=next(seeds), model=model, reuse=look)
        if donor.generation.HasField("donor"):
            raise ChorusError(WRONG_STATE, "somebody else fills the cache: measure where nobody does")
        if donor.generation.plan.total_steps > 1:
            # Counts nowhere. A run keeps the device until its latents are with the cache: the first way would
            # wait for the donor's, and every other way would look faster beside it.
            again = donor.generation.spec.seed
            probe: SpecOptions = {**PROBE.options, "seed": again, "model": model, "no_store": True}
            timed(client, group.donor.prompt, **probe)
        cases = [
            _case(client, group, target, donor.generation, ways, next(seeds), model, token_pixels)
            for target in group.targets
        ]
        yield Outcome(None if empty_cache is None else donor.seconds, tuple(cases))


def _case(
    client: ChorusClient,
    group: Group,
    target: Ask,
    donor: Generation,
    ways: Sequence[Method],
    seed: int,
    model: str | None,
    token_pixels: int,
) -> Case:
    common: SpecOptions = {"seed": seed, "model": model, "no_store": True}
    served: dict[str, Served] = {}
    reference: Video | None = None
    score: float | None = None
    for number, way in enumerate((IN_FULL, *ways)):
        asked = way.options
        if way.by_score is not None:
            if score is None:
                score = _score(client, target.prompt, served, common)
            asked = way.by_score(score, served[FULL].total_steps)
        options: SpecOptions = {**asked, **common}
        run = timed(client, asked_anew(target.prompt, number), **options)
        video = _model_pixels(run)
        near = None if reference is None else (psnr(video, reference), ssim(video, reference))
        seam = None if reference is None else seam_score(video, reference, token_grid(video, token_pixels))
        reference = video if reference is None else reference
        source = _source(run.generation, donor, group.donor.prompt)
        served[way.name] = Served(
            seconds=run.seconds,
            steps_run=run.generation.steps_run,
            total_steps=run.generation.plan.total_steps,
            source=source,
            score=None if source == "none" else run.generation.donor.score,
            verdict=_verdict(video, target, group.donor),
            psnr=near[0] if near else None,
            ssim=near[1] if near else None,
            seam=seam,
        )
    return Case(group.kind, group.donor.prompt, target.prompt, seed, served)


def asked_anew(prompt: str, number: int) -> str:
    """The same words, spaced as no earlier way spaced them.

    Whoever asks for the first time finds the donor's embedding in memory, and none of the own prompt. To the
    encoders it is the same prompt.
    """
    first, _, rest = prompt.partition(" ")
    return f"{first}{' ' * (1 + number)}{rest}" if rest else prompt


def _score(client: ChorusClient, prompt: str, served: Mapping[str, Served], common: SpecOptions) -> float:
    """The score of the target's donor: as a way that reused it told, else asked for by a request of its own,
    which counts nowhere. −1, which nothing reuses, where there is no donor.
    """
    for one in served.values():
        if one.source == "donor" and one.score is not None:
            return one.score
    if served[FULL].total_steps < 2:  # nothing to skip
        return -1.0
    options: SpecOptions = {**PROBE.options, **common}
    generation = timed(client, prompt, **options).generation
    return generation.donor.score if generation.HasField("donor") else -1.0


def _model_pixels(run: Run) -> Video:
    """The video as the model made it: small ones are encoded enlarged."""
    return decode(run.video, max(1, run.generation.video.height // run.generation.spec.shape.height))


def _source(generation: Generation, donor: Generation, prompt: str) -> Source:
    """The same request may have left the same entry before: its prompt tells as well."""
    if not generation.HasField("donor"):
        return "none"
    used = generation.donor
    return "donor" if used.generation_id == donor.generation_id or used.prompt == prompt else "other"


def _verdict(video: Video, target: Ask, donor: Ask) -> Verdict | None:
    if target.scene is None or donor.scene is None or video.shape[:3] != SCENE_SHAPE:
        return None
    pixels = torch.from_numpy(video / 127.5 - 1).permute(3, 0, 1, 2)  # [3, T, H, W]
    return judge(read_scene(pixels), target.scene, donor.scene)
