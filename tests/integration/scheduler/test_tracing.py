"""Verifies, on the real process, that one generation is one trace across the queue and a restart."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import semconv
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.integration.scheduler.world import World, check_sequence, kinds

pytestmark = pytest.mark.asyncio(loop_scope="module")

DONOR_TRACE = "d" * 32
SUBMIT = "/chorus.scheduler.v1.SchedulerService/SubmitGeneration"
EMBED = "/chorus.embedder.v1.EmbedderService/Embed"
ALIGN = "/chorus.embedder.v1.EmbedderService/Align"
LOOKUP = "/chorus.cache.v1.CacheService/Lookup"
DESCRIBE = "/chorus.denoiser.v1.DenoiserService/DescribeModels"
DENOISE = "/chorus.denoiser.v1.DenoiserService/Denoise"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Stores the spans that the scheduler exports."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []
        self.changed = asyncio.Condition()

    async def Export(self, request: Any, context: Any) -> Any:
        async with self.changed:
            for resource in request.resource_spans:
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            self.changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    async def trace(self, trace_id: str, count: int, *names: str) -> list[trace_pb2.Span]:
        """Returns the spans of a trace once `count` of each name are among them."""

        def received() -> list[trace_pb2.Span]:
            return [span for span in self.spans if span.trace_id.hex() == trace_id]

        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(
                lambda: all(sum(span.name == name for span in received()) >= count for name in names)
            )
        return received()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def collector() -> AsyncIterator[tuple[Collector, int]]:
    server = grpc.aio.server()
    received = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(received, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield received, port
    await server.stop(0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    collector: tuple[Collector, int], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector[1]}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    async with World(tmp_path_factory.mktemp("traced"), settings) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


async def submit(world: World) -> tuple[pb.Generation, str]:
    """Submits with a traceparent; returns the generation and the trace id."""
    trace_id = secrets.token_hex(16)
    reply = await world.api.SubmitGeneration(
        pb.SubmitGenerationRequest(request_id=str(uuid.uuid4()), spec=pb.GenerationSpec(prompt="a red car")),
        metadata=(("traceparent", f"00-{trace_id}-{secrets.token_hex(8)}-01"),),
        timeout=20,
    )
    assert reply.generation.trace_id == trace_id
    return reply.generation, trace_id


async def test_generation_is_one_trace_with_a_link_to_the_donors(
    world: World, collector: tuple[Collector, int]
) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    world.cache.donors[0].entry.traceparent = f"00-{DONOR_TRACE}-{'e' * 16}-01"
    job, trace_id = await submit(world)
    check_sequence(await world.events(job))
    # The call of the denoiser ends after the generation, with the admission.
    spans = await collector[0].trace(trace_id, 1, semconv.SPAN_GENERATION, DENOISE)
    by_id = {span.span_id: span for span in spans}
    parent = {span.name: by_id[span.parent_span_id].name for span in spans if span.parent_span_id in by_id}
    # Called within the first Submit if no model was known before.
    parent.pop(DESCRIBE, None)
    assert parent == {
        semconv.SPAN_GENERATION: SUBMIT,
        EMBED: semconv.SPAN_GENERATION,
        LOOKUP: semconv.SPAN_GENERATION,
        semconv.SPAN_COMPARE: semconv.SPAN_GENERATION,
        ALIGN: semconv.SPAN_COMPARE,
        semconv.SPAN_PLAN: semconv.SPAN_GENERATION,
        semconv.SPAN_DISPATCH: semconv.SPAN_GENERATION,
        DENOISE: semconv.SPAN_DISPATCH,
    }
    links = {span.name: [link.trace_id.hex() for link in span.links] for span in spans if span.links}
    assert links == {semconv.SPAN_DISPATCH: [DONOR_TRACE]}
    [generation] = [span for span in spans if span.name == semconv.SPAN_GENERATION]
    attributes = {a.key: a.value for a in generation.attributes}
    assert attributes[semconv.GENERATION_ID].string_value == job.generation_id
    assert attributes[semconv.CACHE_DECISION].string_value == "hit"
    assert attributes[semconv.REUSE_STEPS].int_value == 3
    # Prompts are not exported.
    assert not any(b"red car" in span.SerializeToString() for span in spans)
    for fake in (world.embedder, world.cache, world.denoiser):
        assert trace_id in fake.metadata[0]["traceparent"]


async def test_trace_continues_after_kill_9(world: World, collector: tuple[Collector, int]) -> None:
    world.denoiser.pause_before = 2
    job, trace_id = await submit(world)
    await world.events(job, until="step_completed")
    world.process.kill()
    world.denoiser.go.set()
    await world.boot()
    check_sequence(await world.events(job))
    await collector[0].trace(trace_id, 1, semconv.SPAN_GENERATION)
    assert {m["traceparent"].split("-")[1] for m in world.denoiser.metadata} == {trace_id}


async def test_traced_call_can_be_cancelled_and_can_break(
    world: World, collector: tuple[Collector, int]
) -> None:
    world.denoiser.pause_before = 1
    job, _ = await submit(world)
    await world.events(job, until="step_completed")
    await world.cancel(job)
    assert await asyncio.wait_for(world.denoiser.stopped.get(), 20) == job.generation_id
    job, trace_id = await submit(world)
    await world.events(job, until="step_completed")
    await world.denoiser.die()
    world.denoiser.go.set()
    await world.denoiser.start()
    events = await world.events(job)
    check_sequence(events)
    assert kinds(events)[-1] == "succeeded"
    spans = await collector[0].trace(trace_id, 2, semconv.SPAN_GENERATION)
    failed = [span for span in spans if span.name == semconv.SPAN_GENERATION and span.status.code]
    assert len(failed) == 1
