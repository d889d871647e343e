"""Verifies which description of a model is in force when denoisers serve it differently."""

from __future__ import annotations

from typing import Any

import pytest
from chorus.common.v1 import latents_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus.denoiser.v1.denoiser_pb2 import ModelInfo
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.peers.agreement import agree, find_differences

OLD = ModelInfo(model_id="small", weights_digest="old")
NEW = ModelInfo(model_id="small", weights_digest="new")
LARGE = ModelInfo(model_id="large", weights_digest="old")

answers = st.dictionaries(
    st.sampled_from("abcde"),
    st.dictionaries(st.sampled_from(["small", "large"]), st.sampled_from([OLD, NEW]), max_size=2),
    max_size=5,
)
known = st.dictionaries(st.sampled_from(["small", "large"]), st.sampled_from([OLD, NEW]), max_size=2)


@given(known, answers, st.booleans())
def test_denoisers_that_serve_a_model_agree(
    known: dict[str, ModelInfo], answers: dict[str, dict[str, ModelInfo]], complete: bool
) -> None:
    agreement = agree(known, answers, complete=complete)
    for denoiser, answer in answers.items():
        for model_id, model in answer.items():
            same = model == agreement.models[model_id]
            assert same == ((denoiser, model_id) not in agreement.refused)
    served = {model_id for answer in answers.values() for model_id in answer}
    assert set(agreement.models) == (served if complete else served | set(known))
    for model_id in served & set(known):
        if any(answer.get(model_id) == known[model_id] for answer in answers.values()):
            assert agreement.models[model_id] == known[model_id], "it stays in force"
    again = agree(agreement.models, answers, complete=complete)
    assert (again.models, again.refused) == (agreement.models, agreement.refused)


def test_the_later_of_two_descriptions_is_refused() -> None:
    first = agree({}, {"b": {"small": OLD}}, complete=False)
    both = agree(first.models, {"a": {"small": NEW}, "b": {"small": OLD}}, complete=True)
    assert both.models == {"small": OLD}
    assert both.refused == {("a", "small"): ("weights_digest",)}
    assert agree(both.models, {"a": {"small": NEW}}, complete=True).models == {"small": NEW}


def test_models_have_the_order_of_the_denoisers_once_all_have_answered() -> None:
    saved = {"large": LARGE, "small": OLD}
    first, second = {"a": {"small": OLD}}, {"b": {"large": LARGE}}
    assert list(agree(saved, first, complete=False).models) == ["large", "small"]
    assert list(agree(saved, {**first, **second}, complete=True).models) == ["small", "large"]
    assert list(agree(saved, first, complete=True).models) == ["small"]


@pytest.mark.parametrize(
    ("fields", "differing"),
    [
        ({"seconds_per_step": 2.0, "backend": "tensorrt", "fallback_steps": 7}, ()),
        ({"adapters": [latents_pb2.Adapter(adapter_id="style")]}, ("adapters",)),
        ({"codec": denoiser_pb2.CodecInfo(causal=True)}, ("codec",)),
        ({"frames": video_pb2.Bound(max=16)}, ("frames",)),
        ({"host_adapter": latents_pb2.Adapter(adapter_id="host")}, ("host_adapter",)),
        ({"sampler": "renoise", "model_digest": "other"}, ("model_digest", "sampler")),
    ],
)
def test_descriptions_differ_by_all_but_speed_and_backend(
    fields: dict[str, Any], differing: tuple[str, ...]
) -> None:
    other = ModelInfo(model_id="small", weights_digest="old", **fields)
    assert set(find_differences(OLD, other)) == set(differing)
