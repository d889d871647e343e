"""Property tests of the host adapter: it computes the first step that follows a donor, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from chorus.common.v1 import plan_pb2
from chorus_rpc import semconv, telemetry
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.denoiser.backends.base import Backend, StepInputs
from services.denoiser.backends.eager import EagerBackend
from services.denoiser.denoise import Result, denoise
from services.denoiser.latent_cache import DonorData
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.request import DenoiseJob
from services.denoiser.reuse.donor import DonorLatents
from services.denoiser.reuse.side_data import SideData
from services.denoiser.reuse.stages import Stages, Step
from tests.plans import STEPS, plans
from tests.tiny_model import TEXT_DIM, save_host_adapter, save_tiny_model

SHAPE = (12, 2, 8, 8)


class RecordingBackend(EagerBackend):
    """Counts its predictions, and records the text keys that they read."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model.transformer)
        self.keys: list[Tensor] = []

    def predict(self, inputs: StepInputs) -> Tensor:
        self.keys.append(inputs.text.kv[0][0])
        for layer in inputs.text.layers or ():
            if layer is not None and layer.other is not None:
                self.keys.append(layer.other[0])
        return super().predict(inputs)


class Setting:
    """Tiny models with and without a host adapter, and the data of a donor."""

    def __init__(self, folder: Path) -> None:
        path = save_tiny_model(folder)
        self.without = LoadedModel.load(path)
        save_host_adapter(path)
        self.model = LoadedModel.load(path)
        generator = torch.Generator().manual_seed(0)
        self.states = torch.randn(5, TEXT_DIM, generator=generator).numpy()
        self.donor_states = torch.randn(4, TEXT_DIM, generator=generator)
        latents = {i: torch.randn(SHAPE, generator=generator) for i in range(1, STEPS + 1)}
        side = SideData(torch.rand(4, 2, 4, 4, generator=generator), self.donor_states.half())
        self.donor = DonorData(latents, side)

    def run(
        self, predictor: Predictor, plan: plan_pb2.Plan, donor: DonorData | None
    ) -> tuple[list[Step], Result]:
        model = predictor.model
        sigmas = model.spec.schedule.sigmas
        job = DenoiseJob("g", model, SHAPE, sigmas, 7, self.states, plan, "r", 1, None)
        *steps, result = denoise(predictor, job, donor, keep=True, parent="")
        assert isinstance(result, Result)
        return [step for step in steps if isinstance(step, Step)], result


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("model"))


@settings(max_examples=60, deadline=None)
@given(plan=plans())
def test_first_step_after_a_donor_runs_on_the_host_and_others_on_the_plain_network(
    setting: Setting, plan: plan_pb2.Plan
) -> None:
    backends: dict[LoadedModel, RecordingBackend] = {}

    def create(model: LoadedModel) -> Backend:
        return backends.setdefault(model, RecordingBackend(model))

    predictor = Predictor.create(setting.model, create)
    steps, result = setting.run(predictor, plan, setting.donor)
    assert setting.model.host is not None
    plain, host = backends[setting.model], backends[setting.model.host]
    begin = plan.reuse_steps + (not plan.draft_step)
    assert [step.boundary for step in steps] == list(range(begin, STEPS + 1))
    assert result.steps_run == len(steps)
    # A region may be empty: then no step of stage 2 runs the network.
    assert host.keys or steps[0].computed_share == 0
    assert bool(plain.keys) == any(step.computed_share for step in steps[1:])
    for model, backend in ((setting.model.host, host), (setting.model, plain)):
        own, other = (model.prepare_text(states)[0][0] for states in (setting.states, setting.donor_states))
        assert all(
            torch.equal(keys, own) or torch.allclose(keys, other, atol=1e-2) for keys in backend.keys
        ), "text of the other network"
    assert result.latents == {}
    assert result.side is None


