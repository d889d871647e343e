"""Runs the three stages of a plan: full reuse, region, and repair.

Stage 1, full reuse, sets the start: the donor's x_{K1} or, for a renoised plan, the donor's clean latents
with the target's noise added. A plan with a draft adds that noise to a prediction of the target's clean
latents, computed from the donor's x_d with d >= K1: the steps after it then start from latents that already
show the target. In stage 2, the region steps K1 to K2 − 1, the network computes only the active tokens; the
others take the donor's next latents. Stage 3, repair, computes every token. A full computation has
K1 = K2 = 0 and is the plain sampler's loop.

With a sampler that adds fresh noise, every boundary after K1 carries the target's noise, also where the clean
data is the donor's. So the latents of a run and its seed always belong together, noise is never blended with
other noise, and a donor of the same seed is continued unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from chorus.common.v1 import plan_pb2
from torch import Tensor

from services.contract.reuse import effective_region_end
from services.denoiser.backends.base import StepReport
from services.denoiser.model.loaded import LatentShape
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.sampler import (
    BoundaryNoise,
    add_noise,
    euler_step,
    remove_noise,
    renoise_step,
)
from services.denoiser.network.wan import AttentionObserver, Grid, TextKV
from services.denoiser.reuse.amplification import StepText, plan_text
from services.denoiser.reuse.donor import DonorLatents, DonorTrajectory
from services.denoiser.reuse.region_finders import RegionFinder, create_region_finder
from services.denoiser.reuse.region_masks import compute_edge_weights, select_context
from services.denoiser.reuse.resume_point import ResumePoint
from services.denoiser.reuse.target import Target


@dataclass(frozen=True)
class Step:
    """One finished step of a run.

    Attributes:
        boundary: Step boundary that was reached: `latents` are x_boundary.
        sigma: Noise level of x_boundary.
        latents: float32 [C, T, H, W], on the model's device.
        computed_share: Tokens that went through the network, divided by all tokens; above 1 where the search
            for a region was followed by a full step.
        active: bool [N], tokens that this step computed; the others are the donor's. None means all.
        backend: Backend that ran the network.
        seconds: Duration of the step on the device; 0 until the caller has measured it.
        draft: Whether the step computed the draft that a run starts from.
        region: bool [N], tokens that the next step of stage 2 computes; None if it computes every token.
        resume_point: State of the run after the step; None in the last step, and if the caller wants none.
        estimate: Clean latents that the step predicted, like `latents`; None unless they were requested.
        preview: Picture of the estimate as JPEG; empty without one.
        preview_fault: Reason why the picture could not be made; empty otherwise.
    """

    boundary: int
    sigma: float
    latents: Tensor
    computed_share: float
    active: Tensor | None
    backend: StepReport
    seconds: float = 0.0
    draft: bool = False
    region: Tensor | None = None
    resume_point: ResumePoint | None = None
    estimate: Tensor | None = None
    preview: bytes = b""
    preview_fault: str = ""


@dataclass(frozen=True)
class PlainNetwork:
    """Network of the steps after the first, in a run whose first step the host adapter computes.

    Attributes:
        predictor: Predictor of the model without the adapter.
        text: The target's prompt, prepared by that model.
        donor_text: The donor's prompt, prepared by that model; needed for contrast.
    """

    predictor: Predictor
    text: TextKV
    donor_text: TextKV | None = None


class Stages:
    """Runs one plan. `finder`, `text` and `edge_weights` exist for the experiments in bench/.

    If the model has a host adapter, a run with a donor computes its first step on the host's predictor
    (`Predictor.select`), with the search for a region, and the others on the plain one (`then`): after the
    first step the latents agree with the prompt, and the plain network draws sharper edges.

    Args:
        predictor: Predictor of the first computed step, whose model prepared `text_kv`; of all steps without
            `then`.
        plan: Plan that is valid for the schedule and for the data of the donor.
        noise: The target's noise x_0. A run without a donor starts from it; a renoised run, and one with a
            draft, add it.
        donor: Latents of the donor; None means full computation, and the plan is ignored.
        fresh_noise: Noise that the sampler adds to reach a boundary (`LoadedModel.fresh_noise`); None if it
            adds none.
        finder: Finder of the region of stage 2. Default: the finder for the plan's source.
        text: Text that cross-attention reads in each step. Default: `text_kv`, amplified as planned.
        edge_weights: Share of the target's own result that each token takes, [N], from the active tokens.
        then: Network of the steps after the first.
        resume: State of an earlier run of the same plan, whose further steps are run. `predictor` is then the
            one of the steps after the first.
        estimates: Whether the steps have the clean latents that they predicted.
    """

    def __init__(
        self,
        predictor: Predictor,
        plan: plan_pb2.Plan,
        shape: LatentShape,
        sigmas: tuple[float, ...],
        text_kv: TextKV,
        noise: Tensor,
        donor: DonorLatents | None,
        *,
        fresh_noise: BoundaryNoise | None = None,
        finder: RegionFinder | None = None,
        text: StepText | None = None,
        edge_weights: Callable[[Tensor, Grid], Tensor] = compute_edge_weights,
        then: PlainNetwork | None = None,
        resume: ResumePoint | None = None,
        estimates: bool = False,
    ) -> None:
        sampler = predictor.model.spec.schedule.sampler
        if (sampler == "renoise") != (fresh_noise is not None):
            raise ValueError(
                f"fresh_noise: must be set exactly for renoise; the model's sampler is {sampler}"
            )
        if donor is not None and predictor.model.host is not None and resume is None:
            raise ValueError("predictor: a run with a donor must run on the host: Predictor.select")
        if donor is None:
            plan, donor = plan_pb2.Plan(), DonorLatents({})
        self._plan, self._shape, self._sigmas, self._noise = plan, shape, sigmas, noise
        self._reuse_steps, self._region_end = plan.reuse_steps, effective_region_end(plan)
        self._predictor, self._model = predictor, predictor.model
        self._donor = DonorTrajectory(self._model, donor, sigmas)
        self._target = Target(predictor, shape, sigmas, text or plan_text(text_kv, plan, donor.text))
        self._fresh_noise = fresh_noise
        if finder is None and self._reuse_steps < self._region_end:
            finder = create_region_finder(plan)
        self._finder = finder
        self._edge_weights = edge_weights
        self._resume = resume
        self._estimates = estimates
        self._then = (self._predictor, self._target)
        if then is not None:
            later = text or plan_text(then.text, plan, then.donor_text)
            self._then = (then.predictor, Target(then.predictor, shape, sigmas, later))

    def steps(self, observers: Mapping[int, AttentionObserver] | None = None) -> Iterator[Step]:
        """Yields x_{K1 + 1} … x_N, and x_{K1} before them if it is a draft.

        Iterate once; a caller may stop early.

        Args:
            observers: By step number, called with the cross-attention of that step if stage 3 computes it.
        """
        # Stage 1: steps 0 … K1 − 1 are the donor's.
        if self._resume is None:
            boundary, tokens = self._reuse_steps, self._start_tokens()
            if self._plan.draft_step:
                yield self._build_step(boundary, None, tokens, None)
            region = self._find_region(tokens)
        else:
            boundary, region = self._resume.boundary, self._resume.region
            tokens = self._model.to_tokens(self._resume.latents.to(self._model.device))
            region = None if region is None else region.to(self._model.device)

        # Stage 2: steps K1 … K2 − 1 compute the active tokens.
        while region is not None and boundary < self._region_end:
            active, before = region, tokens
            tokens, region = self._region_step(boundary, before, active)
            boundary += 1
            yield self._build_step(boundary, before, tokens, active, region=region)

        # Stage 3: the remaining steps compute every token.
        for step in range(boundary, len(self._sigmas) - 1):
            velocity = self._target.velocity(step, tokens, on_attention=(observers or {}).get(step))
            before, tokens = tokens, self._take_step(step, tokens, velocity)
            yield self._build_step(step + 1, before, tokens, None)

    def _find_region(self, tokens: Tensor) -> Tensor | None:
        """Returns the active tokens of the first region step; None without one, or above the budget.

        Args:
            tokens: x_{K1}.
        """
        if self._finder is None or self._reuse_steps >= self._region_end:
            return None
        active = self._finder.find(self._reuse_steps, tokens, self._target, self._donor)
        return active if float(active.float().mean()) <= self._plan.region.budget else None

    def _start_tokens(self) -> Tensor:
        """Returns x_{K1}. Renoising is how MoDM reuses images: Xia et al., arXiv 2503.11972."""
        if self._reuse_steps == 0:
            return self._model.to_tokens(self._noise)
        if self._plan.renoised:
            return self._noise_again(self._donor.tokens(len(self._sigmas) - 1))
        if step := self._plan.draft_step:
            tokens = self._donor.tokens(step)
            return self._noise_again(tokens - self._sigmas[step] * self._target.velocity(step, tokens))
        return self._donor.tokens(self._reuse_steps)

    def _noise_again(self, clean: Tensor) -> Tensor:
        """Returns clean tokens with the target's noise at the level of step K1."""
        return add_noise(clean, self._own_noise(self._reuse_steps), self._sigmas[self._reuse_steps])

    def _own_noise(self, boundary: int) -> Tensor:
        """Returns the target's noise at a boundary that adds new noise, as tokens."""
        return self._model.to_tokens(
            self._noise if self._fresh_noise is None else self._fresh_noise(boundary)
        )

    def _region_step(self, step: int, tokens: Tensor, active: Tensor) -> tuple[Tensor, Tensor | None]:
        """Computes the active tokens. Returns x_{step+1} and the active tokens of the next region step.

        These are None after the last region step.
        """
        assert self._finder is not None, "region steps follow a search for the region"
        last = step + 1 == self._region_end
        positions = active.nonzero()[:, 0]
        if not len(positions):
            return self._continue_donor(step + 1), None if last else active
        computed = positions
        if self._plan.region.context == plan_pb2.REGION_CONTEXT_STRIDED:
            computed = torch.cat((positions, select_context(active, self._target.grid))).sort().values
        velocity = self._target.velocity(step, tokens, computed)[active[computed]]
        own = self._take_step(step, tokens, torch.zeros_like(tokens).index_copy_(0, positions, velocity))
        blended = self._blend_with_donor(step + 1, own, active)
        if last:
            return blended, None
        differences = partial(self._donor.differences, step, tokens, velocity, positions)
        return blended, self._finder.refine(active, differences, self._target)

    def _take_step(self, step: int, tokens: Tensor, velocity: Tensor) -> Tensor:
        sigma, sigma_next = self._sigmas[step], self._sigmas[step + 1]
        # At sigma 0 no noise is left, and both samplers take the same step.
        if self._fresh_noise is None or sigma_next == 0:
            return euler_step(tokens, velocity, sigma, sigma_next)
        noise = self._model.to_tokens(self._fresh_noise(step + 1))
        return renoise_step(tokens, velocity, sigma, sigma_next, noise)

    def _continue_donor(self, boundary: int) -> Tensor:
        """Returns the donor's x_boundary, with the target's fresh noise in place of the donor's."""
        tokens, sigma = self._donor.tokens(boundary), self._sigmas[boundary]
        if self._fresh_noise is None or sigma == 0:
            return tokens
        noise = self._model.to_tokens(self._fresh_noise(boundary))
        return tokens + sigma * (noise - self._donor.noise(boundary))

    def _blend_with_donor(self, boundary: int, own: Tensor, active: Tensor) -> Tensor:
        """Returns x_boundary: the target's own where active, less so at the region's edge, else the donor's.

        Args:
            own: [N, C*P]; ignored for tokens that are not active.
        """
        weight = self._edge_weights(active, self._target.grid)[:, None]
        return torch.lerp(self._continue_donor(boundary), own, weight)

    def _build_step(
        self,
        boundary: int,
        before: Tensor | None,
        tokens: Tensor,
        active: Tensor | None,
        *,
        region: Tensor | None = None,
    ) -> Step:
        """Returns a finished step, and continues with the network of the steps after the first.

        Args:
            before: Tokens from which the step started; None for a draft.
            tokens: Tokens that it reached.
        """
        estimate = self._estimate_clean(boundary, before, tokens) if self._estimates else None
        step = Step(
            boundary=boundary,
            sigma=self._sigmas[boundary],
            latents=self._model.to_latents(tokens, self._shape),
            computed_share=self._target.take_computed_share(),
            active=active,
            backend=self._predictor.backend.drain(),
            draft=before is None,
            region=region,
            estimate=None if estimate is None else self._model.to_latents(estimate, self._shape),
        )
        self._predictor, self._target = self._then
        return step

    def _estimate_clean(self, boundary: int, before: Tensor | None, tokens: Tensor) -> Tensor:
        """Returns the clean tokens that a step predicted, x - sigma * v, or that the donor's step did.

        They follow from the latents before and after the step, in the same way for both.
        """
        sigma = self._sigmas[boundary]
        if sigma == 0:
            return tokens
        if before is None or self._fresh_noise is not None:
            return remove_noise(tokens, self._own_noise(boundary), sigma)
        sigma_before = self._sigmas[boundary - 1]
        return (sigma_before * tokens - sigma * before) / (sigma_before - sigma)
