"""Alternatives to what the denoiser does that a plan cannot say, for `bench.alternatives`.

They override single parts of `Stages`: where the region comes from, what happens at its edge, and what
cross-attention does. Services know nothing of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from chorus.common.v1 import plan_pb2
from chorus_rpc.plan_bounds import DEFAULT_ATTENTION_THRESHOLD
from torch import Tensor

from bench.in_process import CustomVariant, Harness, Output, Pair
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.network.text import AmplifiedText, LayerAmplification
from services.denoiser.network.wan import AttentionObserver, Grid, TextKV
from services.denoiser.reuse.amplification import Gained, amplified
from services.denoiser.reuse.attention_maps import AttentionMaps
from services.denoiser.reuse.regions import active_region, attended_region, difference, dilate, probe_tokens
from services.denoiser.reuse.side_data import pool_maps, unpool_maps
from services.denoiser.reuse.stages import Stages
from services.scheduler.planning.calibration import Depth

# Where a region comes from:
# - plan: as the plan says;
# - words: where the lost words acted in the donor, and the gained ones act in the target at step K1, which is
#   computed in full for it; gained: the latter alone;
# - probe and lost: what the probes find, and where the lost words acted in the donor;
# - oracle: where the finished video of full steps from the same x_{K1} differs from the donor's; oracle, own
#   noise: where the target's full computation, from noise of its own, does.
Where: TypeAlias = Literal["plan", "words", "gained", "probe and lost", "oracle", "oracle, own noise"]
# By what amplification is gated in full steps: the probes' region, where lost words acted, or how much.
Gate: TypeAlias = Literal["none", "probe", "lost", "lost, soft"]


@dataclass(frozen=True)
class Term:
    """One form of amplification.

    Args:
        strengths: of the computed steps in order; the last holds for those after it, too.
        blocks: first and last but one that are amplified, as shares of all.
    """

    form: plan_pb2.AmplificationForm.ValueType
    strengths: tuple[float, ...]
    blocks: tuple[float, float] = (0.0, 1.0)

    def strength(self, step: int) -> float:
        """Of a computed step, from 0."""
        return self.strengths[min(step, len(self.strengths) - 1)]


@dataclass(frozen=True)
class Alternative(CustomVariant):
    """A depth, and what is done otherwise.

    Args:
        blended: whether the region's edge is blended with the donor, or replaced hard.
        terms: of amplification, all of them together, instead of the depth's own.
        ceiling: the largest change by contrast of a head's output at a token, by that output's length.
        seams: measure the region's edge (`edge_marks`).
    """

    depth: Depth
    where: Where = "plan"
    blended: bool = True
    terms: tuple[Term, ...] = ()
    gate: Gate = "none"
    ceiling: float = math.inf
    seams: bool = False

    def make(self, bench: Harness, pair: Pair) -> Output:
        assert pair.own.text is not None
        plan = bench.plan(self.depth, pair.edit)
        if plan is None:
            raise ValueError(f"sigma {self.depth.sigma:g} is no reuse on this schedule")
        if self.where not in ("plan", "probe and lost"):
            # Whose region is not refined: its thresholds are of another kind, or it needs none.
            plan.region.source = plan_pb2.REGION_SOURCE_ATTENTION
        stages = _Varied(self, plan, bench, pair)
        *_, last = steps = list(stages.steps())
        computed = stages.besides + sum(step.computed_share for step in steps)
        marks = {}
        if self.seams and last.active is not None and 0 < last.active.sum() < len(last.active):
            whole = _without_region(bench, pair, self.depth)
            marks = edge_marks(bench.model, last.latents, whole, last.active, bench.grid)
        return Output(last.latents, computed, marks)


class _Varied(Stages):
    def __init__(self, how: Alternative, plan: plan_pb2.Plan, bench: Harness, pair: Pair) -> None:
        assert pair.own.text is not None
        start = pair.donor.steps[plan.reuse_steps]
        super().__init__(bench.model, plan, bench.shape, bench.sigmas, pair.own.text, start, pair.donor)
        self._how, self._bench, self._pair = how, bench, pair
        self._gate: Tensor | None = None
        self.besides = 0.0  # computed for the gate, in full steps

    def _search(self, index: int) -> tuple[float, Tensor | None]:
        region, where = self._plan.region, self._how.where
        if where in ("words", "gained"):
            seen = AttentionMaps(self._pair.tokens)
            step = self._velocity(index, None, seen.observe)
            found = self._attended(normalised(seen, self._grid), self._pair.edit.gained)
            self._active = self._within_budget(found | self._lost() if where == "words" else found)
            return 1.0, step
        if where in ("oracle", "oracle, own noise"):
            found = self._oracle(own=where != "oracle")
            self._active = self._within_budget(dilate(found, self._grid, region.dilation))
            return 0.0, None
        share, velocity = super()._search(index)
        if where == "probe and lost" and self._active is not None:
            self._active = self._within_budget(self._active | self._lost())
        return share, velocity

    def _region_step(self, index: int, active: Tensor) -> float:
        share = super()._region_step(index, active)
        if self._how.where == "probe and lost" and self._active is not None:
            self._active = self._active | self._lost()  # which no refinement takes away
        return share

    def _take(self, index: int, velocity: Tensor) -> None:
        if self._how.blended or self._active is None:
            super()._take(index, velocity)
            return
        own, donor = self._next(index, velocity), self._donor_tokens(index + 1)
        self._tokens = torch.where(self._active[:, None], own, donor)

    def _velocity(
        self, index: int, at: Tensor | None, on_attention: AttentionObserver | None = None
    ) -> Tensor:
        if not self._how.terms:
            return super()._velocity(index, at, on_attention)
        if self._gate is None and at is None:
            self._gate = self._found_gate(index)
        return self._amplified_velocity(index, at, self._gate, on_attention)

    def _amplified_velocity(
        self,
        index: int,
        at: Tensor | None,
        gate: Tensor | None,
        on_attention: AttentionObserver | None = None,
    ) -> Tensor:
        assert self._donor is not None
        read = mixed(
            self._text,
            self._how.terms,
            index - self._first,
            gained=self._pair.edit.gained,
            donor=self._donor.text,
            gate=gate if gate is None or at is None else gate[at],
            ceiling=self._how.ceiling,
        )
        return self._model.token_velocity(
            self._tokens, self._sigmas[index], read, self._shape, at, on_attention
        )

    def _found_gate(self, index: int) -> Tensor | None:
        if self._how.gate == "none":
            return None
        if self._how.gate == "probe":
            at = probe_tokens(self._grid)
            self.besides += len(at) / len(self._tokens)
            apart = self._differences(index, self._amplified_velocity(index, at, None), at)
            region = active_region(apart, at, self._grid, threshold=0.02, dilation=1, sparse=True)
            return region.float()
        if self._how.gate == "lost":
            return self._lost(dilation=1).float()
        assert self._pair.donor.maps is not None
        kept = [(i, w) for i, w in self._pair.edit.lost if i < len(self._pair.donor.maps)]
        acted = [w * self._pair.donor.maps[i] for i, w in kept]
        return torch.stack(acted).amax(0) if acted else torch.zeros(len(self._tokens))

    def _lost(self, dilation: int | None = None) -> Tensor:
        assert self._pair.donor.maps is not None
        return self._attended(self._pair.donor.maps, self._pair.edit.lost, dilation)

    def _attended(self, maps: Tensor, words: Gained, dilation: int | None = None) -> Tensor:
        region = self._plan.region
        by_attention = self._how.where in ("words", "gained")  # then the plan's threshold is of this kind
        return attended_region(
            maps,
            words,
            self._grid,
            threshold=region.threshold if by_attention else DEFAULT_ATTENTION_THRESHOLD,
            dilation=region.dilation if dilation is None else dilation,
        )

    def _oracle(self, own: bool) -> Tensor:
        total = len(self._sigmas) - 1
        ends = (
            self._pair.own.steps[total] if own else _without_region(self._bench, self._pair, self._how.depth)
        )
        here, donor = self._model.tokens_of(ends), self._donor_tokens(total)
        return difference(here, donor, donor.var()) > self._plan.region.threshold


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
    """The text of a step amplified by several forms at once; arguments as of `amplify.amplified`.

    Args:
        step: of the computed ones, from 0.
        ceiling: as of `Alternative`.
    """
    layers: list[LayerAmplification | None] = [None] * len(kv)
    for term in terms:
        message = plan_pb2.Amplification(form=term.form, strength=term.strength(step))
        one = amplified(kv, message, gained=gained, donor=donor, gate=gate)
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
        layers = [one and _Ceiled(one.bias, one.other, one.strength, one.gate, ceiling) for one in layers]
    return AmplifiedText(kv, tuple(layers) if any(layers) else None)


@dataclass(frozen=True)
class _Ceiled(LayerAmplification):
    """Keeps the change by contrast below its ceiling, each head and token apart."""

    ceiling: float = math.inf

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if self.other is None:
            return super().__call__(q, k, v, bias)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        change = self.strength * (out - F.scaled_dot_product_attention(q, *self.other))
        return out + ceiled(change, out, self.ceiling)


def ceiled(change: Tensor, of: Tensor, ceiling: float) -> Tensor:
    """`change` [..., d], no longer than `ceiling` times `of` [..., d]."""
    longest = ceiling * of.norm(dim=-1, keepdim=True)
    kept: Tensor = change * (longest / change.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    return kept


def normalised(seen: AttentionMaps, grid: Grid) -> Tensor:
    """Maps as a donor's entry would give them: float32 [L, N], 0 to 1."""
    found = seen.maps()
    assert found is not None
    pooled = pool_maps(found, grid, 1 << 30)
    assert pooled is not None
    return unpool_maps(pooled, grid)


