"""The denoiser as a process, over its socket: a tiny random model, beside a cache that a test can spoil."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import grpc
import grpc.aio
import numpy as np
import pytest
import safetensors.numpy
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus.common.v1 import latents_pb2, plan_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc

from services.common import errors
from services.common.channels import open_channel
from services.common.errors import ChorusError
from services.common.schedule import shifted_schedule
from services.common.tensors import encode_tensor
from tests.processes import ServiceProcess, free_port, start_service
from tests.tiny_model import ENCODER_ID, MAX_TOKENS, TEXT_DIM, save_tiny_model

SECONDS = 60.0
SIGMAS = shifted_schedule(4, 5.0)
DIM = 8
VECTOR = [1.0] + [0.0] * (DIM - 1)
Parts = list[cache_pb2.FetchResponse]


@dataclass
class FakeCache(cache_pb2_grpc.CacheServiceServicer):
    """Keeps what is admitted; `spoil` changes what a fetch answers."""

    entries: dict[str, tuple[cache_pb2.NewEntry, dict[int, bytes]]] = field(default_factory=dict)
    tenants: list[str] = field(default_factory=list)
    spoil: Callable[[Parts], Parts] = lambda parts: parts

    def Admit(self, request_iterator: Iterator[cache_pb2.AdmitRequest], context: Any) -> Any:
        self.tenants += [value for key, value in context.invocation_metadata() if key == "chorus-tenant"]
        entry, blobs, headers = next(request_iterator).entry, dict[int, bytes](), dict[int, Any]()
        for request in request_iterator:
            if request.WhichOneof("part") == "header":
                current = request.header
                headers[current.step.index], blobs[current.step.index] = current, b""
            else:
                blobs[current.step.index] += request.chunk
        for index, header in headers.items():
            assert header.digest == hashlib.sha256(blobs[index]).hexdigest()
            assert header.size_bytes == len(blobs[index])
            assert header.step.sigma == entry.identity.schedule.sigmas[index]
        entry_id = hashlib.sha256(f"{entry.prompt} {entry.seed}".encode()).hexdigest()
        self.entries[entry_id] = (entry, blobs)
        return cache_pb2.AdmitResponse(entry_id=entry_id, created=True)

    def Fetch(self, request: cache_pb2.FetchRequest, context: Any) -> Iterator[cache_pb2.FetchResponse]:
        if request.entry_id not in self.entries:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such entry")
        entry, blobs = self.entries[request.entry_id]
        for index in request.steps:
            yield from self.spoil(blob_parts(index, entry.identity.schedule.sigmas[index], blobs[index]))


def blob_parts(index: int, sigma: float, data: bytes) -> Parts:
    header = latents_pb2.BlobHeader(
        step=latents_pb2.StepRef(index=index, sigma=sigma),
        size_bytes=len(data),
        digest=hashlib.sha256(data).hexdigest(),
    )
    half = len(data) // 2
    return [
        cache_pb2.FetchResponse(header=header),
        cache_pb2.FetchResponse(chunk=data[:half]),
        cache_pb2.FetchResponse(chunk=data[half:]),
    ]


@pytest.fixture(scope="module")
def cache_server() -> Iterator[tuple[FakeCache, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    cache = FakeCache()
    cache_pb2_grpc.add_CacheServiceServicer_to_server(cache, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield cache, f"127.0.0.1:{port}"
    server.stop(0).wait(5)


@pytest.fixture
def cache(cache_server: tuple[FakeCache, str]) -> FakeCache:
    found, _ = cache_server
    found.entries.clear()
    found.tenants.clear()
    found.spoil = lambda parts: parts
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def environment(model: Path, cache_target: str) -> dict[str, str]:
    return {
        "CHORUS_DENOISER_MODELS": str(model),
        "CHORUS_DENOISER_CACHE_TARGET": cache_target,
        "CHORUS_DENOISER_THREADS": "1",
        "CHORUS_DENOISER_QUEUE_LIMIT": "1",
        "CHORUS_DENOISER_LOG_FORMAT": "json",
    }


@pytest.fixture(scope="module")
def service(
    model: Path, cache_server: tuple[FakeCache, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    with start_service(
        "denoiser", environment(model, cache_server[1]), tmp_path_factory.mktemp("denoiser")
    ) as process:
        yield process


@pytest.fixture
async def stub(service: ServiceProcess) -> AsyncIterator[Any]:
    async with open_channel(service.target) as channel:
        yield denoiser_pb2_grpc.DenoiserServiceStub(channel)


def request(
    *, seed: int = 7, sigmas: list[float] = SIGMAS, admit: bool = True, side: int = 8, frames: int = 2
) -> denoiser_pb2.DenoiseRequest:
    states = np.random.default_rng(seed).standard_normal((5, TEXT_DIM)).astype(np.float32)
    return denoiser_pb2.DenoiseRequest(
        generation_id=str(uuid.uuid4()),
        model_id="tiny",
        shape=video_pb2.VideoShape(frames=frames, height=side, width=side),
        schedule=latents_pb2.Schedule(sigmas=sigmas),
        seed=seed,
        conditioning_encoder_id=ENCODER_ID,
        token_states=encode_tensor(states),
        plan=plan_pb2.Plan(total_steps=len(sigmas) - 1),
        retrieval_encoder_id="retrieval@1",
        vector_dim=DIM,
        admission=denoiser_pb2.AdmissionContext(prompt=f"prompt {seed}", retrieval_vector=VECTOR)
        if admit
        else None,
    )


def reusing(of: denoiser_pb2.DenoiseRequest, entry_id: str, steps: int) -> denoiser_pb2.DenoiseRequest:
    changed = denoiser_pb2.DenoiseRequest()
    changed.CopyFrom(of)
    changed.generation_id = str(uuid.uuid4())
    changed.plan.full_reuse_steps = steps
    changed.plan.donor.entry_id = entry_id
    changed.plan.donor.score = 0.9
    return changed


def long_request() -> denoiser_pb2.DenoiseRequest:
    """Some 20 s of work that tests cut short."""
    return request(sigmas=shifted_schedule(150, 5.0), admit=False, side=64, frames=4)


@dataclass
class Outcome:
    """The events of one run, in their order."""

    kinds: list[str]
    started: denoiser_pb2.Started
    steps: list[denoiser_pb2.StepCompleted]
    header: video_pb2.VideoInfo
    video: bytes
    completed: denoiser_pb2.Completed
    admission: denoiser_pb2.Admission | None


async def run(stub: Any, what: denoiser_pb2.DenoiseRequest, **options: Any) -> Outcome:
    events = [event async for event in stub.Denoise(what, timeout=SECONDS, **options)]
    kinds = [event.WhichOneof("event") for event in events]

    def of(kind: str) -> list[Any]:
        return [getattr(event, kind) for event in events if event.WhichOneof("event") == kind]

    [started], [header], [completed] = of("started"), of("video_header"), of("completed")
    admission = of("admission")
    return Outcome(
        kinds, started, of("step_completed"), header, b"".join(of("video_chunk")), completed,
        admission[0] if admission else None,
    )  # fmt: skip


async def failure(stub: Any, what: denoiser_pb2.DenoiseRequest, seconds: float = SECONDS) -> ChorusError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Denoise(what, timeout=seconds):
            pass
    return errors.from_rpc_error(caught.value, "denoiser")


def latents(cache: FakeCache, entry_id: str) -> dict[int, bytes]:
    return cache.entries[entry_id][1]


async def test_a_miss_runs_every_step_and_is_admitted(stub: Any, cache: FakeCache) -> None:
    what = request()
    found = await run(stub, what, metadata=(("chorus-tenant", "studio"),))
    assert found.kinds == [
        "started", *["step_completed"] * 4, "video_header", "video_chunk", "completed", "admission",
    ]  # fmt: skip
    assert (found.started.first_step, found.started.total_steps) == (0, 4)
    assert not found.started.HasField("donor")
    assert not found.started.HasField("degraded")
    assert [(s.step.index, s.step.sigma) for s in found.steps] == list(enumerate(SIGMAS))[1:]
    assert found.completed.steps_run == 4
    assert found.completed.denoise_seconds == pytest.approx(sum(s.seconds for s in found.steps))

    assert found.header.media_type == "video/mp4"
    assert found.header.size_bytes == len(found.video)
    assert found.header.digest == hashlib.sha256(found.video).hexdigest()
    shape = (found.header.frames, found.header.height, found.header.width)
    assert shape == (2, 16, 16)
    with av.open(io.BytesIO(found.video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert (len(frames), *frames[0].shape) == (2, 16, 16, 3)

    assert found.admission is not None
    entry, blobs = cache.entries[found.admission.entry_id]
    assert cache.tenants == ["studio"]
    assert sorted(blobs) == [1, 2, 3]
    tensors = [safetensors.numpy.load(blob) for blob in blobs.values()]
    assert all(list(t) == ["latents"] and t["latents"].shape == (12, 2, 4, 4) for t in tensors)
    assert list(entry.identity.latent_shape) == [12, 2, 4, 4]
    assert entry.identity.conditioning_encoder_id == ENCODER_ID
    assert (entry.prompt, entry.seed, entry.generation_id) == ("prompt 7", 7, what.generation_id)
    assert entry.cost_seconds == pytest.approx(found.completed.denoise_seconds * 3 / 4)


async def test_equal_requests_give_equal_bytes_whatever_ran_between(stub: Any, cache: FakeCache) -> None:
    first = await run(stub, request())
    assert first.admission is not None
    before = latents(cache, first.admission.entry_id)
    await run(stub, request(seed=2**64 - 1, sigmas=shifted_schedule(9, 3.0), side=12))
    again = await run(stub, request())
    assert latents(cache, first.admission.entry_id) == before
    assert again.video == first.video


@pytest.mark.parametrize("depth", [1, 2, 3])
async def test_a_hit_continues_where_its_donor_was(stub: Any, cache: FakeCache, depth: int) -> None:
    full = await run(stub, request())
    assert full.admission is not None
    before = latents(cache, full.admission.entry_id)
    hit = await run(stub, reusing(request(), full.admission.entry_id, depth))
    assert (hit.started.first_step, hit.started.donor.entry_id) == (depth, full.admission.entry_id)
    assert not hit.started.HasField("degraded")
    assert [s.step.index for s in hit.steps] == list(range(depth + 1, 5))
    assert hit.completed.steps_run == 4 - depth
    # The donor was the same request, so the rest of the way is the same to the last bit.
    assert hit.video == full.video
    after = latents(cache, full.admission.entry_id)
    assert after == {index: before[index] for index in range(depth, 4)}


async def test_a_hit_shows_its_own_prompt_from_there_on(stub: Any, cache: FakeCache) -> None:
    donor = await run(stub, request(seed=1))
    assert donor.admission is not None
    target = await run(stub, reusing(request(seed=2), donor.admission.entry_id, 2))
    assert target.admission is not None
    theirs, ours = latents(cache, donor.admission.entry_id), latents(cache, target.admission.entry_id)
    assert ours[2] == theirs[2]
    assert ours[3] != theirs[3]


def altered(parts: Parts) -> Parts:
    chunk = bytearray(parts[-1].chunk)
    chunk[-1] ^= 1
    return [*parts[:-1], cache_pb2.FetchResponse(chunk=bytes(chunk))]


def replaced(data: bytes) -> Callable[[Parts], Parts]:
    return lambda parts: blob_parts(parts[0].header.step.index, parts[0].header.step.sigma, data)


def tensor(shape: tuple[int, ...], name: str = "latents", dtype: str = "f4", fill: float = 0) -> bytes:
    return safetensors.numpy.save({name: np.full(shape, fill, dtype)})


def other_sigma(parts: Parts) -> Parts:
    parts[0].header.step.sigma = 0.5
    return parts


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(altered, id="altered"),
        pytest.param(lambda parts: parts[:2], id="truncated"),
        pytest.param(lambda parts: [*parts, *parts[1:]], id="too long"),
        pytest.param(lambda parts: parts[1:], id="no header"),
        pytest.param(lambda parts: parts + parts, id="two blobs"),
        pytest.param(lambda parts: [], id="nothing"),
        pytest.param(other_sigma, id="another sigma"),
        pytest.param(replaced(b"no safetensors at all"), id="foreign"),
        pytest.param(replaced(tensor((12, 2, 4, 5))), id="another shape"),
        pytest.param(replaced(tensor((12, 2, 4, 4), dtype="f8")), id="another type"),
        pytest.param(replaced(tensor((12, 2, 4, 4), name="x")), id="another tensor"),
        pytest.param(replaced(tensor((12, 2, 4, 4), fill=float("nan"))), id="NaN"),
    ],
)
async def test_a_donor_that_cannot_be_used_costs_steps_not_the_video(
    stub: Any, cache: FakeCache, spoil: Callable[[Parts], Parts]
) -> None:
    full = await run(stub, request())
    assert full.admission is not None
    cache.spoil = spoil
    found = await run(stub, reusing(request(), full.admission.entry_id, 2))
    assert found.started.degraded.reason == errors.BLOB_CORRUPT
    assert full.admission.entry_id in found.started.degraded.message
    assert found.started.first_step == 0
    assert not found.started.HasField("donor")
    assert found.completed.steps_run == 4
    assert found.video == full.video


async def test_a_donor_that_is_gone(stub: Any, cache: FakeCache) -> None:
    found = await run(stub, reusing(request(), "0" * 64, 1))
    assert found.started.degraded.reason == errors.NOT_FOUND
    assert (found.started.first_step, found.completed.steps_run) == (0, 4)


async def test_nothing_is_stored_unless_asked(stub: Any, cache: FakeCache) -> None:
    found = await run(stub, request(admit=False))
    assert found.kinds[-1] == "completed"
    assert not cache.entries


async def test_one_step_leaves_nothing_to_store(stub: Any, cache: FakeCache) -> None:
    found = await run(stub, request(sigmas=[1.0, 0.0]))
    assert found.completed.steps_run == 1
    assert found.admission == denoiser_pb2.Admission()
    assert not cache.entries


async def logged(service: ServiceProcess, event: str, generation_id: str) -> dict[str, Any]:
    """The log line, once it is there."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for line in service.log.read_text().splitlines():
            if line.startswith("{"):
                record: dict[str, Any] = json.loads(line)
                if record.get("event") == event and record.get("generation_id") == generation_id:
                    return record
        await asyncio.sleep(0.05)
    raise TimeoutError(f"no {event!r} of {generation_id}\n{service.tail()}")


