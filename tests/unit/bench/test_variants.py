"""Verifies the parts of `bench.alternatives`: paired interval, mixed amplification, the region's edge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from chorus.common.v1 import plan_pb2
from hypothesis import given
from hypothesis import strategies as st

from bench import results
from bench.alternatives import BLOCK, build_variants, choose_best, split_halves
from bench.in_process import Harness, Pair, Trial
from bench.results import Figure
from bench.variants import Alternative, Term, Where, edge_jump, limit_change, mixed
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.reuse.amplification import amplify_text
from services.scheduler.planning.calibration import Depth
from services.scheduler.planning.edits import Edit
from tests.tiny_model import TEXT_DIM, save_host_adapter, save_tiny_model

CONTRAST: Final = plan_pb2.AMPLIFICATION_FORM_CONTRAST
BIAS: Final = plan_pb2.AMPLIFICATION_FORM_BIAS
VALUE_GAIN: Final = plan_pb2.AMPLIFICATION_FORM_VALUE_GAIN
GAINED: Final = [(1, 1.0)]


def test_paired_interval_matches_a_published_value() -> None:
    both, first, second = [(True, True)] * 36, [(True, False)] * 12, [(False, True)] * 2
    found = results.paired(both + first + second)
    assert found.value == pytest.approx(20)
    assert found.ci95 == pytest.approx((5.69, 34.04), abs=0.01)  # published in Newcombe (1998)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_interval_contains_the_difference_and_is_antisymmetric(pairs: list[tuple[bool, bool]]) -> None:
    there, back = results.paired(pairs), results.paired([(b, a) for a, b in pairs])
    assert there.ci95 is not None
    assert back.ci95 is not None
    assert -100 - 1e-9 <= there.ci95[0] <= there.value <= there.ci95[1] <= 100 + 1e-9
    assert there.ci95[0] < there.ci95[1]
    assert back.ci95 == pytest.approx((-there.ci95[1], -there.ci95[0]), abs=1e-9)


def test_halves_contain_every_kind_and_number_of_objects_equally() -> None:
    trials = [Trial(str(number % BLOCK), "", {}) for number in range(4 * BLOCK)]
    parts = split_halves(trials)
    assert [t.kind for t in parts["choose"]] == [t.kind for t in parts["report"]]
    assert not any(one is other for one in parts["choose"] for other in parts["report"])
    assert parts["all"] == trials


def test_best_variant_is_chosen_on_the_first_half_only() -> None:
    values = {
        "a": {"choose": (1.0, 0.0, 0.0), "report": (9.0, 0.0, 0.0)},
        "b": {"choose": (2.0, 3.0, 0.0), "report": (0.0, 0.0, 0.0)},
        "c": {"choose": (2.0, 1.0, 0.5), "report": (0.0, 0.0, 0.0)},
        "d": {"choose": (2.0, 1.0, 0.2), "report": (0.0, 0.0, 0.0)},
    }
    gains = {
        f"table.{name}.{half}.all.{of}": Figure(value, "", 1)
        for name, parts in values.items()
        for half, three in parts.items()
        for of, value in zip(("alignment", "drift", "computed"), three, strict=True)
    }
    assert choose_best(list(values), "table", gains) == "d"


def test_variant_names_are_unique() -> None:
    seen: dict[str, object] = {}
    for names in build_variants().values():
        for name, variant in names.items():
            assert seen.setdefault(name, variant) == variant


def test_last_strength_of_a_term_applies_to_later_steps() -> None:
    assert [Term(CONTRAST, (1.0, 0.5)).strength(step) for step in range(4)] == [1.0, 0.5, 0.5, 0.5]


def test_single_term_equals_the_plans_amplification_and_two_are_combined(tmp_path: Path) -> None:
    model = LoadedModel.load(save_tiny_model(tmp_path, layers=3))
    text, donor = (
        model.prepare_text(torch.randn(5, TEXT_DIM, generator=torch.Generator().manual_seed(s)))
        for s in (1, 2)
    )
    for form in (CONTRAST, BIAS, VALUE_GAIN):
        alone = plan_pb2.Amplification(form=form, strength=0.5)
        expected = amplify_text(text, alone, gained=GAINED, donor=donor)
        found = mixed(text, [Term(form, (0.5,))], 0, gained=GAINED, donor=donor)
        for (k, v), (k2, v2) in zip(found.kv, expected.kv, strict=True):
            assert torch.equal(k, k2)
            assert torch.equal(v, v2)
        for one, other in zip(found.layers or (), expected.layers or (), strict=True):
            assert one is not None
            assert other is not None
            assert one.strength == other.strength
            assert one.other is other.other
            assert (one.bias is None) == (other.bias is None)
            if one.bias is not None and other.bias is not None:
                assert torch.equal(one.bias, other.bias)
        off = mixed(text, [Term(form, (0.5, 0.0))], 1, gained=GAINED, donor=donor)
        assert off.layers is None
        assert all(torch.equal(v, v2) for (_, v), (_, v2) in zip(off.kv, text, strict=True))
    terms = [Term(CONTRAST, (0.5,), (0.5, 1.0)), Term(BIAS, (1.0,)), Term(VALUE_GAIN, (1.0,), (0.0, 1 / 3))]
    both = mixed(text, terms, 0, gained=GAINED, donor=donor)
    assert both.layers is not None
    assert [layer.other is not None for layer in both.layers if layer] == [False, False, True]
    assert all(layer is not None and layer.bias is not None for layer in both.layers)
    assert [torch.equal(v, v2) for (_, v), (_, v2) in zip(both.kv, text, strict=True)] == [False, True, True]


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Harness, Pair]:
    return make_harness(LoadedModel.load(save_tiny_model(tmp_path, layers=3)))


def make_harness(model: LoadedModel) -> tuple[Harness, Pair]:
    harness = Harness.__new__(Harness)  # without the shipped model and the encoder
    harness.set_model(model)
    harness.shape = harness.model.latent_shape(4, 32, 32)
    harness.grid = harness.model.token_grid(harness.shape)
    donor, own = (
        harness.run_full(torch.randn(5, TEXT_DIM, generator=torch.Generator().manual_seed(s)).numpy(), s)
        for s in (1, 2)
    )
    return harness, Pair(Edit("colour", ((1, 1.0),), ((2, 1.0),)), donor, own, np.zeros((5, 1), np.float32))


def region(threshold: float) -> plan_pb2.RegionPlan:
    return plan_pb2.RegionPlan(
        source=plan_pb2.REGION_SOURCE_PROBE,
        threshold=threshold,
        budget=1.0,
        context=plan_pb2.REGION_CONTEXT_NONE,
    )


def test_alternative_without_changes_equals_the_plan(tiny: tuple[Harness, Pair]) -> None:
    harness, pair = tiny
    assert pair.own.text is not None
    half = plan_pb2.Amplification(form=CONTRAST, strength=0.5)
    sigma, some = harness.sigmas[1], region(0.5)
    plan = harness.build_plan(Depth(sigma, some, half), pair.edit)
    assert plan is not None
    expected, computed = harness.run_plan(
        plan, pair.own.text, harness.model.noise(0, harness.shape), pair.donor
    )
    for same in (
        Alternative(Depth(sigma, some, half), seams=True),
        Alternative(Depth(sigma, some), terms=(Term(CONTRAST, (0.5,)),)),
        Alternative(Depth(sigma, some), terms=(Term(CONTRAST, (0.5,)),), ceiling=1e6),
    ):
        output = same.generate(harness, pair)
        assert torch.allclose(output.latents, expected, atol=1e-6)
        assert output.computed == computed


def test_reuse_runs_on_the_host_adapter_unless_it_is_dropped(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, layers=3)
    save_host_adapter(path)
    hosted = LoadedModel.load(path)
    assert hosted.host is not None
    outputs, full = [], []
    for model in (hosted, replace(hosted, host=None), hosted.host):
        harness, pair = make_harness(model)
        output = Alternative(Depth(harness.sigmas[1])).generate(harness, pair)
        outputs.append(output.latents)
        full.append(pair.own.steps[len(harness.sigmas) - 1])
    assert torch.equal(full[0], full[1])
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-2)
    harness, pair = make_harness(hosted)
    assert pair.own.text is not None
    plan = harness.build_plan(Depth(harness.sigmas[1]), pair.edit)
    assert plan is not None
    again, _ = harness.run_plan(plan, pair.own.text, harness.model.noise(0, harness.shape), pair.donor)
    assert torch.allclose(again, outputs[0], atol=1e-6)
    expected = hosted.host.prepare_text(torch.randn(5, TEXT_DIM, generator=torch.Generator().manual_seed(2)))
    assert torch.equal(pair.own.text[0][0], expected[0][0])


def test_hard_edge_keeps_the_targets_latents_up_to_the_edge(tiny: tuple[Harness, Pair]) -> None:
    harness, pair = tiny
    lost = region(0.9)
    lost.source = plan_pb2.REGION_SOURCE_ATTENTION
    depth = Depth(harness.sigmas[-2], lost)  # the last step only
    blended, hard = (
        Alternative(depth, blended=blended, seams=True).generate(harness, pair) for blended in (True, False)
    )
    assert blended.measurements.keys() == hard.measurements.keys() == {"jump", "edge_error"}
    ends, own, soft = (
        harness.model.to_tokens(x)
        for x in (pair.donor.steps[len(harness.sigmas) - 1], hard.latents, blended.latents)
    )
    inside = (own != ends).any(-1)
    assert 0 < inside.sum() < len(inside)
    assert torch.equal(soft[~inside], ends[~inside])
    assert ((soft - ends).abs() <= (own - ends).abs() + 1e-6).all()


@pytest.mark.parametrize("where", ["oracle", "oracle, own noise", "words", "gained", "probe and lost"])
def test_region_contains_every_token_if_all_differ(tiny: tuple[Harness, Pair], where: Where) -> None:
    harness, pair = tiny
    full = Alternative(Depth(harness.sigmas[1])).generate(harness, pair)
    found = Alternative(Depth(harness.sigmas[1], region(0.0)), where).generate(harness, pair)
    assert torch.allclose(found.latents, full.latents, atol=1e-6)


def test_ceiling_limits_only_larger_changes() -> None:
    change = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    of = torch.tensor([[0.0, 2.0], [0.0, 2.0], [1.0, 0.0]])
    found = limit_change(change, of, 0.5)
    assert torch.allclose(found, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_edge_jump_compares_neighbouring_pixels() -> None:
    video = torch.zeros(3, 2, 8, 8)
    video[:, :, :4, :4] = 1.0  # as large as one token
    video[:, :, 6, 6] = 5.0  # far from the edge
    grid = (1, 2, 2)
    assert edge_jump(video, torch.tensor([True, False, False, False]), grid) == pytest.approx(1.0)
    assert edge_jump(video, torch.tensor([True, True, False, False]), grid) == pytest.approx(0.5)
