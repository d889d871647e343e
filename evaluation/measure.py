"""Generates every donor, then every target in full and with each method, from the same seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from chorus.scheduler.v1.scheduler_pb2 import Generation
from chorus_client import ChorusClient, SpecOptions
from chorus_rpc.errors import WRONG_STATE, ChorusError

from evaluation.methods import FULL, FULL_METHOD, PROBE, SEED_CHOICES, Method, SeedChoice, TargetSeed
from evaluation.pixels import Video, decode, psnr, seam_score, ssim, token_grid
from evaluation.prompts import Group, PromptCase
from evaluation.quality import Quality, embed_renders, inspect, measure_spread, read_video, render_scene
from evaluation.scenes import Verdict, judge
from evaluation.timing import TimedGeneration, generate_timed
from models.shapes.edits import opens
from models.shapes.world import Scene
from models.shapes.yardstick.reader import Reading, read

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
        quality: Further measures; None if the video's scene cannot be read.
        overhead_seconds: Part of the duration in which latents were neither denoised nor decoded.
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
    quality: Quality | None = None
    overhead_seconds: float = 0.0


@dataclass(frozen=True)
class TargetResult:
    """A target, generated with every method.

    Attributes:
        kind: Kind of edit between donor and target.
        donor: Prompt of the donor.
        prompt: Prompt of the target.
        seed: Seed of the target's full computation.
        measurements: Measurements by name of the method, the full computation included.
        opens: Whether the target names something whose layout the donor does not show.
        seed_choice: Seed that its requests stated.
        renders: Features of two renders of the target's scene; none if no video could be read.
    """

    kind: str
    donor: str
    prompt: str
    seed: int
    measurements: dict[str, Measurement]
    opens: bool = False
    seed_choice: SeedChoice = "same"
    renders: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Spread:
    """Variances over the seeds of one prompt, by measure; None for what the scene does not have.

    Attributes:
        prompt: Prompt of the target.
        seeds: Number of seeds.
        rendered: Variances over renders of the scene.
        methods: By method, the variances over its videos. Methods with reuse are present only if every video
            reused the group's donor.
    """

    prompt: str
    seeds: int
    rendered: dict[str, float | None]
    methods: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class GroupResult:
    """Results of a group.

    Attributes:
        miss_seconds: Duration of the donor's generation; None if it did not search the cache.
        targets: Results of the targets, in the group's order, each with all its seeds.
        spreads: Spread over seeds of each target; empty with one seed.
    """

    miss_seconds: float | None
    targets: tuple[TargetResult, ...]
    spreads: tuple[Spread, ...] = ()


@dataclass(frozen=True)
class _Donor:
    """Donor of a group; `reading` is None if no video can be compared with a scene."""

    generation: Generation
    case: PromptCase
    reading: Reading | None


@dataclass(frozen=True)
class _Readings:
    """Readings of one target's videos, by method."""

    by_method: dict[str, list[Reading]] = field(default_factory=dict)

    def add(self, method: str, reading: Reading | None) -> None:
        if reading is not None:
            self.by_method.setdefault(method, []).append(reading)


def measure(
    client: ChorusClient,
    groups: Sequence[Group],
    methods: Sequence[Method],
    seed: int,
    model: str | None,
    token_pixels: int,
    empty_cache: Callable[[], None] | None,
    target_seed: TargetSeed = "same",
    seeds_per_target: int = 1,
) -> Iterator[GroupResult]:
    """Runs the groups one after the other. Every donor has its own seed, from `seed` on.

    Only donors are stored. Raises the errors of `client.generate`.

    Args:
        token_pixels: Side of a token in pixels, for the seam score.
        empty_cache: Function called before each group. None keeps the entries of the cache; donors are then
            generated without a cache lookup.
        target_seed: Seed of the targets, see TargetSeed.
        seeds_per_target: Number of seeds with which each target is generated; above 1 only with "other".
    """
    seeds = itertools.count(seed)
    reuse = "off" if empty_cache is None else _MISS_POLICY
    for number, group in enumerate(groups):
        choice = SEED_CHOICES[number % len(SEED_CHOICES)] if target_seed == "mixed" else target_seed
        if empty_cache is not None:
            empty_cache()
        made = generate_timed(client, group.donor.prompt, seed=next(seeds), model=model, reuse=reuse)
        if made.generation.HasField("donor"):
            raise ChorusError(
                WRONG_STATE, "another client fills the cache: measure a cache that no one else uses"
            )
        donor_seed = made.generation.spec.seed
        if made.generation.plan.total_steps > 1:
            # This request is not measured. A lookup waits for the admission of the latents of the run before:
            # without this request the first method would wait for the donor's, and all others would look
            # faster.
            probe: SpecOptions = {**PROBE.options, "seed": donor_seed, "model": model, "no_store": True}
            generate_timed(client, group.donor.prompt, **probe)
        reading = None if group.donor.scene is None else read_video(_decode_to_model_pixels(made))
        donor = _Donor(made.generation, group.donor, reading)
        targets: list[TargetResult] = []
        spreads: list[Spread] = []
        for case in group.targets:
            readings = _Readings()
            results = [
                _measure_target(
                    client,
                    group.kind,
                    case,
                    donor,
                    methods,
                    next(seeds) if choice == "other" else donor_seed,
                    model,
                    token_pixels,
                    readings,
                    choice,
                )
                for _ in range(seeds_per_target)
            ]
            targets += results
            if seeds_per_target > 1 and case.scene is not None and readings.by_method:
                spreads.append(_measure_spread(case.prompt, case.scene, results, readings, methods))
        yield GroupResult(None if empty_cache is None else made.seconds, tuple(targets), tuple(spreads))


