"""What the scheduler gains from single steps and from runs under way: `python -m bench.scheduler_segments`.

The four services and a second denoiser run on this machine, on the shipped model. A burst of similar requests
is computed in full, with donors as the cache has them when a run starts, and with requests that wait for a
run under way. An urgent request comes in the middle of a long run, which gives way or does not. A denoiser is
killed in the middle of a run. Writes bench/results/scheduler_segments.json.
"""

from __future__ import annotations

import asyncio
import itertools
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus.scheduler.v1 import scheduler_pb2_grpc
from chorus_rpc.channels import open_channel

from bench import results
from bench.results import Figure
from tests.e2e.calls import get, submit, watch_to_end
from tests.processes import ServiceProcess, free_port
from tests.stack import Stack, running_stack

OUT: Final = results.RESULTS / "scheduler_segments.json"
_COLOURS: Final = ("black", "white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
_SIZES: Final = ("big", "small")
_GROUNDS: Final = ("grey", "turquoise", "dark blue", "light pink", "white")
_LONG_STEPS: Final = 30
# Of each series of bursts: whether requests wait for runs under way, and the policy.
_VARIANTS: Final = {
    "looking_up_at_start": ("false", plan_pb2.REUSE_POLICY_BALANCED),
    "waiting_for_donors": ("true", plan_pb2.REUSE_POLICY_BALANCED),
    "waiting_for_donors_fast": ("true", plan_pb2.REUSE_POLICY_FAST),
}
_SECONDS: Final = 300.0


@contextmanager
def deploy(folder: Path, **settings: str) -> Iterator[Stack]:
    """Runs all services, with two denoisers."""
    port = free_port()
    first = free_port()
    targets = f"127.0.0.1:{first},127.0.0.1:{port}"
    env = {
        "CHORUS_CACHE_CAPACITY_BYTES": str(1 << 30),
        "CHORUS_SCHEDULER_DENOISER_TARGET": targets,
        **{f"CHORUS_SCHEDULER_{name}": value for name, value in settings.items()},
    }
    with running_stack(folder, env, ports={"denoiser": first}) as stack:
        second = ServiceProcess("denoiser", stack.environment, port, folder / "denoiser-2.log")
        second.start()
        try:
            yield stack
        finally:
            second.stop()


def list_prompts(ground: str) -> list[str]:
    """Returns 20 prompts that differ in one or two words."""
    return [
        f"the {size} {colour} square moving right, {ground} background"
        for size, colour in itertools.product(_SIZES, _COLOURS)
    ]


@dataclass(frozen=True)
class Burst:
    """What the generations of a burst took together.

    Attributes:
        seconds: duration of their computed steps, in seconds.
        steps: number of computed steps; a step of a region counts by its share of the tokens.
        hits: number of generations that reused latents.
    """

    seconds: float
    steps: float
    hits: int


async def run_burst(scheduler: Any, prompts: Sequence[str], **spec: Any) -> Burst:
    """Submits the prompts at once and waits for their ends."""
    jobs = await asyncio.gather(*(submit(scheduler, prompt, **spec) for prompt in prompts))
    seconds, steps, hits = 0.0, 0.0, 0
    for job in jobs:
        events = await watch_to_end(scheduler, job.generation_id, seconds=_SECONDS)
        ended = await get(scheduler, job.generation_id)
        if ended.state != pb.GENERATION_STATE_SUCCEEDED:
            raise RuntimeError(f"a generation ended as {pb.GenerationState.Name(ended.state)}: {ended.error}")
        seconds += ended.timings.denoise_seconds
        steps += sum(event.step_completed.computed_share for event in events)
        hits += ended.plan.reuse_steps > 0
    return Burst(seconds, steps, hits)


async def measure_bursts(folder: Path, bursts: int) -> dict[str, Figure]:
    """Measures bursts on other backgrounds, each in full, and without and with waiting for runs under way."""
    figures: dict[str, Figure] = {}
    for name, (setting, policy) in _VARIANTS.items():
        pairs: list[tuple[Burst, Burst]] = []
        with deploy(folder / name, WAIT_FOR_DONORS=setting) as stack:
            async with open_channel(stack.target) as channel:
                scheduler = scheduler_pb2_grpc.SchedulerServiceStub(channel)
                await run_burst(scheduler, ["a red circle", "a blue circle"] * 2, no_store=True)
                for ground in _GROUNDS[:bursts]:
                    prompts = list_prompts(ground)
                    # At submission the cache has none of them: a plan made then is a full computation.
                    full = await run_burst(scheduler, prompts, reuse=plan_pb2.REUSE_POLICY_OFF, no_store=True)
                    pairs.append((await run_burst(scheduler, prompts, reuse=policy), full))
        unit = "of looking up at submission"
        figures |= {
            f"compute_ratio_{name}": results.mean([own.seconds / full.seconds for own, full in pairs], unit),
            f"steps_ratio_{name}": results.mean([own.steps / full.steps for own, full in pairs], unit),
            f"hits_{name}": results.mean([own.hits for own, _ in pairs], f"of {len(prompts)}"),
        }
    return {"coalescing_compute_ratio": figures["compute_ratio_waiting_for_donors"], **figures}


async def measure_urgent(folder: Path, repeats: int, resume_bytes: int) -> list[float]:
    """Returns the seconds from submission to the video of urgent requests, each during two long runs."""
    found = []
    with deploy(folder, RESUME_BYTES=str(resume_bytes)) as stack:
        async with open_channel(stack.target) as channel:
            scheduler = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            full: dict[str, Any] = {"reuse": plan_pb2.REUSE_POLICY_OFF, "no_store": True}
            for number in range(repeats):
                jobs = [
                    await submit(scheduler, f"a red square {number}", seed=seed, steps=_LONG_STEPS, **full)
                    for seed in (1, 2)
                ]
                for job in jobs:
                    await wait_for_step(scheduler, job)
                begin = time.perf_counter()
                urgent = await submit(
                    scheduler, f"a white circle {number}", priority=pb.PRIORITY_HIGH, **full
                )
                await watch_to_end(scheduler, urgent.generation_id, seconds=_SECONDS)
                found.append(time.perf_counter() - begin)
                for job in jobs:
                    await watch_to_end(scheduler, job.generation_id, seconds=_SECONDS)
    return found


async def measure_kills(folder: Path, repeats: int) -> list[int]:
    """Returns the steps that were computed again after the kill of the denoiser in the middle of each run."""
    repeated = []
    with running_stack(folder) as stack:
        async with open_channel(stack.target) as channel:
            scheduler = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            for number in range(repeats):
                job = await submit(
                    scheduler,
                    f"a red square {number}",
                    steps=_LONG_STEPS,
                    reuse=plan_pb2.REUSE_POLICY_OFF,
                    no_store=True,
                )
                await wait_for_step(scheduler, job)
                stack["denoiser"].kill()
                stack["denoiser"].start()
                events = await watch_to_end(scheduler, job.generation_id, seconds=_SECONDS)
                steps = [
                    event.step_completed.step.index for event in events if event.HasField("step_completed")
                ]
                # The step in progress at the kill was reported by none and is computed again.
                repeated.append(len(steps) - len(set(steps)) + 1)
    return repeated


async def wait_for_step(scheduler: Any, job: pb.Generation) -> None:
    """Waits until the first step of a generation is completed."""
    request = pb.WatchGenerationRequest(generation_id=job.generation_id)
    async for reply in scheduler.WatchGeneration(request, timeout=_SECONDS):
        if reply.event.HasField("step_completed"):
            return


async def measure(bursts: int, repeats: int) -> dict[str, Figure]:
    with tempfile.TemporaryDirectory(prefix="chorus-segments-") as name:
        folder = Path(name)
        figures = await measure_bursts(folder / "bursts", bursts)
        gives_way = await measure_urgent(folder / "urgent", repeats, 512 << 20)
        waits = await measure_urgent(folder / "waits", repeats, 0)
        figures["urgent_seconds"] = results.median(gives_way, "s")
        figures["urgent_seconds_without_giving_way"] = results.median(waits, "s")
        kills = await measure_kills(folder / "kills", repeats)
        figures["steps_repeated_after_kill"] = results.mean([float(each) for each in kills], "steps")
    return figures


def main(
    bursts: Annotated[int, typer.Option(min=1, max=len(_GROUNDS), help="Number of bursts.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Number of urgent requests and kills.")] = 5,
) -> None:
    """Measures and writes the result file."""
    figures = asyncio.run(measure(bursts, repeats))
    for name, figure in figures.items():
        print(f"{name}: {figure.value:.4g} {figure.unit}")
    results.write(OUT, f"python -m bench.scheduler_segments {shlex.join(sys.argv[1:])}".strip(), figures)


if __name__ == "__main__":
    typer.run(main)