async def test_cancelling_the_call_stops_the_run_between_steps(stub: Any, service: ServiceProcess) -> None:
    what = long_request()
    call = stub.Denoise(what, timeout=SECONDS)
    async for event in call:
        if event.WhichOneof("event") == "step_completed":
            break
    call.cancel()
    stopped = await logged(service, "stopped", what.generation_id)
    assert 1 <= stopped["steps_run"] < 150
    assert (await run(stub, request(admit=False))).completed.steps_run == 4


async def test_a_deadline_stops_the_run_between_steps(stub: Any, service: ServiceProcess) -> None:
    what = long_request()
    error = await failure(stub, what, seconds=1.5)
    assert error.reason == errors.DEADLINE_EXCEEDED
    assert (await logged(service, "stopped", what.generation_id))["steps_run"] < 150


async def test_a_full_queue_refuses_and_recovers(stub: Any) -> None:
    running = stub.Denoise(long_request(), timeout=SECONDS)
    assert (await running.read()).WhichOneof("event") == "started"
    calls = [asyncio.create_task(run(stub, request(admit=False))) for _ in range(4)]
    # One may wait; the others are refused while the first still runs.
    done: set[asyncio.Task[Outcome]] = set()
    while len(done) < 3:
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS)
        calls_left = [call for call in calls if not call.done()]
        if len(calls_left) > 1:
            await asyncio.wait(calls_left, return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS)
    for call in done:
        error = errors.from_rpc_error(call.exception(), "denoiser")  # type: ignore[arg-type]
        assert error.reason == errors.QUEUE_FULL
        assert error.retry_after
        assert error.retry_after > 0
    running.cancel()
    [waiting] = [call for call in calls if call not in done]
    assert (await waiting).completed.steps_run == 4


