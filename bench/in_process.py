"""Plans tried in one process, without the services between: for calibration and ablation.

A bench holds the shipped model and the embedder's alignment. A trial takes a donor's and a target's prompt,
computes both in full, and then the target again by every plan asked for, from the donor's latents.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import torch
from chorus.common.v1 import plan_pb2
from chorus.embedder.v1 import embedder_pb2
from torch import Tensor

from evaluation.prompts import Group
from evaluation.scenes import Verdict, judge
from models.movingshapes.analyzer import read_scene
from models.movingshapes.evaluate import STUDENT
from services.contract.schedule import shifted_schedule
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.sampler import sample
from services.denoiser.network.wan import TextKV
from services.denoiser.reuse.attention_maps import AttentionMaps
from services.denoiser.reuse.donor import DonorLatents
from services.denoiser.reuse.side_data import pool_maps, unpool_maps
from services.denoiser.reuse.stages import Stages
from services.embedder.encoder_thread import EncoderThread
from services.embedder.encoders import Encoding, MiniLMEncoder
from services.embedder.servicer import EmbedderServicer
from services.scheduler.planning.calibration import Depth
from services.scheduler.planning.edits import Edit, classify_edit


@dataclass(frozen=True)
class Outcome:
    """One video: whether it shows what was asked, whether it follows the donor where that asked otherwise.

    Args:
        computed: tokens that went through the network, in full steps.
        fidelity: mean square difference of its latents from the full computation's.
        marks: what its variant measured besides, by name.
    """

    right: bool
    followed: bool
    computed: float
    fidelity: float
    marks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A pair of prompts: its kind as made, its edit as the embedder tells it, and every video by name."""

    kind: str
    edit: str
    videos: dict[str, Outcome]


FULL = "full"


@dataclass(frozen=True)
class Fewer:
    """No reuse, in so many steps of the model's own shifted schedule."""

    steps: int


@dataclass(frozen=True)
class Renoised:
    """As MoDM reuses images: the donor's clean latents, noised again to `sigma`; every step from there on."""

    sigma: float


