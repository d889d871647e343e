"""Tests that training is seeded, resumable and learns, and that rows have the right starts and targets."""

import argparse
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.shapes.distill import SCHEDULES, Student
from models.shapes.donors import Donors, donor_noise, load_donors, make_donors, write_donors
from models.shapes.edit_rows import DonorRows, RenderedRows
from models.shapes.edits import opens
from models.shapes.host import Host, adapted_layers, add_adapter
from models.shapes.layout import draw_layout
from models.shapes.muon import Muon, orthogonalise
from models.shapes.network import FEW_STEPS, Network, encode, model_config, subdivide, to_tokens
from models.shapes.pairs import Pairs, draw_pairs
from models.shapes.prompts import Prompts, drop_text, no_text
from models.shapes.render import render
from models.shapes.train import Teacher, draw_sigmas
from models.shapes.training import start_from
from models.shapes.trajectories import Trajectories, TrajectoryStudent
from models.shapes.world import Scene, draw_scenes, scene_table
from services.contract.schedule import shifted_schedule


def training_arguments(**changes: object) -> argparse.Namespace:
    values = {
        "seed": 0, "device": "cpu", "batch": 2, "updates": 8, "compile": False, "bf16": False, "lr": 2e-3,
        "muon_lr": 3e-3, "warm_up": 1, "decay": 0.4, "ema": 0.9, "blur": 0.3, "save_every": 4,
        "substeps": 2, "own_from": 0.0, "parts": 1, "no_text": 0.1, "pure_noise": 0.15, "contents": 0.1,
        "guidance": 1.0, "rank": 2, "edit_share": 0.5, "rendered": 0.5, "targets": "renders",
    }  # fmt: skip
    return argparse.Namespace(**(values | changes))