async def test_unknown_model(stub: Any) -> None:
    what = request()
    what.model_id = "wan2.2-t2v-a14b"
    error = await failure(stub, what)
    assert error.reason == errors.UNKNOWN_MODEL
    assert error.metadata["available"] == "tiny"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Warm(denoiser_pb2.WarmRequest(model_id="other"), timeout=SECONDS)
    assert errors.from_rpc_error(caught.value, "denoiser").reason == errors.UNKNOWN_MODEL


def with_states(shape: tuple[int, ...]) -> Callable[[denoiser_pb2.DenoiseRequest], None]:
    def change(what: denoiser_pb2.DenoiseRequest) -> None:
        what.token_states.CopyFrom(encode_tensor(np.zeros(shape, np.float32)))

    return change


def with_sigmas(*sigmas: float) -> Callable[[denoiser_pb2.DenoiseRequest], None]:
    def change(what: denoiser_pb2.DenoiseRequest) -> None:
        what.schedule.sigmas[:] = sigmas
        what.plan.total_steps = max(1, len(sigmas) - 1)

    return change


def setting(path: str, value: Any) -> Callable[[denoiser_pb2.DenoiseRequest], None]:
    def change(what: denoiser_pb2.DenoiseRequest) -> None:
        *parents, name = path.split(".")
        owner: Any = what
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, value)

    return change


