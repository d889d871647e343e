"""Tests of the three stages with a sampler that adds fresh noise after every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from chorus.common.v1 import plan_pb2
from torch import Tensor

from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.sampler import sample, seeded_noise
from services.denoiser.network.wan import TextKV
from services.denoiser.reuse.donor import DonorLatents, DonorTrajectory
from services.denoiser.reuse.region_finders import RegionFinder
from services.denoiser.reuse.stages import Stages, Step
from services.denoiser.reuse.target import Target
from tests.tiny_model import TEXT_DIM, save_tiny_model

pytestmark = pytest.mark.fault("sampler")

STEPS = 4
DONOR_SEED, TARGET_SEED = 11, 12


class Bench:
    """A model that renoises, two prompts, and the finished run of a donor."""

    def __init__(self, folder: Path) -> None:
        self.predictor = Predictor.eager(
            LoadedModel.load(save_tiny_model(folder, layers=3, sampler="renoise"))
        )
        self.model = self.predictor.model
        self.sigmas = self.model.spec.schedule.sigmas
        self.shape = self.model.latent_shape(4, 32, 32)
        self.donor_text, self.text = (self.encode_text(seed) for seed in (1, 2))
        self.donor = self.make_donor(DONOR_SEED)

    def encode_text(self, seed: int) -> TextKV:
        generator = torch.Generator().manual_seed(seed)
        return self.model.prepare_text(torch.randn(5, TEXT_DIM, generator=generator))

    def make_donor(self, seed: int) -> DonorLatents:
        run = self.run(plan(), self.donor_text, seed)
        return DonorLatents(
            {step.boundary: step.latents for step in run},
            maps=torch.rand(5, 16 * 16 // 4 * 4, generator=torch.Generator().manual_seed(3)),
            text=self.donor_text,
            fresh_noise=self.model.fresh_noise(seed, self.shape),
        )

    def full(self, text: TextKV, seed: int, first: int = 0, start: Tensor | None = None) -> Iterator[Tensor]:
        """Yields x_{first + 1} … x_N by the published formula of distribution matching distillation."""
        x = self.model.noise(seed, self.shape) if start is None else start
        for i in range(first, STEPS):
            sigma, sigma_next = self.sigmas[i], self.sigmas[i + 1]
            clean = x - sigma * self.predictor.latent_velocity(x, sigma, text)
            x = (1 - sigma_next) * clean + sigma_next * self.model.noise(seed, self.shape, i + 1)
            yield x

    def run(
        self,
        wanted: plan_pb2.Plan,
        text: TextKV,
        seed: int,
        donor: DonorLatents | None = None,
        finder: RegionFinder | None = None,
    ) -> list[Step]:
        stages = Stages(
            self.predictor,
            wanted,
            self.shape,
            self.sigmas,
            text,
            self.model.noise(seed, self.shape),
            donor,
            fresh_noise=self.model.fresh_noise(seed, self.shape),
            finder=finder,
        )
        return list(stages.steps())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("renoise"))


def plan(first: int = 0, end: int = 0, source: str = "PROBE", **region: float) -> plan_pb2.Plan:
    message = plan_pb2.Plan(total_steps=STEPS, reuse_steps=first, region_end=end)
    if end > first:
        message.region.source = plan_pb2.RegionSource.Value(f"REGION_SOURCE_{source}")
        message.region.context = plan_pb2.REGION_CONTEXT_NONE
        for name, value in {"threshold": 0.0, "budget": 1.0, **region}.items():
            setattr(message.region, name, int(value) if name == "dilation" else value)
    return message


def test_full_run_follows_the_published_formula(bench: Bench) -> None:
    expected = list(bench.full(bench.text, TARGET_SEED))
    found = bench.run(plan(), bench.text, TARGET_SEED)
    for step, wanted in zip(found, expected, strict=True):
        assert torch.allclose(step.latents, wanted, atol=1e-5)
    euler = sample(
        lambda x, s: bench.predictor.latent_velocity(x, s, bench.text),
        bench.model.noise(TARGET_SEED, bench.shape),
        bench.sigmas,
    )
    *_, last = euler
    assert not torch.allclose(found[-1].latents, last, atol=1e-2)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_run_resumed_at_any_boundary_equals_the_whole_run(bench: Bench, first: int) -> None:
    whole = bench.run(plan(), bench.donor_text, DONOR_SEED)
    resumed = bench.run(plan(first), bench.donor_text, DONOR_SEED, bench.donor)
    for step, wanted in zip(resumed, whole[first:], strict=True):
        assert step.boundary == wanted.boundary
        assert torch.equal(step.latents, wanted.latents)


def test_noise_after_stage_1_is_the_targets(bench: Bench) -> None:
    expected = list(bench.full(bench.text, TARGET_SEED, 2, bench.donor.steps[2]))
    found = bench.run(plan(2), bench.text, TARGET_SEED, bench.donor)
    assert all(torch.allclose(f.latents, e, atol=1e-5) for f, e in zip(found, expected, strict=True))
    other = bench.run(plan(2), bench.text, TARGET_SEED + 1, bench.donor)
    assert not torch.allclose(other[-1].latents, found[-1].latents, atol=1e-3)


@pytest.mark.parametrize("source", ["PROBE", "FULL_STEP"])
def test_donors_prompt_and_seed_give_the_donors_latents(bench: Bench, source: str) -> None:
    found = bench.run(plan(1, 4, source, threshold=1e-6), bench.donor_text, DONOR_SEED, bench.donor)
    assert [step.computed_share for step in found[1:]] == [0.0, 0.0]
    for step in found:
        assert torch.allclose(step.latents, bench.donor.steps[step.boundary], atol=1e-5)


class CheckerboardFinder(RegionFinder):
    """Activates every other token."""

    def find(self, step: int, tokens: Tensor, target: Target, donor: DonorTrajectory) -> Tensor:
        return torch.arange(len(tokens)) % 2 == 0

    def refine(self, active: Tensor, differences: Callable[[], Tensor], target: Target) -> Tensor:
        differences()
        return active


def test_inactive_tokens_hold_the_donors_prediction_under_the_targets_noise(bench: Bench) -> None:
    model, sigmas = bench.model, bench.sigmas
    found = bench.run(plan(1, 4), bench.text, TARGET_SEED, bench.donor, CheckerboardFinder())
    for step in found:
        noise = {seed: model.noise(seed, bench.shape, step.boundary) for seed in (DONOR_SEED, TARGET_SEED)}
        sigma = sigmas[step.boundary]
        donor_clean = (bench.donor.steps[step.boundary] - sigma * noise[DONOR_SEED]) / (1 - sigma)
        wanted = model.to_tokens((1 - sigma) * donor_clean + sigma * noise[TARGET_SEED])
        own = model.to_tokens(step.latents)
        assert step.active is not None
        assert torch.allclose(own[~step.active], wanted[~step.active], atol=1e-4)
        assert not torch.allclose(own[step.active], wanted[step.active], atol=1e-3)
    assert found[-1].active is not None
    inactive, clean = ~found[-1].active, bench.donor.steps[STEPS]
    assert torch.equal(model.to_tokens(found[-1].latents)[inactive], model.to_tokens(clean)[inactive])


def test_latents_of_a_run_with_a_region_serve_as_a_donor_of_their_own_seed(bench: Bench) -> None:
    first = bench.run(plan(1, 3), bench.text, TARGET_SEED, bench.donor, CheckerboardFinder())
    donor = DonorLatents(
        {step.boundary: step.latents for step in first},
        text=bench.text,
        fresh_noise=bench.model.fresh_noise(TARGET_SEED, bench.shape),
    )
    again = bench.run(plan(3), bench.text, TARGET_SEED, donor)
    assert torch.equal(again[-1].latents, first[-1].latents)


def test_region_of_all_tokens_equals_full_steps(bench: Bench) -> None:
    expected = bench.run(plan(1), bench.text, TARGET_SEED, bench.donor)
    found = bench.run(plan(1, 4, dilation=8), bench.text, TARGET_SEED, bench.donor)
    assert all(torch.equal(f.latents, e.latents) for f, e in zip(found, expected, strict=True))


def test_renoised_plan_adds_the_noise_of_its_boundary(bench: Bench) -> None:
    wanted = plan(2)
    wanted.renoised = True
    clean, sigma = bench.donor.steps[STEPS], bench.sigmas[2]
    start = (1 - sigma) * clean + sigma * bench.model.noise(TARGET_SEED, bench.shape, 2)
    expected = list(bench.full(bench.text, TARGET_SEED, 2, start))
    found = bench.run(wanted, bench.text, TARGET_SEED, DonorLatents({STEPS: clean}))
    assert all(torch.allclose(f.latents, e, atol=1e-5) for f, e in zip(found, expected, strict=True))


def test_draft_takes_the_noise_of_its_boundary(bench: Bench) -> None:
    wanted = plan(2)
    wanted.draft_step = 3
    theirs, sigma = bench.donor.steps[3], bench.sigmas[3]
    clean = theirs - sigma * bench.predictor.latent_velocity(theirs, sigma, bench.text)
    start = (1 - bench.sigmas[2]) * clean + bench.sigmas[2] * bench.model.noise(TARGET_SEED, bench.shape, 2)
    expected = [start, *bench.full(bench.text, TARGET_SEED, 2, start)]
    found = bench.run(wanted, bench.text, TARGET_SEED, DonorLatents({3: theirs}))
    assert all(torch.allclose(f.latents, e, atol=1e-5) for f, e in zip(found, expected, strict=True))


def test_run_without_the_noise_of_its_sampler_is_rejected(bench: Bench) -> None:
    noise = bench.model.noise(0, bench.shape)
    with pytest.raises(ValueError, match="fresh_noise: must be set exactly for renoise"):
        Stages(bench.predictor, plan(), bench.shape, bench.sigmas, bench.text, noise, None)


def test_euler_draws_no_fresh_noise(tmp_path: Path) -> None:
    model = LoadedModel.load(save_tiny_model(tmp_path))
    assert model.fresh_noise(0, model.latent_shape(4, 32, 32)) is None


def test_noise_differs_between_boundaries_and_repeats(bench: Bench) -> None:
    draws = [seeded_noise(5, (64,), boundary) for boundary in range(STEPS)]
    for i, a in enumerate(draws):
        assert torch.equal(a, seeded_noise(5, (64,), i))
        assert all(not torch.equal(a, b) for b in draws[:i])
