"""Generates every donor, then every target in full and with each method, from the same seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch
from chorus.scheduler.v1.scheduler_pb2 import Generation
from chorus_client import ChorusClient, SpecOptions
from chorus_rpc.errors import WRONG_STATE, ChorusError

from evaluation.methods import FULL, FULL_METHOD, PROBE, Method
from evaluation.pixels import Video, decode, psnr, seam_score, ssim, token_grid
from evaluation.prompts import Group, PromptCase
from evaluation.scenes import Verdict, judge
from evaluation.timing import TimedGeneration, generate_timed
from models.movingshapes import world
from models.movingshapes.analyzer import read_scene

SCENE_SHAPE: Final = (world.FRAMES, world.HEIGHT, world.WIDTH)
# Policy of donors that search an emptied cache; the cost of a miss is the same for every policy.
_MISS_POLICY: Final = "balanced"
# Origin of the latents that a generation started from: noise, its group's donor, or another request.
Source: TypeAlias = Literal["none", "donor", "other"]


@dataclass(frozen=True)
class Measurement:
    """A target, generated with one method.

    Attributes:
        seconds: Duration, as in `TimedGeneration`.
        steps_run: Steps computed.
        total_steps: Steps of the schedule.
        source: Origin of the latents that the generation started from.
        score: Similarity of the entry that was reused; None if nothing was reused.
        verdict: Comparison of the video with its prompt; None if it cannot be determined.
        psnr, ssim, seam: Comparison with the full computation; None for the full computation itself.
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
class TargetResult:
    """A target, generated with every method.

    Attributes:
        kind: Kind of edit between donor and target.
        donor: Prompt of the donor.
        prompt: Prompt of the target.
        seed: Seed of the target.
        measurements: Measurements by name of the method, the full computation included.
    """

    kind: str
    donor: str
    prompt: str
    seed: int
    measurements: dict[str, Measurement]


@dataclass(frozen=True)
class GroupResult:
    """Results of a group.

    Attributes:
        miss_seconds: Duration of the donor's generation; None if it did not search the cache.
        targets: Results of the targets, in the group's order.
    """

    miss_seconds: float | None
    targets: tuple[TargetResult, ...]


def measure(
    client: ChorusClient,
    groups: Sequence[Group],
    methods: Sequence[Method],
    seed: int,
    model: str | None,
    token_pixels: int,
    empty_cache: Callable[[], None] | None,
) -> Iterator[GroupResult]:
    """Runs the groups one after the other. Every donor and every target has its own seed, from `seed` on.

    Only donors are stored. Raises the errors of `client.generate`.

    Args:
        token_pixels: Side of a token in pixels, for the seam score.
        empty_cache: Function called before each group. None keeps the entries of the cache; donors are then
            generated without a cache lookup.
    """
    seeds = itertools.count(seed)
    reuse = "off" if empty_cache is None else _MISS_POLICY
    for group in groups:
        if empty_cache is not None:
            empty_cache()
        donor = generate_timed(client, group.donor.prompt, seed=next(seeds), model=model, reuse=reuse)
        if donor.generation.HasField("donor"):
            raise ChorusError(
                WRONG_STATE, "another client fills the cache: measure a cache that no one else uses"
            )
        if donor.generation.plan.total_steps > 1:
            # This request is not measured. A run keeps the device until the cache has its latents: without
            # this request the first method would wait for the donor's admission, and all others would look
            # faster.
            donor_seed = donor.generation.spec.seed
            probe: SpecOptions = {**PROBE.options, "seed": donor_seed, "model": model, "no_store": True}
            generate_timed(client, group.donor.prompt, **probe)
        targets = [
            _measure_target(
                client, group, target, donor.generation, methods, next(seeds), model, token_pixels
            )
            for target in group.targets
        ]
        yield GroupResult(None if empty_cache is None else donor.seconds, tuple(targets))


def _measure_target(
    client: ChorusClient,
    group: Group,
    target: PromptCase,
    donor: Generation,
    methods: Sequence[Method],
    seed: int,
    model: str | None,
    token_pixels: int,
) -> TargetResult:
    common: SpecOptions = {"seed": seed, "model": model, "no_store": True}
    measurements: dict[str, Measurement] = {}
    reference: Video | None = None
    score: float | None = None
    for number, method in enumerate((FULL_METHOD, *methods)):
        reuse_options = method.options
        if method.by_score is not None:
            if score is None:
                score = _donor_score(client, target.prompt, measurements, common)
            reuse_options = method.by_score(score, measurements[FULL].total_steps)
        options: SpecOptions = {**reuse_options, **common}
        run = generate_timed(client, vary_spacing(target.prompt, number), **options)
        video = _decode_to_model_pixels(run)
        likeness = None if reference is None else (psnr(video, reference), ssim(video, reference))
        seam = None if reference is None else seam_score(video, reference, token_grid(video, token_pixels))
        reference = video if reference is None else reference
        source = _source(run.generation, donor, group.donor.prompt)
        measurements[method.name] = Measurement(
            seconds=run.seconds,
            steps_run=run.generation.steps_run,
            total_steps=run.generation.plan.total_steps,
            source=source,
            score=None if source == "none" else run.generation.donor.score,
            verdict=_verdict(video, target, group.donor),
            psnr=likeness[0] if likeness else None,
            ssim=likeness[1] if likeness else None,
            seam=seam,
        )
    return TargetResult(group.kind, group.donor.prompt, target.prompt, seed, measurements)


def vary_spacing(prompt: str, number: int) -> str:
    """Returns the prompt with a spacing that is unique to method `number`.

    A first request of a real user finds the donor's embedding in the embedder's cache, but not its own. With
    the same text for every method, later methods would find their own. The encoders ignore the spacing.
    """
    first, _, rest = prompt.partition(" ")
    return f"{first}{' ' * (1 + number)}{rest}" if rest else prompt


def _donor_score(
    client: ChorusClient, prompt: str, measurements: Mapping[str, Measurement], common: SpecOptions
) -> float:
    """Returns the score of the target's donor, or −1, below every bound, if there is no donor.

    The score is taken from a method that reused the donor, or else from a separate request that is not
    measured.
    """
    for measurement in measurements.values():
        if measurement.source == "donor" and measurement.score is not None:
            return measurement.score
    if measurements[FULL].total_steps < 2:  # no step can be skipped
        return -1.0
    options: SpecOptions = {**PROBE.options, **common}
    generation = generate_timed(client, prompt, **options).generation
    return generation.donor.score if generation.HasField("donor") else -1.0


def _decode_to_model_pixels(run: TimedGeneration) -> Video:
    """Decodes a video and undoes the enlargement with which small videos are encoded."""
    return decode(run.video, max(1, run.generation.video.height // run.generation.spec.shape.height))


def _source(generation: Generation, donor: Generation, prompt: str) -> Source:
    """Returns the origin of a generation's latents.

    An earlier run may have stored an entry of the same request, so an entry with the donor's prompt counts as
    the donor.
    """
    if not generation.HasField("donor"):
        return "none"
    used = generation.donor
    return "donor" if used.generation_id == donor.generation_id or used.prompt == prompt else "other"


def _verdict(video: Video, target: PromptCase, donor: PromptCase) -> Verdict | None:
    if target.scene is None or donor.scene is None or video.shape[:3] != SCENE_SHAPE:
        return None
    pixels = torch.from_numpy(video / 127.5 - 1).permute(3, 0, 1, 2)  # [3, T, H, W]
    return judge(read_scene(pixels), target.scene, donor.scene)