def with_vector(*values: float) -> Callable[[denoiser_pb2.DenoiseRequest], None]:
    def change(what: denoiser_pb2.DenoiseRequest) -> None:
        what.admission.retrieval_vector[:] = values

    return change


@pytest.mark.parametrize(
    ("change", "field_name", "bound"),
    [
        (setting("generation_id", ""), "generation_id", "1 to 128"),
        (setting("generation_id", "g" * 129), "generation_id", "1 to 128"),
        (setting("shape.frames", 5), "shape.frames", "1 to 4"),
        (setting("shape.height", 9), "shape.height", "steps of 2"),
        (setting("shape.width", 1 << 31), "shape.width", "8 to 64"),
        (setting("shape.width", 10), "shape.width", "multiple of 2"),
        (with_sigmas(1.0, 0.5, 0.6, 0.0), "schedule.sigmas", "decreasing"),
        (with_sigmas(1.0, float("nan"), 0.0), "schedule.sigmas", "decreasing"),
        (with_sigmas(1.0, 0.5), "schedule.sigmas", "end at 0"),
        (with_sigmas(), "schedule.sigmas", "2 to"),
        (with_sigmas(*shifted_schedule(151, 5.0)), "schedule.sigmas", "1 to 150"),
        (setting("plan.total_steps", 5), "plan.total_steps", "must be 4"),
        (setting("plan.full_reuse_steps", 4), "plan.full_reuse_steps", "0 to 3"),
        (setting("plan.full_reuse_steps", 1), "plan.donor", "must be set"),
        (setting("plan.donor.entry_id", "0" * 64), "plan.donor", "must be set exactly if"),
        (setting("plan.donor.entry_id", "../x"), "plan.donor.entry_id", "64 lower-case hex"),
        (setting("conditioning_encoder_id", "clip@1"), "conditioning_encoder_id", ENCODER_ID),
        (with_states((5, TEXT_DIM + 1)), "token_states.shape", f"[L, {TEXT_DIM}]"),
        (with_states((MAX_TOKENS + 1, TEXT_DIM)), "token_states.shape", "elements"),
        (with_states((5,)), "token_states.shape", "2 dimensions"),
        (setting("token_states.data", b"short"), "token_states.data", "bytes"),
        (setting("vector_dim", 0), "vector_dim", "1 to 4096"),
        (setting("retrieval_encoder_id", ""), "retrieval_encoder_id", "1 to 512"),
        (setting("admission.prompt", "  "), "admission.prompt", "1 to 2000"),
        (with_vector(1.0), "admission.retrieval_vector", f"vector_dim = {DIM}"),
        (with_vector(*[1.0] * DIM), "admission.retrieval_vector", "L2-normalised"),
        (with_vector(*[float("nan")] * DIM), "admission.retrieval_vector", "L2-normalised"),
    ],
)
async def test_a_field_outside_its_bound_is_named(
    stub: Any, change: Callable[[denoiser_pb2.DenoiseRequest], None], field_name: str, bound: str
) -> None:
    what = request()
    change(what)
    error = await failure(stub, what)
    assert error.reason == errors.INVALID_FIELD
    assert bound in {v.field: v.description for v in error.violations}[field_name]


