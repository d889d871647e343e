"""Runs plans in one process, without the services: for calibration and ablation.

A harness contains the shipped model and the embedder's alignment. A trial uses the prompts of a donor and a
target, computes both in full, and then generates the target with every variant, from the donor's latents.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from chorus.common.v1 import plan_pb2
from numpy.typing import NDArray
from torch import Tensor

from evaluation.prompts import Group
from evaluation.scenes import judge
from models.shapes.yardstick.kept import compare_layouts
from models.shapes.yardstick.reader import read
from models.shapes.yardstick.residue import measure_artefacts
from services.contract.schedule import shifted_schedule
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.sampler import sample
from services.denoiser.network.wan import TextKV
from services.denoiser.reuse.attention_maps import AttentionMaps
from services.denoiser.reuse.donor import DonorLatents
from services.denoiser.reuse.side_data import pool_maps, unpool_maps
from services.denoiser.reuse.stages import PlainNetwork, Stages
from services.denoiser.settings import SHIPPED_MODEL
from services.embedder.aligner import Aligner
from services.embedder.encoder_thread import EncoderThread
from services.embedder.encoders import Encoding, MiniLMEncoder
from services.embedder.lexicon import load_lexicon
from services.embedder.servicer import make_align_response
from services.embedder.settings import SHIPPED_LEXICON
from services.scheduler.planning.calibration import Depth
from services.scheduler.planning.edits import Edit, classify_edit

Floats: TypeAlias = NDArray[np.float32]
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """Measurements of one video.

    Attributes:
        right: True if the video matches the target's whole prompt.
        followed: True if the video follows the donor in an attribute in which the two prompts differ.
        computed: Computation, in full steps.
        fidelity: Mean square difference between its latents and those of the full computation.
        artefact_share: Share of its pixels that are part of an artefact.
        kept: Whether it keeps the donor's layout wherever the prompt did not change.
        measurements: Additional measurements of the variant, by name.
    """

    right: bool
    followed: bool
    computed: float
    fidelity: float
    artefact_share: float
    kept: bool
    measurements: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """Result of a pair of prompts.

    Attributes:
        kind: Kind of edit for which the pair was built.
        edit: Kind of edit that the embedder reports.
        videos: Outcomes by name of the variant, the full computation included.
    """

    kind: str
    edit: str
    videos: dict[str, Outcome]


FULL = "full"


@dataclass(frozen=True)
class Fewer:
    """Variant without reuse, in another number of steps of the model's shifted schedule."""

    steps: int


@dataclass(frozen=True)
class Renoised:
    """Variant that noises the donor's clean latents to `sigma` and computes every step from there, as MoDM
    does."""

    sigma: float


