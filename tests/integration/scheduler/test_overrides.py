"""Verifies that a generation reports the fields of its request that reuse overrides or cannot honour."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import grpc.aio
import pytest
import pytest_asyncio
from chorus.common.v1 import errors_pb2, latents_pb2, plan_pb2
from chorus.embedder.v1 import embedder_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import from_rpc_error
from chorus_rpc.plan_bounds import DEFAULT_REGION

from tests.integration.scheduler.world import World, kinds

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.fault("seed-reuse")]

REGIONAL = pb.ExplicitReuse(reuse_steps=1, region_end=3)
BIAS = plan_pb2.Amplification(form=plan_pb2.AMPLIFICATION_FORM_BIAS, strength=1.0)
VALUE_GAIN = plan_pb2.Amplification(form=plan_pb2.AMPLIFICATION_FORM_VALUE_GAIN, strength=1.0)
BY_ATTENTION = plan_pb2.RegionPlan(
    source=plan_pb2.REGION_SOURCE_ATTENTION,
    context=plan_pb2.REGION_CONTEXT_NONE,
    threshold=0.3,
    budget=0.6,
)
LIMIT = 8  # tokens that the model reads


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with World(tmp_path_factory.mktemp("overrides")) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


def _contrast(*, end_step: int = 0, first_layer: int = 0) -> plan_pb2.Amplification:
    return plan_pb2.Amplification(
        form=plan_pb2.AMPLIFICATION_FORM_CONTRAST,
        strength=1,
        end_step=end_step,
        first_layer=first_layer,
    )


def _align(*, gained: Sequence[int] = (), lost: Sequence[int] = ()) -> embedder_pb2.Alignment:
    """Returns the alignment of prompts that differ in the tokens at these positions."""
    tokens = [
        [embedder_pb2.AlignedToken(index=index, weight=0.9) for index in positions]
        for positions in (gained, lost)
    ]
    return embedder_pb2.Alignment(gained=tokens[0], lost=tokens[1])


def hold_side_data(world: World) -> None:
    """Makes the cache return a donor with attention maps and token states."""
    world.cache.hold(0.9992, 1, 2, 3)
    world.cache.donors[0].entry.blobs.add().kind = latents_pb2.BLOB_KIND_SIDE_DATA


async def ended(world: World, **spec: object) -> pb.Generation:
    accepted = await world.submit(**spec)  # type: ignore[arg-type]
    await world.events(accepted)
    generation = await world.get(accepted)
    assert generation.state == pb.GENERATION_STATE_SUCCEEDED
    return generation


def ignored(generation: pb.Generation) -> dict[str, errors_pb2.JobError]:
    """Returns the warnings about ignored fields, by field."""
    return {
        warning.metadata["field"]: warning
        for warning in generation.warnings
        if warning.reason == errors.FIELD_IGNORED
    }


async def test_seed_that_a_donor_overrides_is_a_warning(world: World) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    world.cache.donors[0].entry.seed = 2
    found = await ended(world, seed=3, explicit_reuse=pb.ExplicitReuse(reuse_steps=3))
    warning = ignored(found)["spec.seed"]
    assert dict(warning.metadata) == {
        "field": "spec.seed",
        "seed": "3",
        "donor_seed": "2",
        "donor_entry_id": "e" * 64,
        "reuse_steps": "3",
        "total_steps": "4",
    }
    assert "3 has no effect: the video continues a donor of seed 2 after 3 of 4 steps" in warning.message
    assert found.donor.seed == 2
    events = await world.events(found)
    assert kinds(events).index("warning") > kinds(events).index("started")


async def test_seed_of_an_entry_without_one_is_reported_as_unknown(world: World) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    found = await ended(world, seed=3, explicit_reuse=pb.ExplicitReuse(reuse_steps=3))
    assert ignored(found)["spec.seed"].metadata["donor_seed"] == "unknown"


async def test_policy_never_overrides_a_stated_seed(world: World) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    world.cache.donors[0].entry.seed = 2
    found = await ended(world, seed=3)
    assert not found.HasField("donor")
    assert [r.code for r in found.plan.reasons] == [plan_pb2.PLAN_REASON_CODE_OTHER_SEED]
    assert (found.steps_run, list(found.warnings)) == (4, [])
    reused = await ended(world, seed=2)
    assert (reused.donor.seed, reused.steps_run) == (2, 1)


async def test_same_prompt_without_a_seed_gives_another_video(world: World) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    world.cache.donors[0].entry.prompt = "a red car"
    world.cache.donors[0].entry.seed = 2
    found = await ended(world)
    assert found.seed_chosen
    assert found.spec.seed != 2
    assert [r.code for r in found.plan.reasons] == [plan_pb2.PLAN_REASON_CODE_OTHER_SEED]


async def test_seed_that_nothing_overrides_is_no_warning(world: World) -> None:
    assert not (await ended(world, seed=3)).warnings  # a miss
    world.cache.hold(0.9992, 1, 2, 3)
    world.cache.donors[0].entry.seed = 3
    assert not (await ended(world, seed=3)).warnings  # the donor's own
    chosen = await ended(world)
    assert chosen.seed_chosen
    assert not chosen.warnings
    world.cache.donors[0].entry.seed = 4
    assert not (await ended(world, seed=3, reuse=plan_pb2.REUSE_POLICY_OFF)).warnings
    world.cache.hold(0.9, 4)
    renoised = pb.ExplicitReuse(reuse_steps=2, renoised=True)
    assert not (await ended(world, seed=3, explicit_reuse=renoised)).warnings
    world.cache.hold(0.9, 3)
    draft = pb.ExplicitReuse(reuse_steps=3, draft_step=3)
    assert not (await ended(world, seed=3, explicit_reuse=draft)).warnings


async def test_seed_that_the_server_chose_gives_way_to_the_donors(world: World) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    world.cache.donors[0].entry.seed = 12
    found = await ended(world)
    assert found.seed_chosen
    assert (found.spec.seed, found.plan.seed, world.denoiser.requests[-1].seed) == (12, 12, 12)
    stated = await ended(world, seed=3, explicit_reuse=pb.ExplicitReuse(reuse_steps=3))
    assert (stated.spec.seed, stated.plan.seed, world.denoiser.requests[-1].seed) == (3, 3, 3)
    world.cache.hold(0.9, 4)
    world.cache.donors[0].entry.seed = 12
    renoised = await ended(world, explicit_reuse=pb.ExplicitReuse(reuse_steps=2, renoised=True))
    assert renoised.spec.seed == world.denoiser.requests[-1].seed != 12  # it starts from noise of its own


async def test_donor_that_is_lost_leaves_the_seed_in_force(world: World) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    world.denoiser.degraded = True
    found = await ended(world, seed=3)
    assert found.warnings
    assert not ignored(found)


async def test_explicit_plan_that_no_donor_fits_is_a_warning(world: World) -> None:
    world.cache.hold(0.9992, 1, 2)
    found = await ended(world, explicit_reuse=pb.ExplicitReuse(reuse_steps=3))
    assert found.plan.reuse_steps == 0
    assert "latents after steps 3 to 3" in ignored(found)["spec.explicit_reuse"].message


async def test_amplification_without_a_gained_token_is_a_warning(world: World) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    world.embedder.alignment = embedder_pb2.Alignment()
    found = await ended(world, explicit_reuse=pb.ExplicitReuse(reuse_steps=1, amplification=BIAS))
    assert list(ignored(found)) == ["spec.explicit_reuse.amplification"]


async def test_region_by_attention_without_a_lost_token_is_a_warning(world: World) -> None:
    hold_side_data(world)
    own = pb.ExplicitReuse(reuse_steps=1, region_end=3, region=BY_ATTENTION)
    world.embedder.cannot_align = True
    found = await ended(world, explicit_reuse=own)
    assert "the prompts were not compared" in ignored(found)["spec.explicit_reuse.region"].message


@pytest.mark.parametrize("amplification", [BIAS, VALUE_GAIN])
@pytest.mark.parametrize(("gained", "reported"), [((LIMIT, LIMIT + 3), True), ((LIMIT - 1, LIMIT), False)])
async def test_amplification_of_tokens_that_the_model_drops_is_a_warning(
    world: World, amplification: plan_pb2.Amplification, gained: tuple[int, ...], reported: bool
) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    world.embedder.tokens = LIMIT + 4
    world.embedder.alignment = _align(gained=gained, lost=(0,))
    own = pb.ExplicitReuse(reuse_steps=1, amplification=amplification)
    found = ignored(await ended(world, explicit_reuse=own))
    field = "spec.explicit_reuse.amplification"
    assert (field in found) == reported
    if reported:
        assert f"beyond the first {LIMIT}, which the model reads" in found[field].message


@pytest.mark.parametrize(("lost", "reported"), [((LIMIT,), True), ((LIMIT - 1, LIMIT), False)])
async def test_region_of_tokens_beyond_the_maps_is_a_warning(
    world: World, lost: tuple[int, ...], reported: bool
) -> None:
    hold_side_data(world)
    world.embedder.alignment = _align(gained=(0,), lost=lost)
    own = pb.ExplicitReuse(reuse_steps=1, region_end=3, region=BY_ATTENTION)
    found = ignored(await ended(world, explicit_reuse=own))
    field = "spec.explicit_reuse.region"
    assert (field in found) == reported
    if reported:
        assert f"beyond the first {LIMIT}, which the model reads" in found[field].message


@pytest.mark.parametrize(
    ("donor_prompt", "reported"), [("a red car", True), ("a blue car", False), ("", False)]
)
async def test_contrast_with_an_equal_prompt_is_a_warning(
    world: World, donor_prompt: str, reported: bool
) -> None:
    """Verifies also that a donor whose prompt is not stored gives no warning: it may differ."""
    hold_side_data(world)
    world.cache.donors[0].entry.prompt = donor_prompt
    own = pb.ExplicitReuse(reuse_steps=1, amplification=_contrast())
    found = ignored(await ended(world, explicit_reuse=own))
    assert list(found) == (["spec.explicit_reuse.amplification"] if reported else [])
    if reported:
        assert "the donor's prompt is the same" in found["spec.explicit_reuse.amplification"].message


@pytest.mark.parametrize("form", [BIAS.form, _contrast().form])
async def test_amplification_of_strength_0_is_no_warning(
    world: World, form: plan_pb2.AmplificationForm.ValueType
) -> None:
    """Verifies it with an equal prompt: a request for no amplification is honoured."""
    hold_side_data(world)
    world.cache.donors[0].entry.prompt = "a red car"
    own = pb.ExplicitReuse(reuse_steps=1, amplification=plan_pb2.Amplification(form=form))
    assert not ignored(await ended(world, explicit_reuse=own))


@pytest.mark.parametrize("declined", [True, False])
async def test_region_above_its_budget_is_a_warning(world: World, declined: bool) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    world.denoiser.active_tokens = b"" if declined else b"\x01"
    found = ignored(await ended(world, explicit_reuse=REGIONAL))
    assert list(found) == (["spec.explicit_reuse.region_end"] if declined else [])
    if declined:
        assert "exceeds its budget of 0.6" in found["spec.explicit_reuse.region_end"].message


@pytest.mark.parametrize(
    ("own", "field"),
    [
        (pb.ExplicitReuse(reuse_steps=1, region=DEFAULT_REGION), "region"),
        (
            pb.ExplicitReuse(reuse_steps=2, amplification=_contrast(end_step=2)),
            "amplification.end_step",
        ),
        (
            pb.ExplicitReuse(reuse_steps=1, amplification=_contrast(first_layer=6)),
            "amplification.first_layer",
        ),
    ],
)
async def test_parameter_that_can_have_no_effect_is_refused(
    world: World, own: pb.ExplicitReuse, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.submit(explicit_reuse=own)
    error = from_rpc_error(caught.value, "scheduler")
    assert error.reason == errors.INVALID_FIELD
    assert [violation.field for violation in error.violations] == [f"spec.explicit_reuse.{field}"]