async def test_every_field_at_fault_is_named_at_once(stub: Any) -> None:
    what = request()
    what.shape.frames = 0
    what.plan.total_steps = 9
    what.token_states.Clear()
    fields = {violation.field for violation in (await failure(stub, what)).violations}
    assert fields == {"shape.frames", "plan.total_steps", "token_states.dtype"}


async def test_describes_its_model_measured(stub: Any) -> None:
    reply = await stub.DescribeModels(denoiser_pb2.DescribeModelsRequest(), timeout=SECONDS)
    [info] = reply.models
    assert (info.model_id, info.conditioning_encoder_id) == ("tiny", ENCODER_ID)
    assert (info.codec.latent_channels, info.codec.spatial_factor, info.codec.causal) == (12, 2, False)
    assert (info.height.min, info.height.max, info.height.multiple) == (8, 64, 2)
    assert list(info.default_schedule.sigmas) == SIGMAS
    assert info.seconds_per_step > 0
    warm = await stub.Warm(denoiser_pb2.WarmRequest(model_id="tiny"), timeout=SECONDS)
    assert warm.model.seconds_per_step > 0


async def test_without_a_cache_the_video_comes_all_the_same(model: Path, tmp_path: Path) -> None:
    with start_service("denoiser", environment(model, f"127.0.0.1:{free_port()}"), tmp_path) as process:
        async with open_channel(process.target) as channel:
            stub = denoiser_pb2_grpc.DenoiserServiceStub(channel)
            found = await run(stub, reusing(request(), "0" * 64, 1))
            assert found.started.degraded.reason == errors.DEPENDENCY_UNAVAILABLE
            assert found.started.degraded.metadata["service"] == "cache"
            assert found.completed.steps_run == 4
            assert found.admission is not None
            assert found.admission.entry_id == ""
            assert found.admission.error.reason == errors.DEPENDENCY_UNAVAILABLE
            assert found.admission.error.metadata["service"] == "cache"