@dataclass(frozen=True)
class Pair:
    """Full computations of a trial's two prompts.

    Attributes:
        edit: Edit from donor to target.
        donor: Latents of the donor's full computation.
        own: Latents of the target's full computation, from another seed, with its text prepared for reuse.
        states: Token states of the target's prompt, [L, text_dim].
        then: Network of the steps after the first; None for a model without a host adapter.
        runs: Clean latents shared by the custom variants of the pair, by plan.
    """

    edit: Edit
    donor: DonorLatents
    own: DonorLatents
    states: Floats
    then: PlainNetwork | None = None
    runs: dict[bytes, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Number of tokens of the target's prompt."""
        return len(self.states)


@dataclass(frozen=True)
class Output:
    """Result of a variant.

    Attributes:
        latents: Clean latents of the target.
        computed: Computation, in full steps.
        measurements: Additional measurements, by name.
    """

    latents: Tensor
    computed: float
    measurements: Mapping[str, float] = field(default_factory=dict)


class CustomVariant(ABC):
    """Variant that a plan cannot express; implemented by the bench that needs it."""

    @abstractmethod
    def generate(self, harness: Harness, pair: Pair) -> Output:
        """Generates the target of a pair."""


Variant: TypeAlias = Depth | Fewer | Renoised | CustomVariant


class Harness:
    """Shipped model and encoder in this process, on one thread.

    Args:
        model: Model file.
        host: Whether reuse runs on the model's host adapter, if it has one.
    """

    def __init__(self, model: Path = SHIPPED_MODEL, *, host: bool = True) -> None:
        torch.set_num_threads(1)
        loaded = LoadedModel.load(model)
        self.set_model(loaded if host else replace(loaded, host=None))
        self.encoder = MiniLMEncoder()
        engine = EncoderThread(self.encoder, [self.encoder], queue_limit=4, recent_bytes=1 << 24)
        self._aligner = Aligner(engine, load_lexicon([SHIPPED_LEXICON]))

    def set_model(self, model: LoadedModel) -> None:
        """Sets the model of full computations, and of reuse: its host, if it has one."""
        self.predictor = Predictor.eager(model)
        self.reusing = self.predictor.select(continues_donor=True)
        self.model, video = model, model.spec.video
        self.shape = model.latent_shape(video.frames, video.height, video.width)
        self.sigmas = model.spec.schedule.sigmas
        self.grid = model.token_grid(self.shape)

    def find_edit(self, donor: str, target: Encoding, prompt: str) -> Edit:
        """Returns the edit from a donor's prompt to the target's, as the scheduler classifies it."""
        compared = asyncio.run(self._aligner.align(prompt, [donor]))
        reply = make_align_response(compared, prompt, [donor])
        return classify_edit(reply.alignments[0], len(target.tokens))

    def run_full(self, states: Floats, seed: int) -> DonorLatents:
        """Runs without a donor and returns the latents as a later run would find them in the cache.

        Their text is prepared for reuse: by the model's host, if it has one.

        Args:
            states: Token states of the prompt, [L, text_dim].
        """
        text, tokens = self.model.prepare_text(states), len(states)
        noise, plan = self.model.noise(seed, self.shape), plan_pb2.Plan(total_steps=len(self.sigmas) - 1)
        maps = AttentionMaps(tokens)
        run = Stages(self.predictor, plan, self.shape, self.sigmas, text, noise, None)
        steps = {s.boundary: s.latents for s in run.steps({len(self.sigmas) - 2: maps.observe})}
        attention = maps.maps()
        assert attention is not None
        pooled = pool_maps(attention, self.grid, 1 << 30)
        assert pooled is not None
        return DonorLatents(steps, unpool_maps(pooled, self.grid), self.reusing.model.prepare_text(states))

    def prepare_plain(self, states: Floats, donor_states: Floats) -> PlainNetwork | None:
        """Prepares the network of the steps after the host's; None for a model without a host adapter."""
        if self.reusing is self.predictor:
            return None
        prepare = self.model.prepare_text
        return PlainNetwork(self.predictor, prepare(states), prepare(donor_states))

    def build_plan(self, variant: Depth | Renoised, edit: Edit) -> plan_pb2.Plan | None:
        """Returns the plan of a variant; None if it reuses no step."""
        depth = Depth(variant.sigma) if isinstance(variant, Renoised) else variant
        reuse_steps, total = depth.reuse_steps(self.sigmas), len(self.sigmas) - 1
        if reuse_steps == 0:
            return None
        return plan_pb2.Plan(
            total_steps=total,
            reuse_steps=reuse_steps,
            region_end=total if depth.region else 0,
            region=depth.region,
            amplification=depth.amplification,
            gained=[plan_pb2.WeightedToken(index=i, weight=w) for i, w in edit.gained],
            lost=[plan_pb2.WeightedToken(index=i, weight=w) for i, w in edit.lost],
            renoised=isinstance(variant, Renoised),
            draft_step=depth.draft_step(self.sigmas),
        )

    def run_plan(
        self,
        plan: plan_pb2.Plan,
        text: TextKV,
        noise: Tensor,
        donor: DonorLatents,
        then: PlainNetwork | None = None,
    ) -> tuple[Tensor, float]:
        """Runs a plan. Returns the clean latents and the computation in full steps.

        Args:
            text: The target's, prepared for reuse.
            then: Network of the steps after the first.
        """
        stages = Stages(self.reusing, plan, self.shape, self.sigmas, text, noise, donor, then=then)
        steps = list(stages.steps())
        return steps[-1].latents, sum(step.computed_share for step in steps)

    def run_variant(
        self, variant: Depth | Fewer | Renoised, pair: Pair, seed: int
    ) -> tuple[Tensor, float] | None:
        """Runs a variant. Returns the clean latents and the computation in full steps; None without reuse."""
        noise = self.model.noise(seed, self.shape)
        if isinstance(variant, Fewer):
            text = self.model.prepare_text(pair.states)
            sigmas = shifted_schedule(variant.steps, self.model.spec.schedule.shift)
            *_, last = sample(lambda x, s: self.predictor.latent_velocity(x, s, text), noise, sigmas)
            return last, float(variant.steps)
        plan = self.build_plan(variant, pair.edit)
        assert pair.own.text is not None
        return None if plan is None else self.run_plan(plan, pair.own.text, noise, pair.donor, pair.then)

    def run_pair(self, group: Group, seed: int) -> Pair:
        """Generates donor and first target of a group in full, with different seeds."""
        prompts = group.donor.prompt, group.targets[0].prompt
        donor_encoding, encoding = (self.encoder.encode([prompt])[0] for prompt in prompts)
        return Pair(
            edit=self.find_edit(prompts[0], encoding, prompts[1]),
            donor=self.run_full(donor_encoding.states, 2 * seed),
            own=self.run_full(encoding.states, 2 * seed + 1),
            states=encoding.states,
            then=self.prepare_plain(encoding.states, donor_encoding.states),
        )

    def run_trial(self, group: Group, seed: int, variants: Mapping[str, Variant]) -> Trial:
        """Generates donor and first target of a group with different seeds, and runs every variant."""
        donor_scene, target_scene = group.donor.scene, group.targets[0].scene
        assert donor_scene is not None
        assert target_scene is not None
        pair, total = self.run_pair(group, seed), len(self.sigmas) - 1
        full_latents = pair.own.steps[total]
        shown_donor = read(self.model.decode(pair.donor.steps[total]))

        def judge_output(output: Output) -> Outcome:
            shown = read(self.model.decode(output.latents))
            verdict = judge(shown.scene, target_scene, donor_scene)
            fidelity = float((output.latents - full_latents).square().mean())
            return Outcome(
                right=verdict.right["all"],
                followed=any(verdict.followed.values()),
                computed=output.computed,
                fidelity=fidelity,
                artefact_share=measure_artefacts(shown, len(target_scene.things)).share,
                kept=compare_layouts(shown_donor, shown, donor_scene, target_scene)["all"],
                measurements=output.measurements,
            )

        videos = {FULL: judge_output(Output(full_latents, float(total)))}
        for name, variant in variants.items():
            if isinstance(variant, CustomVariant):
                videos[name] = judge_output(variant.generate(self, pair))
            elif generated := self.run_variant(variant, pair, 2 * seed + 1):
                videos[name] = judge_output(Output(*generated))
        return Trial(group.kind, pair.edit.kind, videos)


_harness: Harness | None = None  # one for each process of the pool


def _call(function: Callable[[Harness, Job], Result], job: Job) -> Result:
    global _harness
    _harness = _harness or Harness()
    return function(_harness, job)


def map_jobs(
    function: Callable[[Harness, Job], Result], jobs: Sequence[Job], processes: int
) -> Iterator[Result]:
    """Calls a function of a module for every job, in order, in `processes` processes of one thread each."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(_call, function), jobs, chunksize=4)


def _run_trial(harness: Harness, job: tuple[Group, int, Mapping[str, Variant]]) -> Trial:
    return harness.run_trial(*job)


def run_trials(
    groups: Sequence[Group], variants: Mapping[str, Variant], seed: int, processes: int
) -> Iterator[Trial]:
    """Runs a trial of every group, in order, in `processes` processes of one thread each."""
    jobs = [(group, seed + number, variants) for number, group in enumerate(groups)]
    return map_jobs(_run_trial, jobs, processes)