def small_network(side: int = 64, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(side, model_config(32, 1, 1))


def fake_prompts(scenes: list[Scene]) -> Prompts:
    """Builds prompts with random token states."""
    lengths = [4 + i % 3 for i in range(len(scenes))]
    states = torch.randn(sum(lengths), 384, generator=torch.Generator().manual_seed(0)).half()
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Prompts(["a caption"] * len(scenes), scene_table(scenes), states, offsets)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return fake_prompts(draw_scenes("train", 6, 0))


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    scenes = draw_pairs("train", 8, 0)
    donors, targets = (fake_prompts([pair[i] for pair in scenes]) for i in (0, 1))
    return Pairs(donors, targets, torch.tensor([opens(d, t) for d, t in scenes]))


@pytest.fixture(scope="module")
def donors(pairs: Pairs) -> Donors:
    chosen = torch.tensor([0, 2, 5])
    return Donors(chosen, draw_layout(pairs.targets.table[chosen], torch.Generator().manual_seed(0)))


def train(teacher: Teacher, updates: int) -> dict[str, torch.Tensor]:
    for _ in range(updates):
        teacher.step(teacher.batch())
    return {k: v.clone() for k, v in (teacher.network.state_dict() | teacher.ema).items()}


def test_resumed_run_equals_an_uninterrupted_one(prompts: Prompts, tmp_path: Path) -> None:
    args = training_arguments()
    uninterrupted = train(Teacher(args, small_network(16), prompts), 6)
    first = Teacher(args, small_network(16), prompts)
    train(first, 3)
    first.save(tmp_path)
    second = Teacher(args, small_network(16, seed=5), prompts)
    second.load(tmp_path)
    assert second.update == 3
    resumed = train(second, 3)
    assert all(torch.equal(uninterrupted[k], resumed[k]) for k in uninterrupted)


def test_other_seed_gives_other_weights(prompts: Prompts) -> None:
    one, other = (train(Teacher(training_arguments(seed=s), small_network(16), prompts), 1) for s in (0, 1))
    assert not torch.equal(one["proj_out.weight"], other["proj_out.weight"])


def test_loss_decreases(prompts: Prompts) -> None:
    teacher = Teacher(training_arguments(updates=80, batch=8), small_network(16), prompts)
    losses = [float(teacher.step(teacher.batch())[0].mean()) for _ in range(40)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_parts_of_videos_have_the_positions_of_their_tokens(prompts: Prompts) -> None:
    teacher = Teacher(training_arguments(parts=4), small_network(32), prompts)
    batch = teacher.batch()
    sigma, text, bias = batch.sigma, batch.text, batch.bias
    assert batch.x.shape == batch.target.shape == (2, 64, 192)
    assert batch.index is not None
    assert all(len(set(row)) == 64 for row in batch.index.tolist())
    whole = torch.arange(256).expand(2, -1)
    inputs = torch.randn(2, 256, 192)
    network = teacher.network
    all_tokens, _ = network(inputs, sigma, text, bias)
    assert torch.allclose(all_tokens, network(inputs, sigma, text, bias, whole)[0], atol=1e-5)


def test_run_writes_curve_and_averaged_weights(prompts: Prompts, tmp_path: Path) -> None:
    teacher = Teacher(training_arguments(), small_network(16), prompts)
    teacher.run(tmp_path, teacher.batch)
    rows = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert rows[-1]["update"] == 8
    weights = load_file(tmp_path / "ema.safetensors")
    assert set(weights) == set(teacher.network.transformer.state_dict())


def test_weights_of_small_videos_serve_larger_ones(prompts: Prompts, tmp_path: Path) -> None:
    teacher = Teacher(training_arguments(), small_network(16), prompts)
    teacher.save(tmp_path)
    full = small_network(64)
    start_from(full, tmp_path / "ema.safetensors", 16 / 64)
    small = load_file(tmp_path / "ema.safetensors")["proj_out.weight"]
    assert torch.allclose(full.transformer.proj_out.weight, small / 4)


def test_small_network_has_the_angles_of_the_same_places() -> None:
    full, small = small_network(64), small_network(16)
    kept = full.cos.view(4, 16, 16, -1)[:, ::4, ::4].flatten(0, 2)
    assert torch.equal(small.cos, kept)
    assert small.positions.shape[0] == 64


def test_noise_levels_include_pure_noise() -> None:
    sigmas = draw_sigmas(4000, torch.Generator().manual_seed(0), 0.15)
    assert float((sigmas == 1).float().mean()) == pytest.approx(0.15, abs=0.02)
    assert float(sigmas.min()) >= 0


def test_segments_divide_the_shifted_schedule() -> None:
    whole = [s for a, b in pairwise(FEW_STEPS) for s in subdivide(a, b, 3)[:-1]]
    assert [*whole, 0.0] == pytest.approx(shifted_schedule(12, 5.0))


@pytest.mark.parametrize("steps", SCHEDULES)
def test_student_learns_the_levels_of_its_schedule(steps: int, prompts: Prompts) -> None:
    args, schedule = training_arguments(substeps=steps), SCHEDULES[steps]
    student = Student(args, small_network(), small_network(), prompts, schedule)
    seen = set()
    for _ in range(6):
        batch = student.batch()
        assert batch.x.shape == batch.target.shape == (2, 1024, 192)
        assert batch.text.shape == (2, 48, 384)
        assert batch.bias.shape == (2, 48)
        seen.add(round(float(batch.sigma[0]), 4))
    assert seen <= {round(s, 4) for s in schedule[:-1]}
    assert steps == 1 or len(seen) > 1


@pytest.mark.parametrize("steps", SCHEDULES)
def test_student_of_stored_trajectories_learns_where_the_teacher_goes(steps: int, prompts: Prompts) -> None:
    args, schedule = training_arguments(substeps=1, own_from=1.0), SCHEDULES[steps]
    teacher = small_network()
    rows = Trajectories(teacher, prompts, 5, args)
    assert rows.latents.shape == (5, 5, 48, 4, 32, 32)
    assert torch.allclose(rows.latents[:, 1:].float(), _walk(teacher, rows, prompts), atol=5e-3)
    student = TrajectoryStudent(args, small_network(seed=1), rows, prompts, schedule)
    for student.update in range(6):
        batch = student.batch()
        level = next(i for i, s in enumerate(schedule) if s == pytest.approx(float(batch.sigma[0])))
        start, end = schedule[level : level + 2]
        reached = batch.x + (end - start) * (batch.x - batch.target) / start
        ends = to_tokens(rows.latents[:, FEW_STEPS.index(end)].float())
        assert all(any(torch.allclose(x, stored, atol=5e-3) for stored in ends) for x in reached)


def _walk(teacher: Network, rows: Trajectories, prompts: Prompts) -> torch.Tensor:
    text, bias = prompts.text(rows.pick)
    steps = list(teacher.trajectory(rows.latents[:, 0].float(), text, bias, FEW_STEPS))
    return torch.stack(steps, 1)


def test_one_teacher_step_is_its_prediction(prompts: Prompts) -> None:
    network, teacher = small_network(), small_network()
    student = Student(training_arguments(substeps=1), network, teacher, prompts, FEW_STEPS)
    text, bias = prompts.text(torch.arange(2))
    x = torch.randn(2, 48, 4, 32, 32)
    target = student.teach(x, text, bias, 1)
    *_, moved = teacher.trajectory(x, text, bias, FEW_STEPS, 1, 2)
    a, b = FEW_STEPS[1:3]
    assert torch.allclose(target, x - a * (moved - x) / (b - a), atol=1e-5)


def test_guidance_moves_steps_away_from_those_without_a_prompt(prompts: Prompts) -> None:
    teacher = small_network()
    text, bias = prompts.text(torch.arange(2))
    x = torch.randn(2, 48, 4, 32, 32)

    def step(text: torch.Tensor, bias: torch.Tensor, guidance: float) -> torch.Tensor:
        *_, moved = teacher.trajectory(x, text, bias, FEW_STEPS, 1, 2, guidance)
        return moved

    with_text, without = step(text, bias, 1.0), step(*no_text(text, bias), 1.0)
    assert not torch.allclose(with_text, without, atol=1e-4)
    assert torch.allclose(step(text, bias, 3.0), without + 3 * (with_text - without), atol=1e-4)


def test_a_share_of_the_samples_has_no_text(prompts: Prompts) -> None:
    text, bias = prompts.text(torch.arange(6).repeat(100))
    dropped, dropped_bias = drop_text(text, bias, 0.3, torch.Generator().manual_seed(0))
    none = (dropped == 0).all(2).all(1)
    assert float(none.float().mean()) == pytest.approx(0.3, abs=0.06)
    assert torch.equal(dropped[~none], text[~none])
    assert (dropped_bias[none] == 0).sum(1).eq(1).all()


def test_adapter_without_training_has_no_effect(prompts: Prompts) -> None:
    plain, adapted = small_network(), small_network()
    names = add_adapter(adapted, 2)
    assert len(names) == 2 * len(list(adapted_layers(plain)))
    x, sigma = torch.randn(1, 1024, 192), torch.tensor([0.8])
    text, bias = prompts.text(torch.arange(1))
    assert torch.allclose(plain(x, sigma, text, bias)[0], adapted(x, sigma, text, bias)[0], atol=1e-6)


def test_host_trains_only_adapter(prompts: Prompts, pairs: Pairs, donors: Donors, tmp_path: Path) -> None:
    network, student = small_network(), small_network()
    host = Host(
        training_arguments(batch=4), network, student, prompts, pairs, donors, add_adapter(network, 2)
    )
    before = {k: p.clone() for k, p in network.transformer.named_parameters()}
    host.step(host.batch())
    changed = {k for k, p in network.transformer.named_parameters() if not torch.equal(p, before[k])}
    assert changed
    assert all("lora_" in k for k in changed)
    host.save(tmp_path)
    tensors = load_file(tmp_path / "adapter.safetensors")
    assert tensors["transformer.blocks.0.attn1.to_q.lora_A.weight"].shape == (2, 32)
    assert tensors["transformer.blocks.0.ffn.net.0.proj.lora_B.weight"].shape == (128, 2)


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("targets", ["renders", "reruns"])
def test_edit_rows_start_from_the_students_own_donors(
    pairs: Pairs, donors: Donors, targets: str, level: int
) -> None:
    student = small_network()
    rows = DonorRows(student, pairs, donors, targets, bf16=False)
    x, sigma, text, bias, target = rows.draw(3, level, torch.Generator().manual_seed(0))
    assert sigma.tolist() == pytest.approx(3 * [FEW_STEPS[level]])
    starts = {}
    for i in donors.pair.tolist():
        own, own_bias = pairs.donors.text(torch.tensor([i]), 48)
        *_, latents = student.trajectory(donor_noise([i]), own, own_bias, FEW_STEPS, 0, level)
        starts[i] = to_tokens(latents)[0]
    for row in x:
        assert any(torch.allclose(row, start, atol=5e-3) for start in starts.values())
    assert target.shape == (3, 1024, 192)
    assert len(text) == len(bias) == 3


def test_rendered_rows_lead_from_one_scene_to_the_other_in_the_same_layout(pairs: Pairs) -> None:
    rows = RenderedRows(pairs)
    assert len(rows) == int((~pairs.opening).sum())
    x, sigma, _, _, target = rows.draw(4, 3, torch.Generator().manual_seed(0))
    assert sigma.tolist() == pytest.approx(4 * [FEW_STEPS[3]])
    assert x.shape == target.shape == (4, 1024, 192)
    assert not torch.allclose(x, target)


def test_donors_that_do_not_show_their_prompt_are_left_out(pairs: Pairs) -> None:
    donors = make_donors(small_network(), pairs, [0, 1])  # an untrained network shows no prompt
    assert len(donors) == 0
    assert donors.layout.middle.shape == (0, 2, 2)


def test_donors_that_show_their_prompt_keep_their_layout(pairs: Pairs) -> None:
    layout = draw_layout(pairs.donors.table, torch.Generator().manual_seed(1))
    videos = render(pairs.donors.table, layout)

    class Renderer(Network):
        def trajectory(self, *_: object, **__: object) -> Iterator[torch.Tensor]:
            yield encode(videos)

    donors = make_donors(Renderer(config=model_config(32, 1, 1)), pairs, range(len(pairs)))
    same = pairs.donors.table[donors.pair, 1] == pairs.targets.table[donors.pair, 1]  # the texture
    assert len(donors) >= len(pairs) // 2
    assert same.any()
    phases = donors.layout.phase[same] - layout.phase[donors.pair[same]]
    assert ((phases - phases.round()).abs() < 0.1).float().mean() > 0.5


def test_donors_of_another_kind_of_device_are_refused(pairs: Pairs, tmp_path: Path) -> None:
    write_donors(small_network(), pairs, tmp_path, "cpu")
    assert len(load_donors(tmp_path)) == 0
    with pytest.raises(ValueError, match="made on cpu, not meta"):
        load_donors(tmp_path, "meta")


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(2, 16, 48)))
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.4


def test_muon_minimises_a_quadratic() -> None:
    weight = torch.nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    optimiser = Muon([weight], lr=0.05, weight_decay=0.0)
    first = float(weight.detach().square().sum())
    for _ in range(200):
        optimiser.zero_grad()
        weight.square().sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert float(weight.detach().square().sum()) < 0.1 * first
