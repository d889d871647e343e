"""Verifies the embedder process over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import numpy as np
import pytest
from chorus.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from chorus_rpc import errors
from chorus_rpc.channels import calling, open_channel
from chorus_rpc.errors import ChorusError

from services.contract.tensors import decode_tensor
from tests.processes import ServiceProcess, free_port, start_service
from tests.tiny_encoders import save_umt5

SECONDS = 20.0
UMT5_WIDTH = 4096  # width of UMT5-XXL, which conditions Wan


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    umt5 = save_umt5(tmp_path_factory.mktemp("umt5"), UMT5_WIDTH)
    conditioning = {"CHORUS_EMBEDDER_CONDITIONING": f"minilm,umt5:{umt5}"}
    with start_service("embedder", conditioning, tmp_path_factory.mktemp("embedder")) as process:
        yield process


@pytest.fixture
def stub(service: ServiceProcess) -> Iterator[embedder_pb2_grpc.EmbedderServiceStub]:
    with grpc.insecure_channel(service.target) as channel:
        yield embedder_pb2_grpc.EmbedderServiceStub(channel)


def failure(call: Callable[..., object], *args: object) -> ChorusError:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, timeout=SECONDS)
    return errors.from_rpc_error(cast(grpc.aio.AioRpcError, caught.value), "embedder")


def list_encoders(stub: embedder_pb2_grpc.EmbedderServiceStub) -> list[embedder_pb2.EncoderInfo]:
    return list(stub.DescribeEncoders(embedder_pb2.DescribeEncodersRequest(), timeout=SECONDS).encoders)


def get_retrieval_encoder(stub: embedder_pb2_grpc.EmbedderServiceStub) -> embedder_pb2.EncoderInfo:
    return list_encoders(stub)[0]


def embed(stub: embedder_pb2_grpc.EmbedderServiceStub, prompt: str) -> embedder_pb2.EmbedResponse:
    request = embedder_pb2.EmbedRequest(
        prompt=prompt, conditioning_encoder_id=get_retrieval_encoder(stub).encoder_id
    )
    return stub.Embed(request, timeout=SECONDS)


def test_describe_lists_the_served_encoders(stub: embedder_pb2_grpc.EmbedderServiceStub) -> None:
    minilm, umt5 = list_encoders(stub)
    assert minilm.encoder_id.startswith("all-minilm-l6-v2@")
    assert (minilm.retrieval, minilm.conditioning) == (True, True)
    assert (minilm.vector_dim, minilm.state_dim, minilm.max_tokens) == (384, 384, 256)
    assert umt5.encoder_id.startswith("umt5@")
    assert (umt5.retrieval, umt5.conditioning) == (False, True)
    assert (umt5.state_dim, umt5.max_tokens) == (UMT5_WIDTH, 512)


def test_vector_states_and_tokens_are_consistent(stub: embedder_pb2_grpc.EmbedderServiceStub) -> None:
    prompt = "  A crimson circle, drifting left "
    reply = embed(stub, prompt)
    assert np.linalg.norm(reply.retrieval_vector) == pytest.approx(1, abs=1e-5)
    assert len(reply.retrieval_vector) == 384
    states = decode_tensor(reply.token_states, "token_states", rank=2, max_elements=1 << 20)
    assert states.shape == (len(reply.tokens), 384)
    assert not reply.truncated
    assert reply.tokens[0].start == reply.tokens[0].end
    words = {token.text: prompt[token.start : token.end] for token in reply.tokens if token.end > token.start}
    assert words["circle"] == "circle"
    assert words["left"] == "left"
    # Equal to the last bit, after any requests in between.
    embed(stub, "something else")
    assert embed(stub, prompt) == reply
    assert embed(stub, prompt.strip()).token_states == reply.token_states


def test_similar_prompts_are_near(stub: embedder_pb2_grpc.EmbedderServiceStub) -> None:
    red, crimson, chess = (
        np.array(embed(stub, prompt).retrieval_vector)
        for prompt in ("a red car at sunset", "a crimson automobile at dusk", "two people playing chess")
    )
    assert red @ crimson > 0.5 > 0.3 > red @ chess


def test_long_prompt_is_truncated_and_reported(stub: embedder_pb2_grpc.EmbedderServiceStub) -> None:
    reply = embed(stub, "a b " * 499)
    assert reply.truncated
    assert len(reply.tokens) == 256


async def test_longest_states_of_umt5_fit_a_message(service: ServiceProcess) -> None:
    async with open_channel(service.target) as channel:
        stub: Any = embedder_pb2_grpc.EmbedderServiceStub(channel)
        described = await stub.DescribeEncoders(embedder_pb2.DescribeEncodersRequest(), timeout=SECONDS)
        minilm, umt5 = described.encoders
        reply = await stub.Embed(
            embedder_pb2.EmbedRequest(prompt="a " * 999, conditioning_encoder_id=umt5.encoder_id),
            timeout=SECONDS,
        )
    assert (reply.conditioning_encoder_id, reply.retrieval_encoder_id) == (umt5.encoder_id, minilm.encoder_id)
    states = decode_tensor(reply.token_states, "token_states", rank=2, max_elements=512 * UMT5_WIDTH)
    assert states.shape == (512, UMT5_WIDTH)
    assert len(reply.retrieval_vector) == 384
    assert reply.truncated


@pytest.mark.parametrize("prompt", ["", " \n\t ", "x" * 8193])
def test_prompt_outside_its_bound_is_rejected(
    stub: embedder_pb2_grpc.EmbedderServiceStub, prompt: str
) -> None:
    request = embedder_pb2.EmbedRequest(
        prompt=prompt, conditioning_encoder_id=get_retrieval_encoder(stub).encoder_id
    )
    error = failure(stub.Embed, request)
    assert error.reason == errors.INVALID_FIELD
    [violation] = error.violations
    assert violation.field == "prompt"
    assert "1 to 8192" in violation.description


@pytest.mark.fault("number-promises")
@pytest.mark.parametrize("prompt", ["&nbsp;", "\u200b", "\x07"], ids=ascii)
def test_prompt_without_text_is_rejected_for_every_encoder(
    stub: embedder_pb2_grpc.EmbedderServiceStub, prompt: str
) -> None:
    for encoder in list_encoders(stub):
        request = embedder_pb2.EmbedRequest(prompt=prompt, conditioning_encoder_id=encoder.encoder_id)
        error = failure(stub.Embed, request)
        assert error.reason == errors.INVALID_FIELD
        assert "holds no text" in error.message


@pytest.mark.fault("number-promises")
def test_longest_prompt_is_encoded(stub: embedder_pb2_grpc.EmbedderServiceStub) -> None:
    assert len(embed(stub, "abcdefgh " * 910).tokens) == 256
    assert embed(stub, "赤" * 2730).truncated


@pytest.mark.parametrize(
    ("donors", "target", "fields"),
    [
        ([" "], "y" * 8193, ["target_prompt", "donor_prompts[0]"]),
        (["a", "b", "c", "x" * 8193], "y", ["donor_prompts[3]"]),
        ([], "y", ["donor_prompts"]),
        (["a"] * 17, "y", ["donor_prompts"]),
    ],
)
def test_align_names_every_invalid_prompt(
    stub: embedder_pb2_grpc.EmbedderServiceStub, donors: list[str], target: str, fields: list[str]
) -> None:
    error = failure(stub.Align, embedder_pb2.AlignRequest(donor_prompts=donors, target_prompt=target))
    assert error.reason == errors.INVALID_FIELD
    assert [v.field for v in error.violations] == fields


def test_unknown_encoder_is_rejected(stub: embedder_pb2_grpc.EmbedderServiceStub) -> None:
    for call, request in (
        (stub.Embed, embedder_pb2.EmbedRequest(prompt="a circle", conditioning_encoder_id="umt5@0")),
        (
            stub.Align,
            embedder_pb2.AlignRequest(
                target_prompt="a circle", donor_prompts=["a square"], conditioning_encoder_id="umt5@0"
            ),
        ),
    ):
        error = failure(call, request)
        assert error.reason == errors.UNKNOWN_ENCODER
        assert error.metadata["available"] == ",".join(info.encoder_id for info in list_encoders(stub))


def test_align_returns_gained_and_lost_tokens(stub: embedder_pb2_grpc.EmbedderServiceStub) -> None:
    request = embedder_pb2.AlignRequest(
        target_prompt=" a blue circle moves left",
        donor_prompts=[
            "a red circle moves left",
            "  a blue square and a blue circle moving left",
            "a blue circle moves left",
        ],
    )
    red, square, same = stub.Align(request, timeout=SECONDS).alignments
    [gained], [lost] = red.gained, red.lost
    assert (gained.token.text, gained.token.start, gained.token.end, gained.index) == ("blue", 3, 7, 2)
    assert (lost.token.text, lost.token.start, lost.token.end, lost.index) == ("red", 2, 5, 2)
    assert (gained.weight, lost.weight) == (1, 1)
    assert gained.category == lost.category == embedder_pb2.TOKEN_CATEGORY_COLOUR
    assert [token.token.text for token in square.lost if token.weight > 0.5] == ["blue", "square"]
    assert (square.lost[0].token.start, square.things_added, square.reordered) == (4, -1, False)
    assert same == embedder_pb2.Alignment()


def test_align_marks_the_tokens_that_the_vocabulary_lacks(
    stub: embedder_pb2_grpc.EmbedderServiceStub,
) -> None:
    request = embedder_pb2.AlignRequest(
        target_prompt="a 🐕 on the left", donor_prompts=["a 🐈 on the left", "a cat on the left"]
    )
    foreign, known = stub.Align(request, timeout=SECONDS).alignments
    assert [token.unknown for token in (*foreign.gained, *foreign.lost)] == [True, True]
    assert [token.unknown for token in (*known.gained, *known.lost)] == [True, False]


def test_align_accepts_the_states_that_embed_returned(
    stub: embedder_pb2_grpc.EmbedderServiceStub,
) -> None:
    request = embedder_pb2.AlignRequest(
        target_prompt="  a blue circle moves left", donor_prompts=["a red circle moves left"]
    )
    [computed] = stub.Align(request, timeout=SECONDS).alignments
    request.target_states.CopyFrom(embed(stub, request.target_prompt).token_states)
    [given] = stub.Align(request, timeout=SECONDS).alignments
    assert [(t.token, t.weight) for t in given.gained] == [(t.token, t.weight) for t in computed.gained]
    assert given.lost == computed.lost
    request.target_prompt += " slowly"
    error = failure(stub.Align, request)
    assert error.reason == errors.INVALID_FIELD
    assert [violation.field for violation in error.violations] == ["target_states"]


def test_align_returns_positions_of_another_encoder(stub: embedder_pb2_grpc.EmbedderServiceStub) -> None:
    umt5, target = list_encoders(stub)[1], "  a blue  circle &amp; a box"
    request = embedder_pb2.AlignRequest(
        target_prompt=target,
        donor_prompts=["a red circle and a box"],
        conditioning_encoder_id=umt5.encoder_id,
    )
    [found] = stub.Align(request, timeout=SECONDS).alignments
    embedded = stub.Embed(
        embedder_pb2.EmbedRequest(prompt=target, conditioning_encoder_id=umt5.encoder_id), timeout=SECONDS
    )
    blue = [token for token in found.gained if token.category == embedder_pb2.TOKEN_CATEGORY_COLOUR]
    assert blue
    assert all(token.token == embedded.tokens[token.index] for token in found.gained)
    covered = {i for token in blue for i in range(token.token.start, token.token.end)}
    assert covered >= {4, 5, 6, 7}


async def test_full_queue_refuses_calls_and_recovers(tmp_path: Path) -> None:
    with start_service("embedder", {"CHORUS_EMBEDDER_QUEUE_LIMIT": "1"}, tmp_path) as process:
        async with open_channel(process.target) as channel:
            stub = embedder_pb2_grpc.EmbedderServiceStub(channel)

            async def ask(prompt: str) -> ChorusError | None:
                try:
                    with calling("embedder"):
                        await stub.Align(
                            embedder_pb2.AlignRequest(donor_prompts=[prompt], target_prompt="a circle"),
                            timeout=SECONDS,
                        )
                except ChorusError as error:
                    return error
                return None

            found = await asyncio.gather(*(ask(f"prompt {i} " * 40) for i in range(20)))
            refused = [error for error in found if error is not None]
            assert refused
            assert len(refused) < 20
            assert {error.reason for error in refused} == {errors.QUEUE_FULL}
            assert all(error.retry_after for error in refused)
            assert await ask("and now alone") is None


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("CHORUS_EMBEDDER_RETRIEVAL", "word2vec", "minilm"),
        ("CHORUS_EMBEDDER_LEXICONS", __file__, "cannot be read"),
    ],
)
def test_invalid_setting_ends_the_process_and_is_named(
    tmp_path: Path, name: str, value: str, remedy: str
) -> None:
    process = ServiceProcess("embedder", {name: value}, free_port(), tmp_path / "log")
    process.start(wait=False)
    assert process.process is not None
    try:
        assert process.process.wait(120) == 2
    finally:
        process.kill()
    assert name in process.tail()
    assert remedy in process.tail()


@pytest.mark.fault("misleading-refusals")
def test_directory_of_another_kind_ends_the_process_and_is_named(tmp_path: Path) -> None:
    root = tmp_path / "wan"
    root.mkdir()
    (root / "config.json").write_text('{"_class_name": "WanModel", "model_type": "t2v"}')
    (root / "models_t5_umt5-xxl-enc-bf16.pth").write_bytes(b"\x80\x02")
    environment = {"CHORUS_EMBEDDER_CONDITIONING": f"umt5:{root}"}
    process = ServiceProcess("embedder", environment, free_port(), tmp_path / "log")
    process.start(wait=False)
    assert process.process is not None
    try:
        assert process.process.wait(120) != 0
    finally:
        process.kill()
    assert "is the original release of Wan" in process.tail()
