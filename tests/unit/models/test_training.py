"""Tests that training and distillation are seeded, resumable and learn."""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.movingshapes.data import Captions, draw_scenes
from models.movingshapes.distill import Student, fine_schedule, write_trajectories
from models.movingshapes.distill import main as distill_main
from models.movingshapes.network import FEW_STEPS, Network, noise
from models.movingshapes.train import TOKENS, Trainer, draw_sigmas
from models.movingshapes.train import main as train_main
from models.movingshapes.world import scene_table
from models.shapes.muon import Muon, orthogonalise
from services.contract.schedule import shifted_schedule


def training_arguments(seed: int = 0) -> argparse.Namespace:
    return argparse.Namespace(
        seed=seed, device="cpu", dim=32, layers=1, batch=1, updates=8, compile=False, lr=2e-3, muon_lr=3e-3,
        ema=0.9, decay=0.4, subset=4, focus_from=0.25, subset_until=0.5, method="trajectory", blur=0.3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def captions() -> Captions:
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[:, 4:] = False
    states = torch.randn(4, 6, 384, generator=torch.Generator().manual_seed(0))
    return Captions(["a caption"] * 4, scene_table(draw_scenes("train", 4, 0)), states.half(), mask)


def train(trainer: Trainer, captions: Captions, updates: int) -> dict[str, torch.Tensor]:
    for _ in range(updates):
        trainer.step(trainer.flow_batch(captions))
    return {k: v.clone() for k, v in (trainer.network.state_dict() | trainer.ema).items()}


def test_resumed_run_equals_an_uninterrupted_one(captions: Captions, tmp_path: Path) -> None:
    uninterrupted = train(Trainer(training_arguments()), captions, 6)  # full videos from the fourth update on
    first = Trainer(training_arguments())
    train(first, captions, 3)
    first.save(tmp_path)
    second = Trainer(training_arguments())
    second.load(tmp_path)
    assert second.update == 3
    resumed = train(second, captions, 3)
    assert all(torch.equal(uninterrupted[k], resumed[k]) for k in uninterrupted)


def test_other_seed_gives_other_weights(captions: Captions) -> None:
    one, other = (train(Trainer(training_arguments(seed)), captions, 1) for seed in (0, 1))
    assert not torch.equal(one["proj_out.weight"], other["proj_out.weight"])


def test_loss_decreases(captions: Captions) -> None:
    args = training_arguments()
    args.updates, args.subset_until, args.batch = 80, 1.0, 4
    trainer = Trainer(args)
    losses = [trainer.step(trainer.flow_batch(captions))[0] for _ in range(40)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_batches_hold_parts_of_many_videos_first_and_full_videos_later(captions: Captions) -> None:
    trainer = Trainer(training_arguments())
    x, index, data, sigma, text, bias = trainer.flow_batch(captions)
    assert x.shape == data.shape == (4, TOKENS // 4, 192)
    assert all(len(set(row)) == TOKENS // 4 for row in index.tolist())
    assert len(sigma) == len(text) == len(bias) == 4
    trainer.update = 4
    x, index, *_ = trainer.flow_batch(captions)
    assert x.shape == (1, TOKENS, 192)
    assert set(index[0].tolist()) == set(range(TOKENS))


def test_noise_levels_include_pure_noise_often_and_cover_the_range() -> None:
    drawn = draw_sigmas(4000, torch.Generator().manual_seed(0))
    assert drawn.min() >= 0
    assert 0.25 < (drawn == 1).float().mean() < 0.35
    for low, high in ((0.9, 1.0), (0.75, 0.9), (0.5, 0.75), (0.0, 0.5)):
        assert ((drawn > low) & (drawn < high)).float().mean() > 0.05


def test_student_uses_the_published_schedule() -> None:
    assert pytest.approx(shifted_schedule(4, 5.0)) == FEW_STEPS
    fine = fine_schedule(3)
    assert fine[::3] == pytest.approx(FEW_STEPS)
    assert list(fine) == sorted(fine, reverse=True)


def test_trajectory_file_contains_the_predictions_that_reproduce_it(
    captions: Captions, tmp_path: Path
) -> None:
    """Verifies that one Euler step with the stored prediction leads from each stored latent to the next."""
    torch.manual_seed(0)
    teacher = Network(dim=32, layers=1)
    write_trajectories(teacher, captions, tmp_path, count=1, substeps=2, seed=0)
    kept = load_file(tmp_path / "0000.safetensors")
    x, data = kept["x"].float(), kept["data"].float()
    assert x.shape[:2] == (64, 5)
    for i, (sigma, after) in enumerate(pairwise(FEW_STEPS)):
        stepped = x[:, i] + (after - sigma) * (x[:, i] - data[:, i]) / sigma
        torch.testing.assert_close(stepped, x[:, i + 1], rtol=2e-2, atol=5e-3)
    text, bias = captions.text(kept["caption"][:2])
    start = noise(16, torch.Generator().manual_seed(0))[:2]
    *_, last = teacher.trajectory(start, text, bias, fine_schedule(2))
    assert last.shape == x[:2, 4].shape

    student = Student(training_arguments())
    batch = student.teacher_batch(captions, kept)
    assert torch.isfinite(student.loss(*batch)).all()
    assert all(any(s == pytest.approx(level) for level in FEW_STEPS[:-1]) for s in batch[3].tolist())


@pytest.mark.parametrize("method", ["flow", "trajectory", "endpoint"])
def test_train_and_distill_commands_write_their_files(
    captions: Captions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Runs one update of the teacher, then one of a student that starts from its weights."""
    for name in ("train", "calibration"):
        torch.save(captions.__dict__, tmp_path / f"captions-{name}.pt")
    small = f"--captions {tmp_path} --dim 32 --layers 1 --batch 1 --updates 1 --eval-count 2 --no-compile"
    monkeypatch.setattr("sys.argv", f"train --out {tmp_path}/teacher {small}".split())
    train_main()
    weights = tmp_path / "teacher" / "ema.safetensors"
    more = f"--teacher {weights} --method {method} --trajectories {tmp_path}/kept --count 1 --substeps 1"
    monkeypatch.setattr("sys.argv", f"distill --out {tmp_path}/student {small} {more}".split())
    distill_main()
    row = json.loads((tmp_path / "student" / "curve.jsonl").read_text())
    assert row["update"] == 1
    assert row["calibration"].keys() >= {"shape", "all"}
    assert load_file(tmp_path / "student" / "ema.safetensors").keys() == load_file(weights).keys()


def test_existing_trajectory_files_are_kept(captions: Captions, tmp_path: Path) -> None:
    teacher = Network(dim=32, layers=1)
    write_trajectories(teacher, captions, tmp_path, count=1, substeps=1, seed=0)
    first = (tmp_path / "0000.safetensors").stat().st_mtime_ns
    write_trajectories(teacher, captions, tmp_path, count=1, substeps=1, seed=0)
    assert (tmp_path / "0000.safetensors").stat().st_mtime_ns == first


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 16), (2, 16, 4)])
def test_orthogonalised_updates_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    values = torch.linalg.svdvals(
        orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    )
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_muon_step_size_follows_the_learning_rate() -> None:
    weight = torch.nn.Parameter(torch.zeros(16, 16))
    weight.grad = 1e-6 * torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
    Muon([weight], lr=0.01, weight_decay=0.0).step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.002, rel=0.3)
