"""Measures one pair of prompts on a running deployment: the target in full, and at every depth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from chorus.denoiser.v1 import denoiser_pb2
from chorus.embedder.v1 import embedder_pb2
from chorus_client import ChorusClient, explicit_reuse
from chorus_rpc.errors import WRONG_STATE, ChorusError

from calibration.depths import CONTRAST
from calibration.journal import Spread
from calibration.judges.base import Case, Judge, Shown, combine
from calibration.rows import MeasuredPair, Score
from evaluation.pixels import decode
from evaluation.prompts import Group
from evaluation.timing import TimedGeneration, generate_timed
from services.contract.edits import EditKind
from services.scheduler.planning.calibration import Depth
from services.scheduler.planning.edits import NEVER_REUSED, classify_edit

FULL: Final = "full"
DONOR: Final = "donor"
DEADLINE_SECONDS: Final = 3_600.0
_CALL_SECONDS: Final = 60.0
# Offset of the seeds of a spread from that of its pair.
_SEED_STRIDE: Final = 1_000_000


@dataclass(frozen=True)
class Bench:
    """A deployment with one model, and how to measure it.

    Attributes:
        embedder: Stub of the embedder.
        empty_cache: Deletes every entry, so that a pair finds its own donor only.
        depths: Depths by name.
    """

    client: ChorusClient
    embedder: Any
    empty_cache: Callable[[], object]
    model: denoiser_pb2.ModelInfo
    judges: Sequence[Judge]
    depths: Mapping[str, Depth]

    @property
    def sigmas(self) -> tuple[float, ...]:
        return tuple(self.model.default_schedule.sigmas)

    def classify(self, donor: str, target: str) -> EditKind:
        """Returns the kind of edit, as the scheduler classifies it."""
        encoder = self.model.conditioning_encoder_id
        embed = embedder_pb2.EmbedRequest(prompt=target, conditioning_encoder_id=encoder)
        tokens = len(self.embedder.Embed(embed, timeout=_CALL_SECONDS).tokens)
        align = embedder_pb2.AlignRequest(
            target_prompt=target, donor_prompts=[donor], conditioning_encoder_id=encoder
        )
        [alignment] = self.embedder.Align(align, timeout=_CALL_SECONDS).alignments
        return classify_edit(alignment, tokens).kind

    def holds_side_data(self, prompt: str, seed: int) -> bool:
        """Returns whether a donor of this prompt holds the side data that amplification needs.

        Those of small videos and long prompts do not: it may have a tenth of the size of the latents.
        """
        self.empty_cache()
        self._generate(prompt, seed=seed, reuse="off")
        plan = explicit_reuse(len(self.sigmas) - 2, amplify=f"contrast:{CONTRAST}", min_score=-1)
        run = self._generate(prompt, seed=seed, explicit_reuse=plan, no_store=True)
        return run.generation.HasField("donor")

    def measure_pair(self, group: Group, seed: int) -> tuple[MeasuredPair, dict[str, Shown]]:
        """Measures the first target of a group, all from one seed. Returns also the videos, by name.

        A pair whose donor would never be reused is not measured at any depth.

        Raises the errors of `client.generate` and of the judges.
        """
        donor, target = group.donor, group.targets[0]
        edit = self.classify(donor.prompt, target.prompt)
        if edit in NEVER_REUSED:
            return MeasuredPair(edit, Score(0.0, 0.0), {}), {}
        self.empty_cache()
        videos = {DONOR: self._generate(donor.prompt, seed=seed, reuse="off")}
        videos[FULL] = self._generate(target.prompt, seed=seed, reuse="off", no_store=True)
        for name, depth in self.depths.items():
            videos[name] = self._reuse(depth, target.prompt, seed)
        shown = {name: _show(video) for name, video in videos.items()}
        case = Case(target, donor, shown[FULL], shown[DONOR], shown[FULL])
        full = self._judge(case)
        depths = {
            name: (self._judge(replace(case, shown=shown[name])), float(videos[name].generation.steps_run))
            for name in self.depths
        }
        return MeasuredPair(edit, full, depths), shown

    def measure_spread(self, group: Group, seed: int, seeds: int, depths: Mapping[str, Depth]) -> Spread:
        """Measures how far the videos of one target differ over seeds, in full and at each depth."""
        target = group.targets[0].prompt
        self.empty_cache()
        self._generate(group.donor.prompt, seed=seed, reuse="off")
        chosen = [seed + _SEED_STRIDE * (1 + number) for number in range(seeds)]
        videos = {FULL: [self._generate(target, seed=s, reuse="off", no_store=True) for s in chosen]}
        videos |= {name: [self._reuse(depth, target, s) for s in chosen] for name, depth in depths.items()}
        return {name: _spread([_show(video) for video in found]) for name, found in videos.items()}

    def _generate(self, prompt: str, **options: Any) -> TimedGeneration:
        options |= {"model": self.model.model_id, "deadline": DEADLINE_SECONDS}
        return generate_timed(self.client, prompt, **options)

    def _reuse(self, depth: Depth, prompt: str, seed: int) -> TimedGeneration:
        plan = explicit_reuse(
            depth.reuse_steps(self.sigmas),
            draft_step=depth.draft_step(self.sigmas),
            amplify="" if depth.amplification is None else f"contrast:{depth.amplification.strength}",
            min_score=-1,
        )
        run = self._generate(prompt, seed=seed, explicit_reuse=plan, no_store=True)
        if not run.generation.HasField("donor"):
            reasons = "; ".join(reason.text for reason in run.generation.plan.reasons)
            raise ChorusError(WRONG_STATE, f"the donor of {prompt!r} was not reused: {reasons}")
        return run

    def _judge(self, case: Case) -> Score:
        scores = [score for judge in self.judges if (score := judge.judge(case)) is not None]
        if not scores:
            names = ", ".join(judge.name.partition(":")[0] for judge in self.judges)
            raise ChorusError(
                WRONG_STATE,
                f"no judge ({names}) can read the video of {case.target.prompt!r}; add another --judge",
            )
        return combine(scores)


def _show(run: TimedGeneration) -> Shown:
    """Decodes a video and undoes the enlargement with which small videos are encoded."""
    factor = max(1, run.generation.video.height // run.generation.spec.shape.height)
    return Shown(run.video, decode(run.video, factor))


def _spread(videos: Sequence[Shown]) -> float:
    """Returns the root of the mean square distance of every two videos, in levels of 255."""
    squares = [float(np.square(a.frames - b.frames).mean()) for a, b in itertools.combinations(videos, 2)]
    return float(np.sqrt(np.mean(squares)))


def summarise_spreads(spreads: Sequence[Spread]) -> dict[str, float]:
    """Returns for each depth the mean spread over seeds, divided by that of full computation, at most 1."""
    if not spreads:
        return {}
    full = float(np.mean([spread[FULL] for spread in spreads]))
    names = spreads[0].keys() - {FULL}
    return {
        name: min(1.0, float(np.mean([s[name] for s in spreads])) / full) if full > 0 else 0.0
        for name in names
    }
