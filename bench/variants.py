"""Variants of the method that a plan cannot express, for `bench.alternatives`.

They pass their own parts to `Stages`: a region finder, the weights at the region's edge, and the text that
cross-attention reads. No service imports them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import torch
import torch.nn.functional as F
from chorus.common.v1 import plan_pb2
from chorus_rpc.plan_bounds import DEFAULT_ATTENTION_THRESHOLD
from torch import Tensor

from bench.in_process import CustomVariant, Harness, Output, Pair
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.network.text import AmplifiedText, LayerAmplification
from services.denoiser.network.wan import Grid, TextKV
from services.denoiser.reuse.amplification import Gained, StepText, amplify_text
from services.denoiser.reuse.attention_maps import AttentionMaps
from services.denoiser.reuse.donor import DonorTrajectory
from services.denoiser.reuse.region_finders import ProbeFinder, RegionFinder
from services.denoiser.reuse.region_masks import (
    compare_predictions,
    compute_edge_weights,
    dilate,
    find_attended_region,
)
from services.denoiser.reuse.side_data import pool_maps, unpool_maps
from services.denoiser.reuse.stages import Stages
from services.denoiser.reuse.target import Target
from services.scheduler.planning.calibration import Depth

# Source of the region:
# - plan: the plan's source;
# - words: places where lost words acted in the donor, and where gained words act in the target at step K1,
#   which is computed in full for it; gained: only the latter;
# - probe and lost: the region of the probes, and places where lost words acted in the donor;
# - oracle: places where the finished video of full steps from the same x_{K1} differs from the donor's;
#   oracle, own noise: places where the target's full computation, from its own noise, differs.
Where: TypeAlias = Literal["plan", "words", "gained", "probe and lost", "oracle", "oracle, own noise"]
# Gate of amplification in full steps: the region of the probes, places where lost words acted, or their
# attention there.
Gate: TypeAlias = Literal["none", "probe", "lost", "lost, soft"]

# Region of the probes if they gate amplification.
GATE_REGION: Final = plan_pb2.RegionPlan(threshold=0.02, dilation=1)


@dataclass(frozen=True)
class Term:
    """One form of amplification.

    Attributes:
        strengths: Strength in each computed step; the last applies to all later steps.
        blocks: First block and end (exclusive) of the amplified ones, as shares of all blocks.
    """

    form: plan_pb2.AmplificationForm.ValueType
    strengths: tuple[float, ...]
    blocks: tuple[float, float] = (0.0, 1.0)

    def strength(self, step: int) -> float:
        """Returns the strength in a computed step, counted from 0."""
        return self.strengths[min(step, len(self.strengths) - 1)]


@dataclass(frozen=True)
class Alternative(CustomVariant):
    """A depth of reuse with changes.

    Attributes:
        blended: Whether the edge of the region is blended with the donor.
        terms: Terms of amplification, applied together, instead of the depth's amplification.
        ceiling: Upper bound on the change of a head's output at a token by contrast, relative to its length.
        seams: Whether the edge of the region is measured (`measure_edge`).
        last_in_full: Number of last steps that compute every token, in a plan with a region (stage 3).
    """

    depth: Depth
    where: Where = "plan"
    blended: bool = True
    terms: tuple[Term, ...] = ()
    gate: Gate = "none"
    ceiling: float = math.inf
    seams: bool = False
    last_in_full: int = 0

    def generate(self, harness: Harness, pair: Pair) -> Output:
        assert pair.own.text is not None
        plan = harness.build_plan(self.depth, pair.edit)
        if plan is None:
            raise ValueError(f"sigma {self.depth.sigma:g} is no reuse on this schedule")
        if plan.region_end:
            plan.region_end -= self.last_in_full
        gate, gate_share = self._find_gate(harness, pair, plan) if self.terms else (None, 0.0)
        stages = Stages(
            harness.reusing,
            plan,
            harness.shape,
            harness.sigmas,
            pair.own.text,
            pair.donor.steps[plan.reuse_steps],
            pair.donor,
            finder=self._create_finder(harness, pair, plan),
            text=self._mix_text(pair, plan, gate) if self.terms else None,
            edge_weights=compute_edge_weights if self.blended else replace_hard,
            then=pair.then,
        )
        *_, last = steps = list(stages.steps())
        computed = gate_share + sum(step.computed_share for step in steps)
        measurements = {}
        if self.seams and last.active is not None and 0 < last.active.sum() < len(last.active):
            full = _without_region(harness, pair, self.depth)
            measurements = measure_edge(harness.model, last.latents, full, last.active, harness.grid)
        return Output(last.latents, computed, measurements)

    def _create_finder(self, harness: Harness, pair: Pair, plan: plan_pb2.Plan) -> RegionFinder | None:
        """Returns the finder of `where`; None for the plan's source."""
        if self.where in ("words", "gained"):
            return WordFinder(plan.region, pair, with_lost=self.where == "words")
        if self.where == "probe and lost":
            return ProbeAndLostFinder(plan.region, pair)
        if self.where == "plan":
            return None
        total = len(harness.sigmas) - 1
        own = self.where == "oracle, own noise"
        clean = pair.own.steps[total] if own else _without_region(harness, pair, self.depth)
        return OracleFinder(plan.region, harness.model.to_tokens(clean), total)

    def _mix_text(self, pair: Pair, plan: plan_pb2.Plan, gate: Tensor | None) -> StepText:
        """Returns the target's text, amplified by all terms."""
        text, donor = pair.own.text, pair.donor.text
        assert text is not None

        def text_of_step(step: int, positions: Tensor | None) -> AmplifiedText:
            return mixed(
                text,
                self.terms,
                step - plan.reuse_steps,
                gained=pair.edit.gained,
                donor=donor,
                gate=gate if gate is None or positions is None else gate[positions],
                ceiling=self.ceiling,
            )

        return text_of_step

    def _find_gate(self, harness: Harness, pair: Pair, plan: plan_pb2.Plan) -> tuple[Tensor | None, float]:
        """Returns the gate at x_{K1}, and the computation that it cost, in full steps."""
        assert pair.donor.maps is not None
        if self.gate == "probe":
            step = plan.reuse_steps
            donor = DonorTrajectory(harness.model, pair.donor, harness.sigmas)
            text = self._mix_text(pair, plan, None)
            target = Target(harness.reusing, harness.shape, harness.sigmas, text)
            region = ProbeFinder(GATE_REGION).find(step, donor.tokens(step), target, donor)
            return region.float(), target.take_computed_share()
        if self.gate == "lost":
            return find_lost_region(pair, harness.grid, dilation=1).float(), 0.0
        if self.gate == "lost, soft":
            acted = [w * pair.donor.maps[i] for i, w in pair.edit.lost if i < len(pair.donor.maps)]
            tokens = pair.donor.maps.shape[1]
            return torch.stack(acted).amax(0) if acted else torch.zeros(tokens), 0.0
        return None, 0.0


