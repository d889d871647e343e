"""Verifies which requests the cache accepts, and which field a rejection names."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterator

import pytest
from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import latents_pb2
from chorus_rpc.errors import INVALID_FIELD, ChorusError
from google.protobuf import duration_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.cache.entries import Admission, Space
from services.cache.filters import make_filter
from services.cache.index import Selection
from services.cache.settings import CacheSettings
from services.cache.upload import Upload
from services.cache.validation import Limits, check_fetch, check_lookup, check_purge
from services.runtime.settings import load_settings
from tests.contract.samples import SHAPE, admission, digest, fetch, header, latents, lookup, new_entry, unit

LIMITS = Limits(prompt=200, blob=4096, entry=8192)
BLOBS = {1: latents(1), 2: latents(2), 3: latents(3)}


def refused(fields: str | set[str], call: Callable[[], object]) -> ChorusError:
    with pytest.raises(ChorusError) as failed:
        call()
    assert failed.value.reason == INVALID_FIELD
    assert {violation.field for violation in failed.value.violations} == (
        {fields} if isinstance(fields, str) else fields
    )
    assert all(violation.description for violation in failed.value.violations)
    return failed.value


def uploaded(messages: Iterator[cache_pb2.AdmitRequest] | list[cache_pb2.AdmitRequest]) -> Admission:
    upload = Upload("default", LIMITS)
    for message in messages:
        upload.add(message)
    return upload.finish(1)


def test_valid_lookup_yields_its_space() -> None:
    assert check_lookup(lookup()) == Space("minilm", 16)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("limit", {"limit": 0}),
        ("limit", {"limit": 17}),
        ("min_score", {"min_score": 1.01}),
        ("min_score", {"min_score": math.nan}),
        ("retrieval_encoder_id", {"retrieval_encoder_id": ""}),
        ("retrieval_encoder_id", {"retrieval_encoder_id": "a\nb"}),
        ("retrieval_encoder_id", {"retrieval_encoder_id": "x" * 513}),
    ],
)
def test_lookup_outside_its_bounds_is_rejected(field: str, change: dict[str, object]) -> None:
    request = lookup()
    for name, value in change.items():
        setattr(request, name, value)
    refused(field, lambda: check_lookup(request))


@pytest.mark.parametrize(
    ("vector", "word"),
    [
        ([], "1 to 4096"),
        ([0.0] * 4096 + [1.0], "1 to 4096"),
        ([0.5, 0.5], "norm"),
        ([0.0], "norm"),
        ([math.nan, 1.0], "finite"),
        ([math.inf], "finite"),
        ([1e38, 1e38], "norm"),
    ],
)
def test_vector_outside_its_bounds_is_rejected(vector: list[float], word: str) -> None:
    request = lookup()
    request.vector[:] = vector
    assert word in refused("vector", lambda: check_lookup(request)).message


@pytest.mark.parametrize("dimension", [1, 384, 4096])
def test_unit_vector_in_single_precision_is_accepted(dimension: int) -> None:
    request = lookup()
    request.vector[:] = unit(3, dimension)
    assert check_lookup(request).dimension == dimension


def _identity_with(**change: object) -> latents_pb2.LatentIdentity:
    identity = lookup().identity
    for name, value in change.items():
        if isinstance(value, list):
            getattr(identity, name)[:] = value
        else:
            setattr(identity, name, value)
    return identity


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("model_id", {"model_id": ""}),
        ("model_id", {"model_id": 'x" or tenant != "'}),
        ("model_id", {"model_id": "x" * 129}),
        ("weights_digest", {"weights_digest": "ABC"}),
        ("model_digest", {"model_digest": ""}),
        ("latent_shape", {"latent_shape": [4, 2, 3]}),
        ("latent_shape", {"latent_shape": [4, 2, 3, 0]}),
        ("latent_shape", {"latent_shape": [4, 2, 3, 1 << 31]}),
        ("latent_dtype", {"latent_dtype": 0}),
        ("latent_dtype", {"latent_dtype": 99}),
        ("codec_id", {"codec_id": ""}),
        ("conditioning_encoder_id", {"conditioning_encoder_id": ""}),
    ],
)
def test_identity_outside_its_bounds_is_rejected(field: str, change: dict[str, object]) -> None:
    request = lookup()
    request.identity.CopyFrom(_identity_with(**change))
    refused(f"identity.{field}", lambda: check_lookup(request))


@pytest.mark.parametrize(
    "sigmas", [[], [1.0], [1.0, 1.0, 0.0], [0.5, 0.6, 0.0], [1.1, 0.0], [1.0, 0.5], [1.0, math.nan, 0.0]]
)
def test_invalid_schedule_is_rejected(sigmas: list[float]) -> None:
    request = lookup()
    request.identity.schedule.sigmas[:] = sigmas
    refused("identity.schedule.sigmas", lambda: check_lookup(request))


def test_empty_lookup_names_every_field_at_once() -> None:
    error = refused(
        {
            "identity.model_id",
            "identity.weights_digest",
            "identity.model_digest",
            "identity.schedule.sigmas",
            "identity.latent_shape",
            "identity.latent_dtype",
            "identity.codec_id",
            "identity.conditioning_encoder_id",
            "retrieval_encoder_id",
            "vector",
            "limit",
        },
        lambda: check_lookup(cache_pb2.LookupRequest()),
    )
    assert len(error.violations) == 11


def without_weights() -> latents_pb2.LatentIdentity:
    changed = new_entry().identity
    changed.weights_digest = ""
    return changed


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("entry_id", fetch("zz", 1)),
        ("steps", fetch(digest("x"))),
        ("steps", fetch(digest("x"), *range(65))),
        ("steps", fetch(digest("x"), 1, 1)),
        (
            "vector_dim",
            cache_pb2.FetchRequest(
                entry_id=digest("x"), retrieval_encoder_id="m", steps=[1], identity=new_entry().identity
            ),
        ),
        ("identity.weights_digest", fetch(digest("x"), 1, under=without_weights())),
    ],
)
def test_fetch_outside_its_bounds_is_rejected(field: str, request_: cache_pb2.FetchRequest) -> None:
    refused(field, lambda: check_fetch(request_))


def aged(age: duration_pb2.Duration) -> cache_pb2.PurgeRequest:
    return cache_pb2.PurgeRequest(older_than=age)


def test_purge_selects_rows_by_its_fields() -> None:
    refused("all", lambda: check_purge(cache_pb2.PurgeRequest(), 0))
    refused("entry_id", lambda: check_purge(cache_pb2.PurgeRequest(entry_id='" or "a" == "a'), 0))
    refused("model_id", lambda: check_purge(cache_pb2.PurgeRequest(model_id='x" or "a" == "a'), 0))
    refused("older_than", lambda: check_purge(aged(duration_pb2.Duration(seconds=-1)), 0))
    refused("older_than", lambda: check_purge(aged(duration_pb2.Duration(nanos=-1)), 0))
    request = cache_pb2.PurgeRequest(
        entry_id=digest("x"), model_id="m", older_than=duration_pb2.Duration(seconds=2, nanos=500_000_000)
    )
    assert check_purge(request, 10_000) == Selection(
        entry_id=digest("x"), model_id="m", created_before_ms=7_500
    )
    assert check_purge(cache_pb2.PurgeRequest(all=True), 0) == Selection()


@given(st.integers(1, 200))
def test_upload_does_not_depend_on_the_chunk_size(chunk_bytes: int) -> None:
    complete = uploaded(admission(new_entry(), BLOBS, 1 << 20))
    assert uploaded(admission(new_entry(), BLOBS, chunk_bytes)) == complete
    assert complete.data == {compute_digest(data): data for data in BLOBS.values()}
    assert [blob.step for blob in complete.entry.blobs] == [1, 2, 3]


def compute_digest(data: bytes) -> str:
    return header(1, data).digest


@given(st.data())
def test_upload_with_a_lost_repeated_or_moved_message_is_rejected(data: st.DataObject) -> None:
    good = list(admission(new_entry(), BLOBS, 100))
    messages = list(good)
    at = data.draw(st.integers(0, len(messages) - 1))
    match data.draw(st.sampled_from(["lost", "twice", "moved"])):
        case "lost":
            messages.pop(at)
        case "twice":
            messages.insert(at, messages[at])
        case "moved":
            messages.insert(data.draw(st.integers(0, len(messages) - 1)), messages.pop(at))
    if messages != good:
        with pytest.raises(ChorusError) as failed:
            uploaded(messages)
        assert failed.value.reason == INVALID_FIELD
        assert failed.value.violations


@given(st.data())
def test_truncated_upload_is_rejected(data: st.DataObject) -> None:
    messages = list(admission(new_entry(), BLOBS, 100))
    kept = data.draw(st.integers(0, len(messages) - 1))
    with pytest.raises(ChorusError) as failed:
        uploaded(messages[:kept])
    assert failed.value.reason == INVALID_FIELD


@pytest.mark.parametrize("steps", [[], [1, 1], list(range(65))])
def test_entry_with_invalid_steps_is_rejected(steps: list[int]) -> None:
    offered = new_entry()
    offered.steps[:] = steps
    refused("entry.steps", lambda: uploaded([cache_pb2.AdmitRequest(entry=offered)]))


def test_unannounced_step_is_rejected() -> None:
    messages = list(admission(new_entry(), BLOBS, 1 << 20))
    messages[0].entry.steps[:] = [1, 2]
    refused("header.step.index", lambda: uploaded(messages))


@pytest.mark.parametrize(("seconds", "nanos"), [(0, 0), (-1, 0), (0, -1), (400_000_000, 0), (1, 10**9)])
def test_lifetime_outside_its_bound_is_rejected(seconds: int, nanos: int) -> None:
    offered = new_entry()
    offered.retention.lifetime.seconds, offered.retention.lifetime.nanos = seconds, nanos
    refused("entry.retention.lifetime", lambda: uploaded(admission(offered, BLOBS)))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("entry.prompt", {"prompt": ""}),
        ("entry.prompt", {"prompt": "é" * 101}),
        ("entry.cost_seconds", {"cost_seconds": -1.0}),
        ("entry.cost_seconds", {"cost_seconds": math.nan}),
        ("entry.traceparent", {"traceparent": "00-zz"}),
        ("entry.generation_id", {"generation_id": "x" * 129}),
        ("entry.retrieval_encoder_id", {"retrieval_encoder_id": ""}),
    ],
)
def test_entry_outside_its_bounds_is_rejected(field: str, change: dict[str, object]) -> None:
    offered = new_entry()
    for name, value in change.items():
        setattr(offered, name, value)
    refused(field, lambda: uploaded(admission(offered, BLOBS)))


@pytest.mark.parametrize(
    ("field", "index", "sigma", "size", "digest_hex"),
    [
        ("header.step.index", 4, 0.0, 100, digest("x")),
        ("header.step.sigma", 1, 0.5, 100, digest("x")),
        ("header.step.sigma", 1, math.nan, 100, digest("x")),
        ("header.size_bytes", 1, 0.9, 0, digest("x")),
        ("header.size_bytes", 1, 0.9, 4097, digest("x")),
        ("header.digest", 1, 0.9, 100, digest("x").upper()),
    ],
)
def test_header_outside_its_bounds_is_rejected(
    field: str, index: int, sigma: float, size: int, digest_hex: str
) -> None:
    announced = latents_pb2.BlobHeader(
        step=latents_pb2.StepRef(index=index, sigma=sigma), size_bytes=size, digest=digest_hex
    )
    offered = new_entry()
    offered.steps[:] = [1]
    messages = [cache_pb2.AdmitRequest(entry=offered), cache_pb2.AdmitRequest(header=announced)]
    refused(field, lambda: uploaded(messages))


def test_blobs_of_an_entry_are_bounded_together() -> None:
    tight = Upload("default", Limits(prompt=200, blob=4096, entry=len(BLOBS[1]) + 10))
    messages = list(admission(new_entry(), BLOBS, 1 << 20))
    for message in messages[:3]:
        tight.add(message)
    refused("header.size_bytes", lambda: tight.add(messages[3]))


def test_message_without_a_part_is_rejected() -> None:
    refused("part", lambda: uploaded([cache_pb2.AdmitRequest()]))
    refused("chunk", lambda: uploaded([*admission(new_entry(), BLOBS), cache_pb2.AdmitRequest(chunk=b"")]))


def _with_header(info: object, values: bytes) -> bytes:
    text = json.dumps(info).encode()
    return struct.pack("<Q", len(text)) + text + values


VALUES = math.prod(SHAPE) * 4
FOREIGN = {
    "another shape": latents(1, (4, 2, 3, 4)),
    "another rank": latents(1, (1, *SHAPE)),
    "another dtype": latents(1, dtype="float16"),
    "cut": latents(1)[:-1],
    "a pickle": b"\x80\x04\x95" + b"x" * 200,
    "a header with a wrong length": struct.pack("<Q", 1 << 60) + b"{}",
    "a header that is not JSON": struct.pack("<Q", 4) + b"nope" + b"\0" * VALUES,
    "no tensor": _with_header({}, b""),
    "offsets that overlap the shape": _with_header(
        {"x": {"dtype": "F32", "shape": SHAPE, "data_offsets": [0, 8]}}, b"\0" * 8
    ),
    "a huge shape": _with_header(
        {"x": {"dtype": "F32", "shape": [1 << 40] * 4, "data_offsets": [0, VALUES]}}, b"\0" * VALUES
    ),
    "two tensors": _with_header(
        {
            "x": {"dtype": "F32", "shape": SHAPE, "data_offsets": [0, VALUES]},
            "y": {"dtype": "F32", "shape": SHAPE, "data_offsets": [VALUES, 2 * VALUES]},
        },
        b"\0" * 2 * VALUES,
    ),
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_latents_are_rejected(data: bytes) -> None:
    assert "step 2" in refused("chunk", lambda: uploaded(admission(new_entry(), {2: data}))).message


def test_latents_in_half_the_size_are_accepted_before_the_last_step_only() -> None:
    halves = _with_header(
        {"x": {"dtype": "BF16", "shape": SHAPE, "data_offsets": [0, VALUES // 2]}}, b"\0" * (VALUES // 2)
    )
    last = len(new_entry().identity.schedule.sigmas) - 1
    assert uploaded(admission(new_entry(), {last - 1: halves})).entry.blobs[0].size_bytes == len(halves)
    error = refused("chunk", lambda: uploaded(admission(new_entry(), {last: halves})))
    assert "holds BF16" in error.message


def test_wrong_digest_is_rejected() -> None:
    messages = list(admission(new_entry(), {1: BLOBS[1]}, 1 << 20))
    messages[-1] = cache_pb2.AdmitRequest(chunk=BLOBS[1][:-1] + b"?")
    assert "SHA-256" in refused("chunk", lambda: uploaded(messages)).message


@given(st.text(), st.text())
def test_filter_values_cannot_inject(tenant: str, model_id: str) -> None:
    try:
        expression = make_filter(tenant, Selection(model_id=model_id))
    except ValueError:
        return
    assert re.fullmatch(r'tenant == "[^"\\\s]+" and model_id == "[^"\\\s]+"', expression)


@given(st.text(min_size=1, max_size=512), st.integers(1, 4096))
def test_space_name_is_valid_for_milvus(encoder: str, dimension: int) -> None:
    assert re.fullmatch(r"chorus_[a-z0-9_]{0,25}_[0-9a-f]{16}_\d{1,4}", Space(encoder, dimension).name)


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"MILVUS_URI": "milvus"}, "MILVUS_URI"),
        ({"BLOBS": "tape"}, "BLOBS"),
        ({"BLOBS": "s3"}, "S3_ENDPOINT"),
        ({"BLOBS": "s3", "S3_ENDPOINT": "http://s3:9000"}, "S3_ENDPOINT"),
        ({"BLOBS": "s3", "S3_ENDPOINT": "s3:9000", "S3_SECRET_KEY": "hidden"}, "S3_ACCESS_KEY"),
        ({"S3_BUCKET": "No"}, "S3_BUCKET"),
        ({"MAX_BLOB_BYTES": "0"}, "MAX_BLOB_BYTES"),
    ],
)
def test_invalid_setting_is_named_without_secrets(
    env: dict[str, str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(f"CHORUS_CACHE_{name}", value)
    with pytest.raises(SystemExit) as ended:
        load_settings(CacheSettings)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert f"CHORUS_CACHE_{named}:" in shown
    assert "hidden" not in shown
