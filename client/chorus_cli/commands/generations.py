"""`chorus jobs`, `get`, `url`, `watch`, `report`, `priority`, `cancel` and `rm`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from chorus_client.handles import WATCH_SECONDS
from chorus_client.spec import parse_duration
from chorus_rpc.errors import invalid

from chorus_cli import rendering
from chorus_cli.connect import connect_scheduler
from chorus_cli.filters import parse_labels, parse_moment
from chorus_cli.following import follow, run, save
from chorus_cli.identifiers import find_generation, shorten
from chorus_cli.options import (
    DecisionChoice,
    GenerationId,
    Json,
    Labels,
    OutFile,
    PriorityChoice,
    ProblemChoice,
    StateChoice,
    Target,
)
from chorus_cli.output import Output, check_folder


def jobs(
    state: Annotated[
        StateChoice | None, typer.Option(help="State of the generations to list. Default: every state.")
    ] = None,
    label: Labels = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Text in the prompt; upper and lower case are the same."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Earliest acceptance: an age such as 12h, or 2026-01-31T18:00."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time before which they were accepted, as --since.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="Model of the generations. Default: every model.")
    ] = None,
    decision: Annotated[
        DecisionChoice | None,
        typer.Option(help="Whether they reused some steps, none, or all. Default: every generation."),
    ] = None,
    edit: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Kind of edit from the donor's prompt, such as colour."),
    ] = None,
    reported: Annotated[bool, typer.Option("--reported", help="Only those with a report.")] = False,
    donor: Annotated[
        str | None, typer.Option(metavar="ID", help="Generation whose steps they take; its whole id.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="Upper bound on the number of generations to list.")
    ] = 20,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List generations that match every option, newest first.

    On a terminal ids are shortened; every command accepts short ids. When piped, nothing is cut, and tabs
    separate the columns.
    """
    out = Output(as_json)

    async def main() -> None:
        now = datetime.now(UTC)
        after, before = parse_moment(since, "since", now), parse_moment(until, "until", now)
        labels = parse_labels(label or [])
        async with connect_scheduler(target) as client:
            found = await client.list(
                state,
                limit,
                labels=labels,
                prompt_contains=prompt,
                created_after=after,
                created_before=before,
                model=model,
                decision=decision,
                edit=edit,
                reported=reported,
                donor=donor,
            )
        for generation in found:
            out.json_line(generation=generation.proto)
        if as_json:
            return
        if not found:
            out.status("no generations")
            return
        ids = [generation.id for generation in found]
        protos = [generation.proto for generation in found]
        if out.console.is_terminal:
            out.print(rendering.jobs_table(protos, shorten(ids), out.console.width))
        else:
            out.print(rendering.jobs_table(protos, ids, None))

    run(main(), out)


def get(
    generation_id: GenerationId,
    output: OutFile = None,
    thumbnail: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="File that receives a small picture (JPEG) in place of the mp4, unless -o is given too.",
        ),
    ] = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Show the state of a generation; download a finished video, or its thumbnail."""
    out = Output(as_json)

    async def main() -> None:
        check_folder(output, "output")
        check_folder(thumbnail, "thumbnail")
        async with connect_scheduler(target) as client:
            generation = await find_generation(client, generation_id)
            if not generation.done:
                plan = generation.plan
                steps = f", {generation.steps_completed} of {plan.total_steps} steps done" if plan else ""
                start = generation.predicted_start
                left = max(0.0, (start - datetime.now(UTC)).total_seconds()) if start else None
                steps += f", starts in about {left:.0f} s" if left is not None else ""
                out.print(f"{generation.id} {generation.state}{steps}", generation=generation.proto)
                return
            generation.raise_for_state()
            handle = client.handle(generation.id)
            if thumbnail is not None:
                picture = await handle.thumbnail()
                await asyncio.to_thread(picture.save, thumbnail)
                out.print(f"{thumbnail}: {picture.width} x {picture.height}", thumbnail=str(thumbnail))
            if thumbnail is None or output is not None:
                await save(await handle.result(), output, out)

    run(main(), out)


def url(
    generation_id: GenerationId,
    lifetime: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Time for which the URL is valid, such as 10m or 7d (the most). Default: the server's.",
        ),
    ] = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Print a URL from which anyone can download the video for some time, by plain HTTP.

    Needs a scheduler that stores videos in an object store (CHORUS_SCHEDULER_VIDEO_STORE).
    """
    out = Output(as_json)

    async def main() -> None:
        seconds = None if lifetime is None else parse_duration(lifetime, "lifetime")
        async with connect_scheduler(target) as client:
            generation = await find_generation(client, generation_id)
            found = await client.handle(generation.id).url(lifetime=seconds)
        out.status(f"valid until {found.expires:%Y-%m-%d %H:%M:%S} UTC")
        out.print(found.url, url=found.url, expires=found.expires.isoformat())

    run(main(), out)