class WordFinder(RegionFinder):
    """Activates the tokens where gained words act in the target at step K1, which is computed in full for it.

    Args:
        with_lost: Whether to add the places where lost words acted in the donor.
    """

    def __init__(self, region: plan_pb2.RegionPlan, pair: Pair, with_lost: bool) -> None:
        self._region, self._pair, self._with_lost = region, pair, with_lost

    def find(self, step: int, tokens: Tensor, target: Target, donor: DonorTrajectory) -> Tensor:
        attention = AttentionMaps(self._pair.tokens)
        target.velocity(step, tokens, on_attention=attention.observe)
        found = self._attended(normalise_maps(attention, target.grid), self._pair.edit.gained, target.grid)
        if self._with_lost:
            found = found | self._attended(donor.maps, self._pair.edit.lost, target.grid)
        return found

    def _attended(self, maps: Tensor, words: Gained, grid: Grid) -> Tensor:
        return find_attended_region(
            maps, words, grid, threshold=self._region.threshold, dilation=self._region.dilation
        )


class ProbeAndLostFinder(ProbeFinder):
    """Activates the region of the probes and the tokens where lost words acted in the donor."""

    def __init__(self, region: plan_pb2.RegionPlan, pair: Pair) -> None:
        super().__init__(region)
        self._pair, self._lost_dilation = pair, region.dilation

    def find(self, step: int, tokens: Tensor, target: Target, donor: DonorTrajectory) -> Tensor:
        return super().find(step, tokens, target, donor) | self._lost(target.grid)

    def refine(self, active: Tensor, differences: Callable[[], Tensor], target: Target) -> Tensor:
        return super().refine(active, differences, target) | self._lost(target.grid)

    def _lost(self, grid: Grid) -> Tensor:
        return find_lost_region(self._pair, grid, self._lost_dilation)


class OracleFinder(RegionFinder):
    """Activates the tokens where a finished video differs from the donor's.

    Args:
        clean: Clean latents of that video as tokens, [N, C*P].
        total_steps: Index of the donor's clean latents.
    """

    def __init__(self, region: plan_pb2.RegionPlan, clean: Tensor, total_steps: int) -> None:
        self._region, self._clean, self._total_steps = region, clean, total_steps

    def find(self, step: int, tokens: Tensor, target: Target, donor: DonorTrajectory) -> Tensor:
        theirs = donor.tokens(self._total_steps)
        differs = compare_predictions(self._clean, theirs, theirs.var()) > self._region.threshold
        return dilate(differs, target.grid, self._region.dilation)


def find_lost_region(pair: Pair, grid: Grid, dilation: int) -> Tensor:
    """Returns the places where lost words acted in the donor, bool [N]."""
    assert pair.donor.maps is not None
    return find_attended_region(
        pair.donor.maps, pair.edit.lost, grid, threshold=DEFAULT_ATTENTION_THRESHOLD, dilation=dilation
    )


