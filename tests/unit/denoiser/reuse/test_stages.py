"""Tests of the three stages on a small random network: their results and their cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chorus.common.v1 import plan_pb2
from torch import Tensor

from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.sampler import sample
from services.denoiser.network.text import AmplifiedText
from services.denoiser.network.wan import TextKV
from services.denoiser.reuse.amplification import amplify_text
from services.denoiser.reuse.attention_maps import AttentionMaps
from services.denoiser.reuse.donor import DonorLatents, DonorTrajectory
from services.denoiser.reuse.region_finders import RegionFinder
from services.denoiser.reuse.region_masks import select_probe_tokens
from services.denoiser.reuse.stages import Stages, Step
from services.denoiser.reuse.target import Target
from tests.tiny_model import TEXT_DIM, save_tiny_model

STEPS = 4


class Bench:
    """A model, two prompts, and the finished run of the donor."""

    def __init__(self, folder: Path) -> None:
        self.predictor = Predictor.eager(LoadedModel.load(save_tiny_model(folder, layers=3)))
        self.model = self.predictor.model
        self.sigmas = self.model.spec.schedule.sigmas
        self.shape = self.model.latent_shape(4, 32, 32)
        self.grid = self.model.token_grid(self.shape)
        self.donor_text, self.text = (self.encode_text(seed) for seed in (1, 2))
        self.noise = self.model.noise(0, self.shape)
        self.donor = DonorLatents(
            dict(enumerate([self.noise, *self.full(self.donor_text)])),
            maps=torch.rand(5, self.count, generator=torch.Generator().manual_seed(3)),
            text=self.donor_text,
        )

    @property
    def count(self) -> int:
        frames, rows, columns = self.grid
        return frames * rows * columns

    def encode_text(self, seed: int) -> TextKV:
        return self.model.prepare_text(
            torch.randn(5, TEXT_DIM, generator=torch.Generator().manual_seed(seed))
        )

    def full(self, text: TextKV, first: int = 0, start: Tensor | None = None) -> Iterator[Tensor]:
        """Yields the latents of the plain sampler, x_{first + 1} … x_N."""
        begin = self.noise if start is None else start
        return sample(
            lambda x, sigma: self.predictor.latent_velocity(x, sigma, text), begin, self.sigmas, first
        )

    def run(self, plan: plan_pb2.Plan, text: TextKV | None = None) -> list[Step]:
        donor = self.donor if plan.reuse_steps else None
        stages = Stages(self.predictor, plan, self.shape, self.sigmas, text or self.text, self.noise, donor)
        return list(stages.steps())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("model"))


def plan(first: int = 0, end: int = 0, source: str = "PROBE", **region: float) -> plan_pb2.Plan:
    message = plan_pb2.Plan(total_steps=STEPS, reuse_steps=first, region_end=end)
    if end > first:
        message.region.source = plan_pb2.RegionSource.Value(f"REGION_SOURCE_{source}")
        message.region.context = plan_pb2.REGION_CONTEXT_NONE
        for name, value in {"threshold": 0.0, "budget": 1.0, **region}.items():
            setattr(message.region, name, int(value) if name in ("dilation", "context") else value)
    return message


def test_without_a_donor_the_stages_equal_the_sampler(bench: Bench) -> None:
    expected = list(bench.full(bench.text))
    for found, wanted in zip(bench.run(plan()), expected, strict=True):
        assert torch.equal(found.latents, wanted)
        assert found.computed_share == 1.0
        assert found.active is None


def test_stage_1_starts_from_the_donors_latents(bench: Bench) -> None:
    expected = list(bench.full(bench.text, 2, bench.donor.steps[2]))
    found = bench.run(plan(2))
    assert [s.boundary for s in found] == [3, 4]
    assert all(torch.equal(f.latents, e) for f, e in zip(found, expected, strict=True))


def test_renoised_plan_adds_the_targets_noise_to_clean_latents(bench: Bench) -> None:
    wanted = plan(2)
    wanted.renoised = True
    clean, sigma = bench.donor.steps[STEPS], bench.sigmas[2]
    expected = list(bench.full(bench.text, 2, (1 - sigma) * clean + sigma * bench.noise))
    needed = DonorLatents({STEPS: clean})  # the plan needs nothing else of the donor
    found = list(
        Stages(bench.predictor, wanted, bench.shape, bench.sigmas, bench.text, bench.noise, needed).steps()
    )
    assert [s.boundary for s in found] == [3, 4]
    assert all(torch.equal(f.latents, e) for f, e in zip(found, expected, strict=True))
    assert [s.computed_share for s in found] == [1.0, 1.0]
    other = Stages(
        bench.predictor,
        wanted,
        bench.shape,
        bench.sigmas,
        bench.text,
        bench.model.noise(1, bench.shape),
        needed,
    )
    assert not torch.equal(next(iter(other.steps())).latents, found[0].latents)


@pytest.mark.parametrize(("first", "draft"), [(1, 1), (1, 3), (3, 3)])
def test_draft_is_predicted_from_the_donors_latents_and_noised_again(
    bench: Bench, first: int, draft: int
) -> None:
    wanted = plan(first)
    wanted.draft_step = draft
    needed = DonorLatents({draft: bench.donor.steps[draft]})  # the plan needs nothing else of the donor
    *_, clean = sample(  # one step from the donor's latents to noise level 0
        lambda x, sigma: bench.predictor.latent_velocity(x, sigma, bench.text),
        needed.steps[draft],
        (bench.sigmas[draft], 0.0),
    )
    start = (1 - bench.sigmas[first]) * clean + bench.sigmas[first] * bench.noise
    expected = [start, *bench.full(bench.text, first, start)]
    found = list(
        Stages(bench.predictor, wanted, bench.shape, bench.sigmas, bench.text, bench.noise, needed).steps()
    )
    assert [(s.boundary, s.draft) for s in found] == [
        (boundary, boundary == first) for boundary in range(first, STEPS + 1)
    ]
    assert all(torch.allclose(f.latents, e, atol=1e-5) for f, e in zip(found, expected, strict=True))
    assert [s.computed_share for s in found] == [1.0] * len(expected)


@pytest.mark.parametrize("source", ["PROBE", "FULL_STEP", "ATTENTION"])
def test_region_of_all_tokens_equals_full_steps_bit_for_bit(bench: Bench, source: str) -> None:
    wanted = plan(1, 4, source, dilation=8)
    wanted.lost.add(index=0, weight=1.0)
    expected = list(bench.full(bench.text, 1, bench.donor.steps[1]))
    for found, full in zip(bench.run(wanted), expected, strict=True):
        assert found.active is None or found.active.all()
        assert torch.equal(found.latents, full)


def test_region_above_its_budget_is_computed_in_full(bench: Bench) -> None:
    found = bench.run(plan(1, 4, budget=0.0))
    probes = len(select_probe_tokens(bench.grid)) / bench.count
    assert [s.computed_share for s in found] == pytest.approx([1.0 + probes, 1.0, 1.0])
    assert all(s.active is None for s in found)


@pytest.mark.parametrize("source", ["PROBE", "FULL_STEP"])
def test_donors_prompt_gives_an_empty_region(bench: Bench, source: str) -> None:
    found = bench.run(plan(1, 4, source, threshold=1e-6), bench.donor_text)
    assert [s.computed_share for s in found[1:]] == [0.0, 0.0]
    for step in found:
        assert torch.allclose(step.latents, bench.donor.steps[step.boundary], atol=1e-5)


def test_inactive_tokens_take_the_donors_latents_until_stage_3(bench: Bench) -> None:
    wanted = plan(1, 3, "ATTENTION", threshold=0.9)
    wanted.lost.add(index=2, weight=1.0)
    region, second, last = bench.run(wanted)
    for step in (region, second):
        assert step.active is not None
        assert 0 < step.active.sum() < bench.count
        assert step.computed_share == pytest.approx(float(step.active.float().mean()))
        own, donor = (bench.model.to_tokens(x) for x in (step.latents, bench.donor.steps[step.boundary]))
        assert torch.equal(own[~step.active], donor[~step.active])
        assert not torch.equal(own[step.active], donor[step.active])
    assert last.active is None
    assert last.computed_share == 1.0


def test_strided_context_costs_a_quarter_of_the_inactive_tokens(bench: Bench) -> None:
    wanted = plan(1, 4, "ATTENTION", threshold=0.9)
    wanted.lost.add(index=2, weight=1.0)
    alone = bench.run(wanted)[0]
    wanted.region.context = plan_pb2.REGION_CONTEXT_STRIDED
    seen = bench.run(wanted)[0]
    assert alone.active is not None
    assert seen.active is not None
    assert torch.equal(alone.active, seen.active)
    assert alone.computed_share < seen.computed_share < alone.computed_share + 0.27
    assert not torch.equal(alone.latents, seen.latents)


@pytest.mark.parametrize("form", ["CONTRAST", "BIAS", "VALUE_GAIN"])
def test_amplification_of_strength_0_changes_nothing(bench: Bench, form: str) -> None:
    wanted = plan(2)
    wanted.gained.add(index=1, weight=1.0)
    without = bench.run(wanted)[-1].latents
    wanted.amplification.form = plan_pb2.AmplificationForm.Value(f"AMPLIFICATION_FORM_{form}")
    assert torch.equal(bench.run(wanted)[-1].latents, without)
    wanted.amplification.strength = 1.0
    on = bench.run(wanted)[-1].latents
    assert not torch.equal(on, without)
    wanted.amplification.first_step, wanted.amplification.end_step = 3, 4
    found = bench.run(wanted)
    assert not torch.equal(found[-1].latents, on)
    assert torch.equal(found[0].latents, bench.run(plan(2))[0].latents)
    wanted.amplification.first_layer = 3  # behind the last
    assert torch.equal(bench.run(wanted)[-1].latents, without)


def test_gate_of_ones_equals_no_gate_and_zeros_disable(bench: Bench) -> None:
    tokens = bench.model.to_tokens(bench.donor.steps[2])
    for form in (plan_pb2.AMPLIFICATION_FORM_CONTRAST, plan_pb2.AMPLIFICATION_FORM_BIAS):
        strong = plan_pb2.Amplification(form=form, strength=1.0)

        def velocity(gate: Tensor | None, strong: plan_pb2.Amplification | None = strong) -> Tensor:
            text = bench.text
            if strong is not None:
                amplified = amplify_text(text, strong, gained=[(1, 1.0)], donor=bench.donor_text, gate=gate)
                return bench.predictor.velocity(tokens, 0.8, amplified, bench.shape)
            return bench.predictor.velocity(tokens, 0.8, text, bench.shape)

        plain, on = velocity(None, None), velocity(None)
        assert torch.allclose(velocity(torch.ones(bench.count)), on, atol=1e-5)
        assert torch.allclose(velocity(torch.zeros(bench.count)), plain, atol=1e-5)
        assert not torch.allclose(on, plain, atol=1e-3)


def test_contrast_needs_the_donors_prompt(bench: Bench) -> None:
    contrast = plan_pb2.Amplification(form=plan_pb2.AMPLIFICATION_FORM_CONTRAST, strength=1.0)
    with pytest.raises(ValueError, match="needs the token states of the donor's prompt"):
        amplify_text(bench.text, contrast)


def test_attention_maps_are_shares_of_the_middle_blocks_attention(bench: Bench) -> None:
    attention = AttentionMaps(4)
    assert attention.maps() is None
    tokens = bench.model.to_tokens(bench.noise)
    plain = bench.predictor.velocity(tokens, 1.0, bench.text, bench.shape)
    observed = bench.predictor.velocity(tokens, 1.0, bench.text, bench.shape, on_attention=attention.observe)
    assert torch.equal(plain, observed)
    maps = attention.maps()
    assert maps is not None
    assert maps.shape == (4, bench.count)
    assert (maps >= 0).all()
    assert (maps.sum(0) < 2).all()  # two heads of one block, less the share of the fifth token


class CheckerboardFinder(RegionFinder):
    """Activates every other token, and records the differences passed to `refine`."""

    def __init__(self) -> None:
        self.differences: list[Tensor] = []

    def find(self, step: int, tokens: Tensor, target: Target, donor: DonorTrajectory) -> Tensor:
        return torch.arange(len(tokens)) % 2 == 0

    def refine(self, active: Tensor, differences: Callable[[], Tensor], target: Target) -> Tensor:
        self.differences.append(differences())
        return active


def run_with(bench: Bench, wanted: plan_pb2.Plan, **parts: Any) -> list[Step]:
    stages = Stages(
        bench.predictor, wanted, bench.shape, bench.sigmas, bench.text, bench.noise, bench.donor, **parts
    )
    return list(stages.steps())


def test_given_finder_replaces_the_plans_source(bench: Bench) -> None:
    finder = CheckerboardFinder()
    steps = run_with(bench, plan(1, 3), finder=finder)
    expected = torch.arange(bench.count) % 2 == 0
    assert [step.boundary for step in steps] == [2, 3, 4]
    assert all(step.active is not None and torch.equal(step.active, expected) for step in steps[:2])
    assert steps[2].active is None
    assert [step.computed_share for step in steps] == [0.5, 0.5, 1.0]
    assert [len(differences) for differences in finder.differences] == [bench.count // 2]


def test_a_region_is_refined_only_if_a_region_step_follows(bench: Bench) -> None:
    for end, refined in ((2, 0), (3, 1), (4, 2)):
        finder = CheckerboardFinder()
        run_with(bench, plan(1, end), finder=finder)
        assert len(finder.differences) == refined


def test_a_region_by_attention_needs_no_differences(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = plan(1, 4, "ATTENTION", threshold=0.9)
    wanted.lost.add(index=2, weight=1.0)
    expected = bench.run(wanted)
    monkeypatch.setattr(DonorTrajectory, "differences", lambda *_: pytest.fail("differences were computed"))
    for found, step in zip(bench.run(wanted), expected, strict=True):
        assert torch.equal(found.latents, step.latents)


def test_a_plan_that_names_no_region_source_is_rejected(bench: Bench) -> None:
    with pytest.raises(ValueError, match="unknown region source 0"):
        bench.run(plan(1, 3, "UNSPECIFIED"))


def test_given_edge_weights_replace_blending(bench: Bench) -> None:
    step = run_with(
        bench, plan(1, 2), finder=CheckerboardFinder(), edge_weights=lambda active, grid: 0.0 * active
    )[0]
    assert torch.equal(step.latents, bench.donor.steps[2])


def test_given_text_replaces_the_planned_amplification(bench: Bench) -> None:
    calls: list[tuple[int, int | None]] = []

    def text(step: int, index: Tensor | None) -> AmplifiedText:
        calls.append((step, None if index is None else len(index)))
        return AmplifiedText(bench.donor_text)

    steps = run_with(bench, plan(1, 2), finder=CheckerboardFinder(), text=text)
    assert calls == [(1, bench.count // 2), (2, None), (3, None)]
    assert not torch.equal(steps[-1].latents, run_with(bench, plan(1, 2))[-1].latents)


def test_full_step_for_the_region_is_not_computed_twice(bench: Bench) -> None:
    for budget in (0.0, 1.0):
        steps = bench.run(plan(1, 4, "FULL_STEP", budget=budget))
        assert steps[0].computed_share == 1.0


def test_every_step_names_its_backend_and_noise_level(bench: Bench) -> None:
    steps = bench.run(plan(1, 4))
    assert [step.backend.backend for step in steps] == ["torch"] * 3
    assert [step.sigma for step in steps] == list(bench.sigmas[2:])


def test_estimates_are_the_clean_latents_that_each_step_predicts(bench: Bench) -> None:
    before = bench.noise
    steps = run_with(bench, plan(), estimates=True)
    for index, step in enumerate(steps):
        sigma = bench.sigmas[index]
        predicted = before - sigma * bench.predictor.latent_velocity(before, sigma, bench.text)
        assert step.estimate is not None
        assert torch.allclose(step.estimate, predicted, atol=1e-4)
        before = step.latents
    last = steps[-1]
    assert last.estimate is not None
    assert torch.equal(last.estimate, last.latents), "it reaches what it predicts"
    assert all(step.estimate is None for step in run_with(bench, plan()))


def test_estimate_of_a_region_is_the_donors_elsewhere(bench: Bench) -> None:
    own, *_ = run_with(bench, plan(2, 3), finder=CheckerboardFinder(), estimates=True)
    assert own.active is not None
    before, sigma = bench.donor.steps[2], bench.sigmas[2]
    donors = before - sigma * bench.predictor.latent_velocity(before, sigma, bench.donor_text)
    assert own.estimate is not None
    tokens, wanted = bench.model.to_tokens(own.estimate), bench.model.to_tokens(donors)
    away = ~own.active
    assert away.any()
    assert torch.allclose(tokens[away], wanted[away], atol=1e-4)
    assert not torch.allclose(tokens[own.active], wanted[own.active], atol=1e-3)


def test_estimate_of_a_draft_is_the_draft(bench: Bench) -> None:
    wanted = plan(1)
    wanted.draft_step = 3
    draft, *_ = run_with(bench, wanted, estimates=True)
    start, sigma = bench.donor.steps[3], bench.sigmas[3]
    assert draft.estimate is not None
    predicted = start - sigma * bench.predictor.latent_velocity(start, sigma, bench.text)
    assert torch.allclose(draft.estimate, predicted, atol=1e-4)
