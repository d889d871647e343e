"""The gateway: `python -m bench.gateway` writes bench/results/gateway.json.

A gateway process in front of a scripted scheduler that answers at once, over real sockets on this machine.
The SDK makes every call of the API, schemathesis generates requests, many clients follow a video and download
files at the same time, and the same calls are made through the gateway and by gRPC in turn. After that a
browser walks through the console in front of the real services, which needs Debian's package chromium.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer
from chorus_client import AsyncChorusClient

from bench import results
from bench.gateway_clients import measure_litellm, measure_openai
from bench.gateway_console import measure_console
from bench.results import Figure
from tests.integration.client.fakes import deployment_in_thread
from tests.integration.gateway.processes import GatewayProcess
from tests.integration.gateway.world import GatewayDeployment
from tests.processes import free_port

OUT: Final = results.RESULTS / "gateway.json"
_EVENTS: Final = 5  # queued, planned, started, step_completed; cancelled at the end
_FILE_BYTES: Final = 8 << 20
_CHECKS: Final = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
)


def measure_schemathesis(url: str, folder: Path, examples: int) -> dict[str, Figure]:
    """Counts the failures that generated requests find, and the requests."""
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"),
            *("--checks", _CHECKS, "--max-examples", str(examples), "--seed", "1", "--no-color"),
            *("--phases", "examples,coverage,fuzzing", "--report", "ndjson"),
            *("--report-ndjson-path", str(folder / "events.ndjson")),
        ],
        capture_output=True,
        text=True,
        timeout=1_800,
        check=False,
        cwd=folder,
    )
    print("\n".join(done.stdout.splitlines()[-25:]))
    found = re.search(r"(\d+) unique failure", done.stdout)
    failures = int(found[1]) if found else 0
    if done.returncode and not failures:
        raise RuntimeError(f"schemathesis ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    generated = re.search(r"Test cases:\s*\n\s*([\d,]+) generated", done.stdout)
    figures = {"schemathesis_failures": results.single(failures, "unique failures")}
    if generated:
        figures["schemathesis_requests"] = results.single(int(generated[1].replace(",", "")), "requests")
    return figures


def read_memory(pid: int, field: str) -> float:
    """Returns VmRSS or VmHWM of a process, in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) / 1024