async def test_a_drain_lets_the_running_call_end(model: Path, tmp_path: Path) -> None:
    env = {**environment(model, "127.0.0.1:1"), "CHORUS_DENOISER_DRAIN_SECONDS": str(SECONDS)}
    with start_service("denoiser", env, tmp_path) as process:
        async with open_channel(process.target) as channel:
            what = request(sigmas=shifted_schedule(30, 5.0), admit=False, side=64, frames=4)
            events = aiter(denoiser_pb2_grpc.DenoiserServiceStub(channel).Denoise(what, timeout=SECONDS))
            assert (await anext(events)).WhichOneof("event") == "started"
            stopping = asyncio.create_task(asyncio.to_thread(process.terminate, SECONDS))
            rest = [event async for event in events]
            assert rest[-1].completed.steps_run == 30
            assert await stopping == 0
    lines = process.log.read_text().splitlines()
    [draining] = [i for i, line in enumerate(lines) if '"draining"' in line]
    [denoised] = [i for i, line in enumerate(lines) if '"denoised"' in line]
    assert draining < denoised


async def test_with_the_real_cache(model: Path, tmp_path: Path) -> None:
    store = {
        "CHORUS_CACHE_MILVUS_URI": str(tmp_path / "milvus.db"),
        "CHORUS_CACHE_BLOB_DIR": str(tmp_path / "blobs"),
        "CHORUS_CACHE_MILVUS_SECONDS": str(SECONDS),
    }
    cache = ServiceProcess("cache", store, free_port(), tmp_path / "cache.log")
    process = ServiceProcess(
        "denoiser", environment(model, cache.target), free_port(), tmp_path / "denoiser.log"
    )
    with ExitStack() as cleanup:
        for each in (cache, process):
            each.start(wait=False)
            cleanup.callback(each.stop)
        for each in (cache, process):
            each.wait()
        async with open_channel(process.target) as channel, open_channel(cache.target) as cache_channel:
            stub = denoiser_pb2_grpc.DenoiserServiceStub(channel)
            full = await run(stub, request())
            assert full.admission is not None
            assert full.admission.entry_id, full.admission.error
            lookup = cache_pb2.LookupRequest(
                identity=identity(model), retrieval_encoder_id="retrieval@1", vector=VECTOR, limit=1
            )
            reply = await cache_pb2_grpc.CacheServiceStub(cache_channel).Lookup(lookup, timeout=SECONDS)
            [donor] = reply.donors
            assert donor.entry.entry_id == full.admission.entry_id
            assert [blob.step.index for blob in donor.entry.blobs] == [1, 2, 3]
            hit = await run(stub, reusing(request(), donor.entry.entry_id, 3))
            assert hit.started.first_step == 3
            assert hit.video == full.video


def identity(model: Path) -> latents_pb2.LatentIdentity:
    digest = hashlib.sha256((model.parent / "weights.safetensors").read_bytes()).hexdigest()
    return latents_pb2.LatentIdentity(
        model_id="tiny",
        weights_digest=digest,
        schedule=latents_pb2.Schedule(sigmas=SIGMAS),
        latent_shape=[12, 2, 4, 4],
        latent_dtype=latents_pb2.D_TYPE_FLOAT32,
        codec_id="space-to-depth-1x2x2",
        conditioning_encoder_id=ENCODER_ID,
    )


def test_a_model_that_cannot_be_served_ends_the_process_and_is_named(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model")
    weights = path.parent / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    process = ServiceProcess(
        "denoiser", environment(path, "127.0.0.1:1"), free_port(), tmp_path / "denoiser.log"
    )
    process.start(wait=False)
    assert process.process is not None
    try:
        assert process.process.wait(2 * SECONDS) == 2
    finally:
        process.kill()
    assert "weights.safetensors" in process.tail()
    assert "truncated" in process.tail()