@dataclass(frozen=True)
class Pair:
    """What a trial knows of its two prompts.

    Args:
        donor, own: the donor's run and the target's, both in full and from seeds of their own.
        tokens: of the target's prompt.
        runs: clean latents that special variants of the pair share, by plan.
    """

    edit: Edit
    donor: DonorLatents
    own: DonorLatents
    tokens: int
    runs: dict[bytes, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    """The target's clean latents, what was computed in full steps, and what was measured besides."""

    latents: Tensor
    computed: float
    marks: Mapping[str, float] = field(default_factory=dict)


class CustomVariant(ABC):
    """A variant that no plan can say; the bench that wants it brings it."""

    @abstractmethod
    def make(self, bench: Harness, pair: Pair) -> Output: ...


Variant: TypeAlias = Depth | Fewer | Renoised | CustomVariant


class Harness:
    """The shipped model and encoder in this process, on one thread."""

    def __init__(self, model: Path = STUDENT) -> None:
        torch.set_num_threads(1)
        self.predictor = Predictor.eager(LoadedModel.load(model))
        self.model = self.predictor.model
        self.encoder = MiniLMEncoder()
        engine = EncoderThread(self.encoder, [self.encoder], queue_limit=4, recent_bytes=1 << 24)
        self._embedder = EmbedderServicer(engine)
        video = self.model.spec.video
        self.shape = self.model.latent_shape(video.frames, video.height, video.width)
        self.sigmas = self.model.spec.schedule.sigmas
        self.grid = self.model.token_grid(self.shape)

    def edit(self, donor: str, target: Encoding, prompt: str) -> Edit:
        """As the scheduler learns it."""
        request = embedder_pb2.AlignRequest(target_prompt=prompt, donor_prompts=[donor])
        context: Any = None
        reply = asyncio.run(self._embedder.Align(request, context))
        return classify_edit(reply.alignments[0], len(target.tokens))

    def full(self, text: TextKV, seed: int, tokens: int) -> DonorLatents:
        """A run without a donor, as a later one would find it in the cache."""
        noise, plan = self.model.noise(seed, self.shape), plan_pb2.Plan(total_steps=len(self.sigmas) - 1)
        seen = AttentionMaps(tokens)
        run = Stages(self.predictor, plan, self.shape, self.sigmas, text, noise, None)
        steps = {s.index: s.latents for s in run.steps({len(self.sigmas) - 2: seen.observe})}
        found = seen.maps()
        assert found is not None
        pooled = pool_maps(found, self.grid, 1 << 30)
        assert pooled is not None
        return DonorLatents(steps, unpool_maps(pooled, self.grid), text)

    def plan(self, variant: Depth | Renoised, edit: Edit) -> plan_pb2.Plan | None:
        """The plan of a variant; None where it would be no reuse."""
        depth = Depth(variant.sigma) if isinstance(variant, Renoised) else variant
        first, total = depth.reuse_steps(self.sigmas), len(self.sigmas) - 1
        if first == 0:
            return None
        return plan_pb2.Plan(
            total_steps=total,
            reuse_steps=first,
            region_end=total if depth.region else 0,
            region=depth.region,
            amplification=depth.amplification,
            gained=[plan_pb2.WeightedToken(index=i, weight=w) for i, w in edit.gained],
            lost=[plan_pb2.WeightedToken(index=i, weight=w) for i, w in edit.lost],
            renoised=isinstance(variant, Renoised),
        )

    def run(
        self, plan: plan_pb2.Plan, text: TextKV, noise: Tensor, donor: DonorLatents
    ) -> tuple[Tensor, float]:
        """Clean latents, and what was computed in full steps."""
        steps = list(Stages(self.predictor, plan, self.shape, self.sigmas, text, noise, donor).steps())
        return steps[-1].latents, sum(step.computed_share for step in steps)

    def generate(
        self,
        variant: Depth | Fewer | Renoised,
        edit: Edit,
        text: TextKV,
        donor: DonorLatents,
        seed: int,
    ) -> tuple[Tensor, float] | None:
        """The target's clean latents by a variant, and what was computed; None where it would be no reuse."""
        noise = self.model.noise(seed, self.shape)
        if isinstance(variant, Fewer):
            sigmas = shifted_schedule(variant.steps, self.model.spec.schedule.shift)
            *_, last = sample(lambda x, s: self.predictor.latent_velocity(x, s, text), noise, sigmas)
            return last, float(variant.steps)
        plan = self.plan(variant, edit)
        return None if plan is None else self.run(plan, text, noise, donor)

    def trial(self, group: Group, seed: int, plans: Mapping[str, Variant]) -> Trial:
        """Donor and first target of a group, from seeds of their own; the target by every plan."""
        donor, target = group.donor, group.targets[0]
        assert donor.scene is not None
        assert target.scene is not None
        theirs, ours = self.encoder.encode([donor.prompt])[0], self.encoder.encode([target.prompt])[0]
        edit = self.edit(donor.prompt, ours, target.prompt)
        text = self.model.prepare_text(ours.states)
        found = self.full(self.model.prepare_text(theirs.states), 2 * seed, len(theirs.tokens))
        total = len(self.sigmas) - 1
        own = self.full(text, 2 * seed + 1, len(ours.tokens))
        whole, pair = own.steps[total], Pair(edit, found, own, len(ours.tokens))

        def tried(latents: Tensor, computed: float, marks: Mapping[str, float] | None = None) -> Outcome:
            assert donor.scene is not None
            assert target.scene is not None
            shown: Verdict = judge(read_scene(self.model.decode(latents)), target.scene, donor.scene)
            fidelity = float((latents - whole).square().mean())
            return Outcome(shown.right["all"], any(shown.followed.values()), computed, fidelity, marks or {})

        videos = {FULL: tried(whole, float(total))}
        for name, variant in plans.items():
            if isinstance(variant, CustomVariant):
                special = variant.make(self, pair)
                videos[name] = tried(special.latents, special.computed, special.marks)
            elif made := self.generate(variant, edit, text, found, 2 * seed + 1):
                videos[name] = tried(*made)
        return Trial(group.kind, edit.kind, videos)


_bench: Harness | None = None


def _work(job: tuple[Group, int, Mapping[str, Variant]]) -> Trial:
    global _bench
    _bench = _bench or Harness()
    return _bench.trial(*job)


def trials(
    groups: Sequence[Group], plans: Mapping[str, Variant], seed: int, processes: int
) -> Iterator[Trial]:
    """A trial of every group, in order, in so many processes of one thread each."""
    jobs = [(group, seed + number, plans) for number, group in enumerate(groups)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_work, jobs, chunksize=4)
