"""`chorus explain`. The libraries that draw are imported when a picture is drawn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from chorus.scheduler.v1.scheduler_pb2 import Generation, GenerationSpec
from chorus_client import AsyncChorusClient, ChorusError, SpecOptions
from chorus_client.files import write_atomically
from chorus_client.report import GenerationReport, build_report
from chorus_rpc import errors

from chorus_cli.connect import connect_scheduler
from chorus_cli.explain.report import render_report, report_fields
from chorus_cli.following import options_from_spec, run
from chorus_cli.identifiers import find_generation
from chorus_cli.options import GenerationId, Json, Target
from chorus_cli.output import Output, check_folder, one_line
from chorus_cli.plugins import not_installed

if TYPE_CHECKING:
    from chorus_cli.explain.picture import Row

PACKAGE: Final = "chorus-client"
# Reasons for a donor's video that is not available: deleted, never kept, or damaged.
_GONE: Final = frozenset({errors.NOT_FOUND, errors.WRONG_STATE, errors.BLOB_CORRUPT})


def explain(
    generation_id: GenerationId,
    png: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="File that receives a picture of donor, regions and result. Needs chorus-client[explain].",
        ),
    ] = None,
    mp4: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="File that receives the same as a film. Needs chorus-client[explain].",
        ),
    ] = None,
    full: Annotated[
        bool | None,
        typer.Option(
            "--full/--no-full",
            help="Also draw the full computation, which generates a video without reuse. Default: ask on a "
            "terminal, else no.",
        ),
    ] = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Show what a generation reused, what it computed and why.

    A generation that has not ended is followed to its end first.
    """
    out = Output(as_json)

    async def main() -> None:
        check_folder(png, "png")
        check_folder(mp4, "mp4")
        async with connect_scheduler(target) as client:
            # First, so that a wrong id or an unreachable server is reported immediately.
            handle = client.handle((await find_generation(client, generation_id)).id)
            events = [event.proto async for event in handle.events()]
            generation = await handle.status()
            report = build_report(generation.proto, events)
            width = out.console.width if out.console.is_terminal else None
            out.print(render_report(report, width), explanation=report_fields(report))
            if png is not None or mp4 is not None:
                generation.raise_for_state()
                await _draw(client, report, png, mp4, full, out)

    run(main(), out)


async def _draw(
    client: AsyncChorusClient,
    report: GenerationReport,
    png: Path | None,
    mp4: Path | None,
    full: bool | None,
    out: Output,
) -> None:
    try:
        from chorus_cli.explain.picture import encode_png, film, sheet
        from chorus_cli.explain.video import encode_mp4
    except ImportError as error:
        raise not_installed("explain", PACKAGE, error) from None
    generation = report.generation
    wanted = _want_full(generation, full, out)
    rows = [row async for row in _rows(client, report, wanted, out)]
    title = f"{generation.generation_id}: {one_line(generation.spec.prompt)}"
    if png is not None:
        write_atomically(png, encode_png(sheet(title, rows)))
        out.print(str(png), png=str(png))
    if mp4 is not None:
        write_atomically(mp4, encode_mp4(film(rows), generation.video.frames_per_second or 8))
        out.print(str(mp4), mp4=str(mp4))


def _want_full(generation: Generation, full: bool | None, out: Output) -> bool:
    """Decides whether the full computation is generated; asks on a terminal if no option decides it."""
    if not generation.HasField("donor"):
        _note(out, "nothing was reused: the result is the full computation")
        return False
    if full is None and out.is_interactive:
        steps = generation.plan.total_steps
        return typer.confirm(
            f"Generate the video without reuse ({steps} steps) for comparison?", default=False, err=True
        )
    if full is None:
        _note(out, "the full computation is left out: --full generates it")
    return bool(full)


async def _rows(
    client: AsyncChorusClient, report: GenerationReport, full: bool, out: Output
) -> AsyncIterator[Row]:
    """Yields donor, regions, result and full computation, those that exist."""
    from chorus_cli.explain.picture import Row, region_video, unpack
    from chorus_cli.explain.video import decode_mp4

    generation, total = report.generation, len(report.steps)
    if generation.HasField("donor"):
        donor = await _fetch_donor_video(client, generation, out)
        if donor is not None:
            yield Row(f"donor: {one_line(generation.donor.prompt)}", decode_mp4(donor))
    result = decode_mp4((await client.handle(generation.generation_id).result()).data)
    for step in report.steps:
        if step.active:
            try:
                mask = unpack(step.active, step.grid)
            except ValueError as error:
                raise ChorusError(errors.INTERNAL, f"step {step.number}: {error}") from None
            label = f"step {step.number} of {total}: {step.own:.0%} own, {step.computed:.0%} computed"
            yield Row(label, region_video(mask, *result.shape[1:3]))
    yield Row(f"result, {generation.timings.total_seconds:.2f} s", result)
    if full:
        video = await client.generate(generation.spec.prompt, **full_options(generation.spec))
        seconds = video.generation.timings.total_seconds
        yield Row(f"full computation, {seconds:.2f} s", decode_mp4(video.data))


async def _fetch_donor_video(client: AsyncChorusClient, generation: Generation, out: Output) -> bytes | None:
    """Returns the donor's video; if it is not available, writes a note and returns None."""
    identifier = generation.donor.generation_id
    try:
        if identifier:
            return (await client.handle(identifier).result()).data
        why = "its entry does not name the generation"
    except ChorusError as error:
        if error.reason not in _GONE:
            raise
        why = error.message
    _note(out, f"the donor's video is left out: {why}")
    return None


def _note(out: Output, text: str) -> None:
    """Writes a note for people and for programs."""
    out.status(text)
    out.json_line(note=text)


def full_options(spec: GenerationSpec) -> SpecOptions:
    """Returns the options that request the same as an accepted specification, without reuse."""
    options = options_from_spec(spec)
    options["reuse"], options["explicit_reuse"], options["no_store"] = "off", None, True
    options["max_reuse_steps"] = options["donor"] = None
    options["pin"] = options["lifetime"] = None
    return options