def replace_hard(active: Tensor, grid: Grid) -> Tensor:
    """Returns edge weights without blending."""
    return active.float()


def mixed(
    kv: TextKV,
    terms: Sequence[Term],
    step: int,
    *,
    gained: Gained,
    donor: TextKV | None,
    gate: Tensor | None = None,
    ceiling: float = math.inf,
) -> AmplifiedText:
    """Returns the text of a step amplified by several forms at once; arguments as for `amplify_text`.

    Args:
        step: Number of the computed step, from 0.
        ceiling: Upper bound as in `Alternative`.
    """
    layers: list[LayerAmplification | None] = [None] * len(kv)
    for term in terms:
        message = plan_pb2.Amplification(form=term.form, strength=term.strength(step))
        one = amplify_text(kv, message, gained=gained, donor=donor, gate=gate)
        begin, end = (round(share * len(kv)) for share in term.blocks)
        kv = tuple(one.kv[i] if begin <= i < end else kept for i, kept in enumerate(kv))
        for i, layer in enumerate(one.layers or ()):
            if layer is None or not begin <= i < end:
                continue
            before = layers[i] or LayerAmplification(gate=gate)
            if layer.bias is not None:
                layers[i] = replace(before, bias=layer.bias)
            else:
                layers[i] = replace(before, other=layer.other, strength=layer.strength)
    if ceiling < math.inf:
        layers = [
            one and _LimitedContrast(one.bias, one.other, one.strength, one.gate, ceiling) for one in layers
        ]
    return AmplifiedText(kv, tuple(layers) if any(layers) else None)


@dataclass(frozen=True)
class _LimitedContrast(LayerAmplification):
    """Limits the change by contrast to its ceiling, for each head and token."""

    ceiling: float = math.inf

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if self.other is None:
            return super().__call__(q, k, v, bias)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        change = self.strength * (out - F.scaled_dot_product_attention(q, *self.other))
        return out + limit_change(change, out, self.ceiling)


def limit_change(change: Tensor, output: Tensor, ceiling: float) -> Tensor:
    """Returns `change` [..., d], limited to `ceiling` times the length of `output` [..., d]."""
    longest = ceiling * output.norm(dim=-1, keepdim=True)
    limited: Tensor = change * (longest / change.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    return limited


def normalise_maps(seen: AttentionMaps, grid: Grid) -> Tensor:
    """Normalises maps to the form in a donor's entry: float32 [L, N], 0 to 1."""
    found = seen.maps()
    assert found is not None
    pooled = pool_maps(found, grid, 1 << 30)
    assert pooled is not None
    return unpool_maps(pooled, grid)


def measure_edge(
    model: LoadedModel, latents: Tensor, full: Tensor, active: Tensor, grid: Grid
) -> dict[str, float]:
    """Measures the region's edge against the full steps `full` from the same x_{K1}.

    Returns:
        jump: mean absolute difference of neighbouring pixels on both sides of the edge, in RGB of -1 to 1,
            less that of the full steps;
        edge_error: mean square difference from the latents of the full steps, in the tokens along the edge.
    """
    near = dilate(active, grid, 1) & dilate(~active, grid, 1)
    apart = (model.to_tokens(latents) - model.to_tokens(full)).square().mean(-1)
    jump = edge_jump(model.decode(latents), active, grid) - edge_jump(model.decode(full), active, grid)
    return {"jump": jump, "edge_error": float(apart[near].mean())}


def edge_jump(video: Tensor, active: Tensor, grid: Grid) -> float:
    """Returns the mean absolute difference of pixels of [3, T, H, W] on both sides of a mask's edge.

    Args:
        active: Mask of the region, bool [N] over `grid`, neither all nor none in every frame.
    """
    size = [int(side) for side in video.shape[1:]]
    mask = F.interpolate(active.view(1, 1, *grid).float(), size=size)[0, 0] > 0.5  # nearest
    jumps = []
    for axis in (1, 2):  # rows, columns
        length = size[axis] - 1
        edge = mask.narrow(axis, 0, length) != mask.narrow(axis, 1, length)
        steps = (video.narrow(axis + 1, 1, length) - video.narrow(axis + 1, 0, length)).abs().mean(0)
        jumps.append(steps[edge])
    return float(torch.cat(jumps).mean())


def _without_region(harness: Harness, pair: Pair, depth: Depth) -> Tensor:
    """Returns the clean latents of full steps from the same x_{K1}; computed once per pair."""
    plan = harness.build_plan(replace(depth, region=None), pair.edit)
    assert plan is not None
    assert pair.own.text is not None
    key = plan.SerializeToString(deterministic=True)
    if key not in pair.runs:
        pair.runs[key] = harness.run_plan(
            plan, pair.own.text, harness.model.noise(0, harness.shape), pair.donor, pair.then
        )[0]
    return pair.runs[key]