@settings(max_examples=20, deadline=None)
@given(plan=plans(), plans_reuse=st.booleans())
def test_run_without_a_donor_equals_that_of_a_model_without_the_adapter(
    setting: Setting, plan: plan_pb2.Plan, plans_reuse: bool
) -> None:
    """Includes runs whose planned donor could not be fetched."""
    wanted = plan if plans_reuse else plan_pb2.Plan(total_steps=STEPS)
    backends: dict[LoadedModel, RecordingBackend] = {}
    predictor = Predictor.create(setting.model, lambda m: backends.setdefault(m, RecordingBackend(m)))
    steps, result = setting.run(predictor, wanted, None)
    expected_steps, expected = setting.run(Predictor.eager(setting.without), wanted, None)
    assert setting.model.host is not None
    assert backends[setting.model.host].keys == []
    for found, step in zip(steps, expected_steps, strict=True):
        assert torch.equal(found.latents, step.latents)
    assert result.latents.keys() == expected.latents.keys() == set(range(1, STEPS + 1))
    assert all(torch.equal(result.latents[i], expected.latents[i]) for i in expected.latents)
    assert result.side is not None
    assert expected.side is not None
    assert torch.equal(result.side.maps, expected.side.maps)


def test_first_step_after_a_donor_is_that_of_a_model_that_merges_the_adapter(setting: Setting) -> None:
    plan = plan_pb2.Plan(total_steps=STEPS, reuse_steps=2)
    plan.donor.entry_id = "0" * 64
    assert setting.model.host is not None
    hosted, _ = setting.run(Predictor.eager(setting.model), plan, setting.donor)
    merged, _ = setting.run(Predictor.eager(setting.model.host), plan, setting.donor)
    plain, _ = setting.run(Predictor.eager(setting.without), plan, setting.donor)
    assert torch.equal(hosted[0].latents, merged[0].latents)
    assert not torch.allclose(hosted[0].latents, plain[0].latents, atol=1e-2)
    # The last step is that of the plain network, from the latents after the adapter's step.
    follow = plan_pb2.Plan(total_steps=STEPS, reuse_steps=3)
    follow.donor.entry_id = "0" * 64
    donor = DonorData({3: hosted[0].latents}, None)
    continued, _ = setting.run(Predictor.eager(setting.without), follow, donor)
    assert torch.equal(hosted[1].latents, continued[0].latents)


@pytest.mark.parametrize("fetched", [True, False])
def test_span_of_a_run_names_the_adapter_if_it_computed_the_steps(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, fetched: bool
) -> None:
    spans: dict[str, Mapping[str, object]] = {}
    original = telemetry.span

    def record(name: str, attributes: Any = None, **options: Any) -> Any:
        spans[name] = attributes or {}
        return original(name, attributes, **options)

    monkeypatch.setattr(telemetry, "span", record)
    plan = plan_pb2.Plan(total_steps=STEPS, reuse_steps=2)
    setting.run(Predictor.eager(setting.model), plan, setting.donor if fetched else None)
    assert spans[semconv.SPAN_DENOISE].get(semconv.HOST_ADAPTER) == ("host" if fetched else None)


def test_donor_on_the_plain_predictor_is_refused(setting: Setting) -> None:
    predictor, text = Predictor.eager(setting.model), setting.model.prepare_text(torch.ones(2, TEXT_DIM))
    arguments = (plan_pb2.Plan(reuse_steps=1), SHAPE, setting.model.spec.schedule.sigmas, text)
    noise, donor = setting.model.noise(0, SHAPE), DonorLatents(setting.donor.latents)
    with pytest.raises(ValueError, match="must run on the host"):
        Stages(predictor, *arguments, noise, donor)
    Stages(predictor.select(continues_donor=True), *arguments, noise, donor)
    Stages(predictor.select(continues_donor=False), *arguments, noise, None)


def test_select_returns_the_predictor_itself_without_a_host(setting: Setting) -> None:
    predictor = Predictor.eager(setting.without)
    assert predictor.select(continues_donor=True) is predictor


def test_close_closes_the_backends_of_model_and_host(setting: Setting) -> None:
    closed = []

    class Closing(EagerBackend):
        def close(self) -> None:
            closed.append(self)

    Predictor.create(setting.model, lambda model: Closing(model.transformer)).close()
    assert len(set(closed)) == 2
