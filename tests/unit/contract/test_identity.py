"""Verifies the identity of latents and the ids of cache entries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from chorus.common.v1 import latents_pb2

from services.contract import identity

HOST = latents_pb2.Adapter(adapter_id="h", digest="0" * 64, scale=1.0)


def make_identity() -> latents_pb2.LatentIdentity:
    return latents_pb2.LatentIdentity(
        model_id="m",
        weights_digest="ab",
        adapters=[latents_pb2.Adapter(adapter_id="l", digest="cd", scale=0.5)],
        schedule=latents_pb2.Schedule(sigmas=[1.0, 0.5, 0.0]),
        latent_shape=[24, 4, 16, 16],
        latent_dtype=latents_pb2.D_TYPE_FLOAT32,
        codec_id="c",
        conditioning_encoder_id="e",
        model_digest="ef",
        approximation=latents_pb2.Approximation(policy="safe", max_reuse_steps=2, host_adapter=HOST),
    )


@pytest.mark.fault("identity")
@pytest.mark.parametrize("field", [field.name for field in latents_pb2.LatentIdentity.DESCRIPTOR.fields])
def test_every_field_changes_the_digest(field: str) -> None:
    other = make_identity()
    other.ClearField(field)  # type: ignore[arg-type]  # the names are those of the descriptor
    assert identity.identity_digest(other) != identity.identity_digest(make_identity())


@pytest.mark.fault("identity")
@pytest.mark.parametrize("field", [field.name for field in latents_pb2.Adapter.DESCRIPTOR.fields])
def test_every_field_of_an_adapter_changes_the_digest(field: str) -> None:
    other = make_identity()
    other.adapters[0].ClearField(field)  # type: ignore[arg-type]
    assert identity.identity_digest(other) != identity.identity_digest(make_identity())


@pytest.mark.parametrize("field", [field.name for field in latents_pb2.Approximation.DESCRIPTOR.fields])
def test_every_field_of_an_approximation_changes_the_digest(field: str) -> None:
    other = make_identity()
    other.approximation.ClearField(field)  # type: ignore[arg-type]
    assert identity.identity_digest(other) != identity.identity_digest(make_identity())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"policy": "off"}, "policy must be one of safe, balanced, fast, not 'off'"),
        ({"max_reuse_steps": 201}, "max_reuse_steps must be 0 to 200, not 201"),
        ({"host_adapter": latents_pb2.Adapter(adapter_id="h" * 999)}, "host_adapter.adapter_id"),
        ({"host_adapter": latents_pb2.Adapter(digest="x")}, "host_adapter.digest"),
        ({"host_adapter": latents_pb2.Adapter(scale=float("nan"))}, "host_adapter.scale"),
    ],
)
def test_fault_of_an_approximation_is_named(changed: dict[str, Any], named: str) -> None:
    approximation = make_identity().approximation
    assert identity.find_approximation_fault(approximation) is None
    approximation.MergeFrom(latents_pb2.Approximation(**changed))
    assert named in (identity.find_approximation_fault(approximation) or "")


def test_latents_of_full_computations_keep_the_digest_of_earlier_versions() -> None:
    full = make_identity()
    full.ClearField("approximation")
    assert (
        identity.identity_digest(full) == "8b5ee7ff31802bbe918cfeebaae4dce9e179a19c6ebaf18ccbbf1dc0088c7cc8"
    )
    approximated = identity.approximate(full, make_identity().approximation)
    assert approximated == make_identity()
    assert not full.HasField("approximation")


def test_nested_fields_change_the_digest() -> None:
    digests = {identity.identity_digest(make_identity())}
    changes: tuple[Callable[[latents_pb2.LatentIdentity], object], ...] = (
        lambda i: setattr(i.adapters[0], "scale", 0.25),
        lambda i: i.schedule.sigmas.__setitem__(1, 0.6),
        lambda i: i.latent_shape.__setitem__(1, 5),
        lambda i: i.adapters.pop(),
    )
    for change in changes:
        other = make_identity()
        change(other)
        digests.add(identity.identity_digest(other))
    assert len(digests) == 5
    assert identity.identity_digest(make_identity()) in digests


def test_latent_shape_follows_the_codec() -> None:
    wan = partial(identity.latent_shape, channels=16, temporal_factor=4, spatial_factor=8, causal=True)
    assert wan(frames=81, height=480, width=832) == (16, 21, 60, 104)
    s2d = partial(identity.latent_shape, channels=24, temporal_factor=2, spatial_factor=2, causal=False)
    assert s2d(frames=8, height=32, width=32) == (24, 4, 16, 16)


def test_entry_ids_differ_by_tenant_prompt_and_seed() -> None:
    ids = {identity.entry_id(t, "i", p, s) for t in ("a", "b") for p in ("x", "y") for s in (0, 1)}
    assert len(ids) == 8