async def measure_crowd(url: str, pid: int, viewers: int, downloads: int, digest: str) -> dict[str, Figure]:
    """Follows one video many times, downloads another meanwhile, and counts those that lost nothing."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120, trust_env=False) as http:

        async def create(prompt: str) -> str:
            response = await http.post("/v1/videos", json={"prompt": prompt})
            return str(response.raise_for_status().json()["id"])

        followed, complete = await create("slow"), await create("done")
        before = read_memory(pid, "VmRSS")
        arrived = asyncio.Semaphore(0)

        async def follow() -> list[int]:
            numbers = []
            async with http.stream("GET", f"/v1/videos/{followed}/events") as response:
                async for line in response.aiter_lines():
                    if line.startswith("id: "):
                        numbers.append(int(line.removeprefix("id: ")))
                        if len(numbers) == _EVENTS - 1:
                            arrived.release()
            return numbers

        async def download() -> bool:
            received = hashlib.sha256()
            async with http.stream("GET", f"/v1/videos/{complete}/content") as response:
                async for chunk in response.aiter_bytes():
                    received.update(chunk)
            return received.hexdigest() == digest

        following = [asyncio.create_task(follow()) for _ in range(viewers)]
        for _ in following:
            await asyncio.wait_for(arrived.acquire(), 120)
        files = await asyncio.gather(*(download() for _ in range(downloads)))
        peak = read_memory(pid, "VmHWM")
        await http.delete(f"/v1/videos/{followed}")
        seen = await asyncio.wait_for(asyncio.gather(*following), 120)
    held = sum(numbers == list(range(1, _EVENTS + 1)) for numbers in seen)
    return {
        "sse_viewers_held": results.single(held, f"of {viewers} viewers"),
        "downloads_complete": results.single(
            sum(files), f"of {downloads} downloads of {_FILE_BYTES >> 20} MiB"
        ),
        "memory_before_mib": results.single(before, "MiB"),
        "memory_peak_mib": results.single(peak, "MiB"),
    }


async def time_call(call: Callable[[], Awaitable[object]]) -> float:
    """Returns the duration of a call in milliseconds."""
    begin = time.perf_counter()
    await call()
    return 1000 * (time.perf_counter() - begin)


async def measure_overhead(url: str, target: str, repeats: int) -> dict[str, Figure]:
    """Makes the same calls by gRPC and through the gateway in turn; computes medians of the differences."""
    figures: dict[str, Figure] = {}
    async with (
        httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http,
        AsyncChorusClient(target) as client,
    ):
        video = (await http.post("/v1/videos", json={"prompt": "done"})).json()["id"]
        handle = client.handle(video.removeprefix("video_"))

        async def create_http() -> None:
            (await http.post("/v1/videos", json={"prompt": "done", "seed": 1})).raise_for_status()

        async def create_grpc() -> None:
            await client.submit("done", seed=1)

        async def get_http() -> None:
            (await http.get(f"/v1/videos/{video}")).raise_for_status()

        for name, over_http, over_grpc in (
            ("", create_http, create_grpc),
            ("get_", get_http, handle.status),
        ):
            pairs = [(await time_call(over_http), await time_call(over_grpc)) for _ in range(repeats + 20)][
                20:
            ]
            figures[f"{name}overhead_ms_p50"] = results.median(
                [first - second for first, second in pairs], "ms"
            )
            figures[f"{name}grpc_ms_p50"] = results.median([second for _, second in pairs], "ms")
    return figures


def main(
    json_path: Annotated[Path, typer.Option("--json", help="Result file.")] = OUT,
    viewers: Annotated[int, typer.Option(min=1, help="Clients that follow a video.")] = 200,
    downloads: Annotated[int, typer.Option(min=1, help="Downloads at the same time.")] = 50,
    repeats: Annotated[int, typer.Option(min=1, help="Calls of each kind for the overhead.")] = 300,
    examples: Annotated[int, typer.Option(min=1, help="Generated requests for each operation.")] = 50,
    openai: Annotated[
        list[str] | None, typer.Option(help="Another version of the openai SDK to install; repeatable.")
    ] = None,
    litellm: Annotated[
        str | None, typer.Option(help="Version of LiteLLM to install. Default: none is measured.")
    ] = None,
) -> None:
    """Measures a gateway and writes the figures."""
    with deployment_in_thread(GatewayDeployment) as deployment, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        variables = {"CHORUS_GATEWAY_SCHEDULER_TARGET": deployment.target}
        gateway = GatewayProcess("gateway", variables, free_port(), folder / "gateway.log")
        gateway.start()
        url = f"http://127.0.0.1:{gateway.port}"
        try:
            figures = measure_openai(url, openai or [])
            if litellm is not None:
                figures |= measure_litellm(url, litellm)
            figures |= asyncio.run(measure_overhead(url, deployment.target, repeats))
            deployment.scheduler.video = bytes(range(256)) * (_FILE_BYTES >> 8)
            digest = hashlib.sha256(deployment.scheduler.video).hexdigest()
            figures |= asyncio.run(measure_crowd(url, gateway.pid, viewers, downloads, digest))
            figures |= measure_schemathesis(url, folder, examples)
            tracebacks = gateway.log.read_text().count("Traceback")
            figures["tracebacks_logged"] = results.single(tracebacks, "tracebacks")
        finally:
            gateway.stop()
    figures |= measure_console()
    for figure_name, figure in figures.items():
        print(f"{figure_name}: {figure.value:.4g} {figure.unit}", flush=True)
    results.write(json_path, f"python -m bench.gateway {shlex.join(sys.argv[1:])}".strip(), figures)


if __name__ == "__main__":
    typer.run(main)
