"""Verifies one trace from the client through every service, with a link to the donor's trace."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition

import grpc
import pytest
from chorus_rpc import semconv
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.processes import ROOT
from tests.stack import Stack, running_stack


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """OTLP receiver that keeps the received spans."""

    spans: dict[bytes, tuple[str, trace_pb2.Span]] = field(default_factory=dict)
    changed: Condition = field(default_factory=Condition)

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self.changed:
            for resource in request.resource_spans:
                service = next(
                    a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
                )
                for scope in resource.scope_spans:
                    self.spans |= {span.span_id: (service, span) for span in scope.spans}
            self.changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(
        self, trace_id: bytes, want: set[str], seconds: float = 30.0
    ) -> list[tuple[str, trace_pb2.Span]]:
        """Waits for every wanted span of a trace, and for the parent of each; returns all its spans."""
        end = time.monotonic() + seconds
        with self.changed:
            while True:
                found = [item for item in self.spans.values() if item[1].trace_id == trace_id]
                ids = {b"", *(span.span_id for _, span in found)}
                missing = want - {span.name for _, span in found}
                # A call whose stream is still read ends after the span that contains it.
                missing |= {f"parent of {s.name}" for _, s in found if s.parent_span_id not in ids}
                if not missing:
                    return found
                left = end - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    raise AssertionError(f"missing {missing}; got {Counter((s, x.name) for s, x in found)}")


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    received = Collector()
    add_servicer: Callable[[object, grpc.Server], None] = (
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    )
    add_servicer(received, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield received, f"http://127.0.0.1:{port}"
    server.stop(0).wait(5)


@pytest.fixture(scope="module")
def otel(collector: tuple[Collector, str]) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector[1], "OTEL_BSP_SCHEDULE_DELAY": "100"}


@pytest.fixture(scope="module")
def stack(otel: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("traced"), otel) as running:
        yield running


def generate(stack: Stack, otel: dict[str, str], out: Path, color: str) -> str:
    """Runs `chorus generate`; returns the generation's trace id in hex."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "chorus_cli", "generate", f"a {color} circle moving left", "--json"),
            *("--target", stack.target, "--seed", "1", "-o", str(out)),
        ],
        env={**os.environ, **otel},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr + stack.logs()
    found = re.findall(r'"trace_?[iI]d": ?"([0-9a-f]{32})"', done.stdout)
    assert found, done.stdout
    return str(found[-1])


async def test_generation_has_one_trace_with_a_link_to_the_donors(
    stack: Stack, collector: tuple[Collector, str], otel: dict[str, str], tmp_path: Path
) -> None:
    received, _ = collector
    always = {
        semconv.SPAN_GENERATION,
        semconv.SPAN_PLAN,
        semconv.SPAN_DENOISE,
        semconv.SPAN_STEP,
        semconv.SPAN_DECODE,
        semconv.SPAN_ADMIT,
        semconv.SPAN_INDEX_SEARCH,
        semconv.SPAN_INDEX_UPSERT,
        semconv.SPAN_BLOB_PUT,
        "/chorus.scheduler.v1.SchedulerService/SubmitGeneration",
        "/chorus.embedder.v1.EmbedderService/Embed",
        "/chorus.cache.v1.CacheService/Lookup",
        "/chorus.denoiser.v1.DenoiserService/Denoise",
    }
    donor_trace = await asyncio.to_thread(generate, stack, otel, tmp_path / "a.mp4", "red")
    donor = await asyncio.to_thread(received.trace, bytes.fromhex(donor_trace), always)
    assert {service for service, _ in donor} == {
        "chorus-client", "chorus-scheduler", "chorus-embedder", "chorus-cache", "chorus-denoiser",
    }  # fmt: skip
    assert sum(span.name == semconv.SPAN_STEP for _, span in donor) == 4

    by_id = {span.span_id: span for _, span in donor}
    roots = [span for _, span in donor if not span.parent_span_id]
    assert len(roots) == 1, [r.name for r in roots]
    orphans = [span.name for _, span in donor if span.parent_span_id and span.parent_span_id not in by_id]
    assert not orphans

    def parents(name: str) -> set[str]:
        return {by_id[s.parent_span_id].name for _, s in donor if s.name == name}

    assert parents(semconv.SPAN_STEP) == {semconv.SPAN_DENOISE}
    assert parents("/chorus.cache.v1.CacheService/Admit") >= {semconv.SPAN_ADMIT}

    hit_trace = await asyncio.to_thread(generate, stack, otel, tmp_path / "b.mp4", "blue")
    assert hit_trace != donor_trace
    # A hit on a model with a host adapter stores nothing.
    admitting = {semconv.SPAN_ADMIT, semconv.SPAN_INDEX_UPSERT, semconv.SPAN_BLOB_PUT}
    fetching = {semconv.SPAN_FETCH_DONOR, semconv.SPAN_BLOB_GET}
    hit = await asyncio.to_thread(received.trace, bytes.fromhex(hit_trace), (always - admitting) | fetching)
    links = [link.trace_id.hex() for _, span in hit for link in span.links]
    assert donor_trace in links
