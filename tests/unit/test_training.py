"""Training: seeded, and a resumed run is the same run."""

import argparse
from pathlib import Path

import pytest
import torch

from models.movingshapes.muon import Muon, orthogonalise
from models.movingshapes.train import SIGMAS, Captions, Trainer, draw_sigmas
from models.movingshapes.world import attribute_table, scenes
from services.common.schedule import shifted_schedule

TABLE = attribute_table(scenes()[:4])


def arguments(seed: int = 0) -> argparse.Namespace:
    return argparse.Namespace(
        seed=seed, device="cpu", dim=32, layers=1, batch=2, updates=200, compile=False,
        optimiser="muon", lr=2e-3, muon_lr=3e-3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def captions() -> Captions:
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[:, 4:] = False
    states = torch.randn(4, 6, 384, generator=torch.Generator().manual_seed(0))
    return Captions(torch.arange(4), states.half(), mask)


def train(trainer: Trainer, captions: Captions, updates: int) -> dict[str, torch.Tensor]:
    for _ in range(updates):
        trainer.train_step(captions, TABLE)
    return {k: v.clone() for k, v in (trainer.model.state_dict() | trainer.ema).items()}


def test_a_resumed_run_is_the_same_run(captions: Captions, tmp_path: Path) -> None:
    whole = train(Trainer(arguments()), captions, 6)
    first = Trainer(arguments())
    train(first, captions, 3)
    first.save(tmp_path)
    second = Trainer(arguments())
    second.load(tmp_path)
    assert second.update == 3
    resumed = train(second, captions, 3)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_another_seed_is_another_run(captions: Captions) -> None:
    one, other = (train(Trainer(arguments(seed)), captions, 1) for seed in (0, 1))
    assert not torch.equal(one["proj_out.weight"], other["proj_out.weight"])


def test_it_learns(captions: Captions) -> None:
    trainer = Trainer(arguments())
    losses = [trainer.train_step(captions, TABLE)[0] for _ in range(50)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_training_visits_the_levels_that_sampling_visits() -> None:
    assert pytest.approx(shifted_schedule(4, 5.0)) == SIGMAS
    drawn = draw_sigmas(4000, torch.Generator().manual_seed(0))
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    for sigma in SIGMAS[:-1]:
        assert (drawn == sigma).float().mean() > 0.15


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 16), (2, 16, 4)])
def test_updates_are_orthogonalised(shape: tuple[int, int, int]) -> None:
    values = torch.linalg.svdvals(
        orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    )
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_muon_steps_have_the_size_of_the_learning_rate() -> None:
    weight = torch.nn.Parameter(torch.zeros(16, 16))
    weight.grad = 1e-6 * torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
    Muon([weight], lr=0.01, weight_decay=0.0).step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.002, rel=0.3)