def _measure_target(
    client: ChorusClient,
    kind: str,
    target: PromptCase,
    donor: _Donor,
    methods: Sequence[Method],
    seed: int,
    model: str | None,
    token_pixels: int,
    readings: _Readings,
    seed_choice: SeedChoice,
) -> TargetResult:
    """Generates a target with every method, and adds what the videos show to `readings`.

    Args:
        seed: Seed of the full computation, and of other requests that state one.
    """
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
        options: SpecOptions = {**common, **reuse_options}
        if method.reuses and seed_choice == "none":
            options["seed"] = None
        run = generate_timed(client, vary_spacing(target.prompt, number), **options)
        video = _decode_to_model_pixels(run)
        comparable = reference is not None and reference.shape == video.shape
        likeness = (
            (psnr(video, reference), ssim(video, reference)) if reference is not None and comparable else None
        )
        seam = (
            seam_score(video, reference, token_grid(video, token_pixels))
            if reference is not None and comparable
            else None
        )
        reference = video if reference is None else reference
        reading = None if target.scene is None or donor.reading is None else read_video(video)
        readings.add(method.name, reading)
        verdict, quality = _assess(reading, target, donor)
        source = _source(run.generation, donor.generation, donor.case.prompt)
        measurements[method.name] = Measurement(
            seconds=run.seconds,
            steps_run=run.generation.steps_run,
            total_steps=run.generation.plan.total_steps,
            source=source,
            score=None if source == "none" else run.generation.donor.score,
            verdict=verdict,
            psnr=likeness[0] if likeness else None,
            ssim=likeness[1] if likeness else None,
            seam=seam,
            quality=quality,
            overhead_seconds=run.overhead_seconds,
        )
    renders: tuple[tuple[float, ...], ...] = ()
    if target.scene is not None and measurements[FULL].quality is not None:
        renders = tuple(embed_renders(target.scene, (2 * seed, 2 * seed + 1)))
    return TargetResult(
        kind,
        donor.case.prompt,
        target.prompt,
        seed,
        measurements,
        opens=bool(target.scene and donor.case.scene and opens(donor.case.scene, target.scene)),
        seed_choice=seed_choice,
        renders=renders,
    )


def _assess(
    reading: Reading | None, target: PromptCase, donor: _Donor
) -> tuple[Verdict | None, Quality | None]:
    if reading is None or donor.reading is None or target.scene is None or donor.case.scene is None:
        return None, None
    verdict = judge(reading.scene, target.scene, donor.case.scene)
    return verdict, inspect(reading, target.scene, donor.reading, donor.case.scene)


def _measure_spread(
    prompt: str,
    scene: Scene,
    targets: Sequence[TargetResult],
    readings: _Readings,
    methods: Sequence[Method],
) -> Spread:
    """Computes the spread over a target's seeds for every method whose videos are comparable."""
    reusing = {method.name for method in methods if method.reuses}
    missed = {name for name in reusing if any(t.measurements[name].source != "donor" for t in targets)}
    rendered = [read(render_scene(scene, target.seed)) for target in targets]
    return Spread(
        prompt,
        len(targets),
        measure_spread(rendered, scene),
        {
            name: measure_spread(shown, scene)
            for name, shown in readings.by_method.items()
            if name not in missed and len(shown) == len(targets)
        },
    )


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
