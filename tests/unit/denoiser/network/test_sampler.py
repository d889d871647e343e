"""Tests of the samplers: exact for a known solution, resumable, and strict about its schedule."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from services.contract.schedule import shifted_schedule
from services.denoiser.network.sampler import sample, seeded_noise


def toy(x: Tensor, sigma: float) -> Tensor:
    return torch.sin(3 * x) + sigma * x


@given(st.integers(1, 8), st.floats(0.5, 8.0), st.integers(0, 2**64 - 1))
def test_constant_velocity_is_integrated_exactly(steps: int, shift: float, seed: int) -> None:
    """Verifies that with v = noise - data the straight line ends at the data for any schedule."""
    noise, data = seeded_noise(seed, (2, 3)), torch.ones(2, 3)
    *_, last = sample(lambda x, s: noise - data, noise, shifted_schedule(steps, shift))
    torch.testing.assert_close(last, data, rtol=0, atol=1e-4)


@given(st.integers(1, 8), st.data())
def test_resuming_at_any_step_gives_the_same_result(steps: int, data: st.DataObject) -> None:
    sigmas = shifted_schedule(steps, 5.0)
    x0 = seeded_noise(1, (4,))
    full = list(sample(toy, x0, sigmas))
    assert len(full) == steps
    for x, x_next, (sigma, sigma_next) in zip([x0, *full], full, itertools.pairwise(sigmas), strict=False):
        assert torch.equal(x_next, x + (sigma_next - sigma) * toy(x, sigma))
    start = data.draw(st.integers(0, steps - 1))
    before = x0 if start == 0 else full[start - 1]
    resumed = list(sample(toy, before, sigmas, start_step=start))
    assert len(resumed) == steps - start
    assert torch.equal(resumed[-1], full[-1])


def test_latents_are_not_overwritten_and_a_stopped_run_computes_no_more() -> None:
    calls = []

    def counted(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return toy(x, sigma)

    x0 = seeded_noise(0, (3,))
    start = x0.clone()
    run = sample(counted, x0, (1.0, 0.5, 0.25, 0.0))
    first = next(run)
    kept = first.clone()
    next(run)
    assert calls == [1.0, 0.5]
    assert torch.equal(first, kept)
    assert torch.equal(x0, start)


@pytest.mark.parametrize(
    "sigmas",
    [(), (0.0,), (1.0, 0.5), (1.0, 0.5, 0.5, 0.0), (1.0, 1.1, 0.0), (1.2, 0.5, 0.0), (1.0, math.nan, 0.0)],
)
def test_invalid_schedule_is_rejected_before_any_step(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="sigmas"):
        sample(toy, torch.zeros(1), sigmas)


@pytest.mark.parametrize("start", [-1, 2, 9])
def test_start_step_outside_the_schedule_is_rejected(start: int) -> None:
    with pytest.raises(ValueError, match=f"start_step: must be 0 to 1, not {start}"):
        sample(toy, torch.zeros(1), (1.0, 0.5, 0.0), start_step=start)


def test_same_seed_gives_the_same_noise() -> None:
    assert torch.equal(seeded_noise(7, (2, 5)), seeded_noise(7, (2, 5)))
    assert not torch.equal(seeded_noise(7, (2, 5)), seeded_noise(8, (2, 5)))
    torch.rand(3)  # the global generator has no influence
    assert torch.equal(seeded_noise(7, (2, 5)), seeded_noise(7, (2, 5)))
    with pytest.raises(ValueError, match="seed"):
        seeded_noise(-1, (1,))


@pytest.mark.fault("sampler")
@given(st.integers(1, 8), st.floats(0.5, 8.0), st.integers(0, 2**64 - 1))
def test_renoise_adds_the_noise_of_each_boundary_to_the_prediction(
    steps: int, shift: float, seed: int
) -> None:
    """Verifies the path for a network that predicts the data exactly."""
    noise, data = seeded_noise(seed, (2, 3)), torch.ones(2, 3)
    sigmas = shifted_schedule(steps, shift)
    found = list(
        sample(
            lambda x, s: (x - data) / s, noise, sigmas, fresh_noise=lambda i: seeded_noise(seed, (2, 3), i)
        )
    )
    for boundary, x in enumerate(found, 1):
        sigma = sigmas[boundary]
        expected = (1 - sigma) * data + sigma * seeded_noise(seed, (2, 3), boundary)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)


@pytest.mark.fault("number-promises")
def test_every_bit_of_a_seed_changes_the_noise() -> None:
    draws = {bit: seeded_noise(1 ^ (1 << bit), (32,)) for bit in range(64)} | {None: seeded_noise(1, (32,))}
    for i, (a, b) in enumerate(itertools.combinations(draws.values(), 2)):
        assert not torch.allclose(a, b), i
    flat = torch.stack(list(draws.values()))
    assert flat.mean().abs() < 0.1
    assert (flat.std() - 1).abs() < 0.1


@pytest.mark.fault("number-promises")
def test_seeds_below_2_to_32_keep_the_noise_of_torchs_generator() -> None:
    for seed in (0, 7, 2**32 - 1):
        expected = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(seeded_noise(seed, (3, 5)), expected)


@pytest.mark.fault("number-promises")
def test_wide_seeds_give_recorded_noise() -> None:
    """Pins values, so that stored latents and seeds keep belonging together."""
    found = torch.stack(
        [seeded_noise(2**32 + 1, (3,)), seeded_noise(2**64 - 1, (3,)), seeded_noise(1, (3,), 2)]
    )
    expected = torch.tensor(
        [
            [0.0089382, -0.3249505, 0.7637317],
            [-0.0044682, -0.0049663, -0.6393853],
            [-0.5679338, -2.5753486, -1.3345635],
        ]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
