"""Tests a Wan pipeline saved by diffusers in the whole stack: text encoder, DiT, codec, cache, reuse."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from chorus.cache.v1 import cache_pb2_grpc
from chorus.common.v1 import plan_pb2
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_cli.local import model_files
from chorus_rpc.channels import open_channel

from bench.checkpoints import save_wan_pipeline, write_model_file
from services.embedder.encoders import UMT5Encoder
from services.scheduler.peers import messages
from tests.e2e.calls import get, submit, video, watch_to_end
from tests.stack import Stack, running_stack

pytestmark = pytest.mark.timeout(600)
PROMPT = "the large red circle moves right"
FRAMES, HEIGHT, WIDTH = 5, 32, 48  # the model file's defaults


def save_model(folder: Path) -> Path:
    """Saves a pipeline in shards, with text states as wide as UMT5-XXL's. Returns its model file."""
    pipeline = save_wan_pipeline(folder / "pipeline", text_dim=4096, max_shard_size="100KB")
    return write_model_file(folder, pipeline, encoder_id=UMT5Encoder(pipeline).id)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Starts the stack as `chorus up --model` does: the model file names the encoder.

    Donors keep their latents in float32, so that a hit equals the full computation to the bit.
    """
    folder = tmp_path_factory.mktemp("wan")
    settings = model_files.choose_models([save_model(folder)], {})
    with running_stack(folder, settings | {"CHORUS_DENOISER_DONOR_DTYPE": "float32"}) as running:
        yield running


async def run_to_end(scheduler: Any, stack: Stack, prompt: str, **spec: Any) -> pb.Generation:
    """Runs a generation that must succeed. Returns its final state."""
    job = await submit(scheduler, prompt, **spec)
    await watch_to_end(scheduler, job.generation_id)
    generation = await get(scheduler, job.generation_id)
    assert generation.state == pb.GENERATION_STATE_SUCCEEDED, f"{generation.error}\n{stack.logs()}"
    return generation


async def test_saved_pipeline_generates_and_its_latents_are_reused(scheduler: Any, stack: Stack) -> None:
    full = await run_to_end(scheduler, stack, PROMPT, seed=1)
    assert (full.steps_run, full.HasField("donor")) == (4, False)
    _, data = await video(scheduler, full.generation_id)
    with av.open(io.BytesIO(data), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(HEIGHT, WIDTH, 3)] * FRAMES
    assert any(frame.std() > 1 for frame in frames), "the frames have only one colour"

    other = await run_to_end(scheduler, stack, PROMPT, seed=2, reuse=plan_pb2.REUSE_POLICY_OFF, no_store=True)
    assert other.video.digest != full.video.digest

    # The same tokens, but not the same text: no exact repeat.
    hit = await run_to_end(scheduler, stack, PROMPT.replace(" ", "  ", 1), seed=1)
    assert hit.donor.generation_id == full.generation_id
    assert 0 < hit.steps_run == 4 - hit.plan.reuse_steps < 4
    assert hit.video.digest == full.video.digest
    # The model has no calibration, so it is not known how far another seed would matter.
    declined = await run_to_end(scheduler, stack, PROMPT, seed=2)
    assert [reason.code for reason in declined.plan.reasons] == [plan_pb2.PLAN_REASON_CODE_OTHER_SEED]
    assert declined.video.digest == other.video.digest


async def test_prompt_of_full_length_passes_every_message(scheduler: Any, stack: Stack) -> None:
    words = "a cat runs " * 180
    long = await run_to_end(scheduler, stack, words, seed=1, no_store=True)
    assert long.steps_run == 4


def change_weights(model: denoiser_pb2.ModelInfo) -> None:
    model.weights_digest = "0" * 64


def add_adapter(model: denoiser_pb2.ModelInfo) -> None:
    model.adapters.add(adapter_id="style", digest="0" * 64, scale=1.0)


def change_encoder(model: denoiser_pb2.ModelInfo) -> None:
    model.conditioning_encoder_id = "umt5@0000000000000000"


async def test_model_with_another_identity_finds_no_donor(scheduler: Any, stack: Stack) -> None:
    done = await run_to_end(scheduler, stack, PROMPT, seed=3)
    async with (
        open_channel(stack["denoiser"].target) as denoiser,
        open_channel(stack["embedder"].target) as embedder,
        open_channel(stack["cache"].target) as cache,
    ):
        describe: Any = denoiser_pb2_grpc.DenoiserServiceStub(denoiser).DescribeModels
        embed: Any = embedder_pb2_grpc.EmbedderServiceStub(embedder).Embed
        lookup: Any = cache_pb2_grpc.CacheServiceStub(cache).Lookup
        [served] = (await describe(denoiser_pb2.DescribeModelsRequest(), timeout=20)).models
        encoded = await embed(
            embedder_pb2.EmbedRequest(prompt=PROMPT, conditioning_encoder_id=served.conditioning_encoder_id),
            timeout=20,
        )

        async def donors(model: denoiser_pb2.ModelInfo) -> list[str]:
            identity = messages.build_latent_identity(done.spec, model)
            reply = await lookup(messages.build_lookup_request(identity, encoded, limit=16), timeout=20)
            return [donor.entry.prompt for donor in reply.donors]

        assert PROMPT in await donors(served)
        for change in (change_weights, add_adapter, change_encoder):
            model = denoiser_pb2.ModelInfo.FromString(served.SerializeToString())
            change(model)
            assert not await donors(model), change.__name__