def watch(
    generation_id: GenerationId,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            dir_okay=False,
            help="File that receives the mp4; default none.",
        ),
    ] = None,
    after_sequence: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Sequence number after which events are shown; 0: all."),
    ] = 0,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Upper bound on the wait for the end, in seconds.")
    ] = WATCH_SECONDS,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Follow a generation to its end; -o also downloads its video. Ctrl-C stops the display only."""
    out = Output(as_json)

    async def main() -> None:
        check_folder(output, "output")
        async with connect_scheduler(target) as client:
            generation = await find_generation(client, generation_id)
            generation, saved = await follow(client, generation, after_sequence, timeout, out)
            if output is None:
                summary = rendering.summarize(generation.proto, saved)
                out.print(summary, generation=generation.proto)
            else:
                await save(await client.handle(generation.id).result(), output, out)

    run(main(), out)


def report(
    generation_id: GenerationId,
    problem: Annotated[
        ProblemChoice | None, typer.Option(help="What is wrong; needed unless the report is withdrawn.")
    ] = None,
    comment: Annotated[
        str, typer.Option(metavar="TEXT", help="More about it: at most 1,000 bytes, without line breaks.")
    ] = "",
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Remove the report.")] = False,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Report what is wrong with a video, in place of an earlier report, or withdraw the report."""
    out = Output(as_json)

    async def main() -> None:
        if withdraw == (problem is not None) or (withdraw and comment):
            raise invalid("problem", "give --problem, with --comment if you like, or --withdraw alone")
        async with connect_scheduler(target) as client:
            found = await find_generation(client, generation_id)
            handle = client.handle(found.id)
            if problem is None:
                generation = await handle.withdraw_report()
            else:
                generation = await handle.report(problem.replace("-", "_"), comment)
        words = "has no report" if generation.report is None else f"reported: {problem}"
        out.print(f"{generation.id} {words}", generation=generation.proto)

    run(main(), out)


def priority(
    generation_id: GenerationId,
    new: Annotated[PriorityChoice, typer.Argument(metavar="CLASS", help="New class: low, normal or high.")],
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Change the class of a generation that waits in the queue."""
    out = Output(as_json)

    async def main() -> None:
        async with connect_scheduler(target) as client:
            found = await find_generation(client, generation_id)
            generation = await client.handle(found.id).change_priority(new)
        place = f", position {generation.queue_position}" if generation.queue_position else ""
        out.print(f"{generation.id} {generation.priority}{place}", generation=generation.proto)

    run(main(), out)


def cancel(generation_id: GenerationId, target: Target = None, as_json: Json = False) -> None:
    """Cancel a generation at its next step. A generation that has ended does not change."""
    out = Output(as_json)

    async def main() -> None:
        async with connect_scheduler(target) as client:
            found = await find_generation(client, generation_id)
            generation = await client.handle(found.id).cancel()
        out.print(f"{generation.id} {generation.state}", generation=generation.proto)

    run(main(), out)


def rm(
    generation_ids: Annotated[
        list[str],
        typer.Argument(metavar="ID...", help="Ids of generations that have ended, or their beginnings."),
    ],
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Delete generations that have ended, with their videos. Their latents stay in the cache."""
    out = Output(as_json)

    async def main() -> None:
        async with connect_scheduler(target) as client:
            # All ids are looked up before anything is deleted.
            found = [await find_generation(client, each) for each in generation_ids]
            for generation in found:
                await client.handle(generation.id).delete()
                out.print(f"{generation.id} deleted", generation=generation.proto)

    run(main(), out)