def edge_marks(
    model: LoadedModel, latents: Tensor, whole: Tensor, active: Tensor, grid: Grid
) -> dict[str, float]:
    """What the region's edge looks like beside the full steps `whole` from the same x_{K1}.

    Returns:
        jump: mean absolute difference of neighbouring pixels on both sides of the edge, in RGB of -1 to 1,
            above the full steps' own there;
        edge_error: mean square difference of latents from the full steps' in the tokens along the edge.
    """
    near = dilate(active, grid, 1) & dilate(~active, grid, 1)
    apart = (model.tokens_of(latents) - model.tokens_of(whole)).square().mean(-1)
    jump = edge_jump(model.decode(latents), active, grid) - edge_jump(model.decode(whole), active, grid)
    return {"jump": jump, "edge_error": float(apart[near].mean())}


def edge_jump(video: Tensor, active: Tensor, grid: Grid) -> float:
    """Mean absolute difference of the pixels of [3, T, H, W] that face each other across a mask's edge.

    Args:
        active: bool [N] over `grid`, neither all nor none in every frame.
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


def _without_region(bench: Harness, pair: Pair, depth: Depth) -> Tensor:
    """Clean latents of full steps from the same x_{K1}; computed once for a pair."""
    plan = bench.plan(replace(depth, region=None), pair.edit)
    assert plan is not None
    assert pair.own.text is not None
    key = plan.SerializeToString(deterministic=True)
    if key not in pair.runs:
        pair.runs[key] = bench.run(plan, pair.own.text, bench.model.noise(0, bench.shape), pair.donor)[0]
    return pair.runs[key]
