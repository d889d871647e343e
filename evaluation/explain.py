"""`chorus explain`: the command. What pictures need is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from chorus.scheduler.v1.scheduler_pb2 import Generation, GenerationSpec
from chorus_cli.output import Output, check_folder, one_line
from chorus_cli.plugins import not_installed
from chorus_client import ChorusClient, ChorusError, SpecOptions
from chorus_client.files import write_atomically
from chorus_rpc import errors

from evaluation.trace_report import GenerationReport, account_of, plain, words

if TYPE_CHECKING:
    from evaluation.picture import Row

# A donor's video may be gone: deleted, never kept, or damaged.
_GONE: Final = frozenset({errors.NOT_FOUND, errors.WRONG_STATE, errors.BLOB_CORRUPT})


def explain(
    generation_id: Annotated[str, typer.Argument(metavar="ID")],
    png: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Draw donor, regions, result and full computation.")
    ] = None,
    mp4: Annotated[Path | None, typer.Option(dir_okay=False, help="The same as a film.")] = None,
    no_full: Annotated[
        bool, typer.Option("--no-full", help="Draw no full computation, which has to be generated first.")
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            envvar="CHORUS_TARGET",
            help="The scheduler, host:port. Default: the `chorus up` of this directory, else localhost:7400.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")] = False,
) -> None:
    """Tell what a generation reused, what it computed and why; follows one that has not ended to its end."""
    out = Output(as_json)
    with out.faults():
        check_folder(png, "png")
        check_folder(mp4, "mp4")
        with ChorusClient(target) as client:
            handle = client.handle(generation_id)
            handle.status()  # first, so that a wrong id or an unreachable server is reported at once
            events = [event.proto for event in handle.events()]
            generation = handle.status()
            account = account_of(generation.proto, events)
            out.say(words(account), explanation=plain(account))
            if png is not None or mp4 is not None:
                generation.raise_for_state()
                _draw(client, account, png, mp4, no_full, out)


def _draw(
    client: ChorusClient,
    account: GenerationReport,
    png: Path | None,
    mp4: Path | None,
    no_full: bool,
    out: Output,
) -> None:
    try:
        from evaluation.picture import film, png_of, sheet
        from evaluation.pixels import encode
    except ImportError as error:
        raise not_installed("eval", "chorus-serving", error) from None
    generation = account.generation
    rows = list(_rows(client, account, no_full, out))
    title = f"{generation.generation_id}: {one_line(generation.spec.prompt)}"
    if png is not None:
        write_atomically(png, png_of(sheet(title, rows)))
        out.say(str(png), png=str(png))
    if mp4 is not None:
        write_atomically(mp4, encode(film(rows), generation.video.frames_per_second or 8))
        out.say(str(mp4), mp4=str(mp4))


def _rows(client: ChorusClient, account: GenerationReport, no_full: bool, out: Output) -> Iterator[Row]:
    """Donor, regions, result and full computation, as far as there are such."""
    from evaluation.picture import Row, frames_of, region_video, unpack

    generation, total = account.generation, len(account.steps)
    reused = generation.HasField("donor")
    if reused:
        donor = _donor_video(client, generation, out)
        if donor is not None:
            yield Row(f"donor: {one_line(generation.donor.prompt)}", frames_of(donor))
    result = frames_of(client.handle(generation.generation_id).result().data)
    for step in account.steps:
        if step.active:
            try:
                mask = unpack(step.active, step.grid)
            except ValueError as error:
                raise ChorusError(errors.INTERNAL, f"step {step.number}: {error}") from None
            label = f"step {step.number} of {total}: {step.own:.0%} its own, {step.computed:.0%} computed"
            yield Row(label, region_video(mask, *result.shape[1:3]))
    yield Row(f"result, {generation.timings.total_seconds:.2f} s", result)
    if not reused:
        _remark(out, "nothing was reused: the result is the full computation")
    elif not no_full:
        full = client.generate(generation.spec.prompt, **full_options(generation.spec))
        seconds = full.generation.timings.total_seconds
        yield Row(f"full computation, {seconds:.2f} s", frames_of(full.data))


def _donor_video(client: ChorusClient, generation: Generation, out: Output) -> bytes | None:
    """None, and a note, when it is gone."""
    identifier = generation.donor.generation_id
    try:
        if identifier:
            return client.handle(identifier).result().data
        why = "the entry does not say whose it is"
    except ChorusError as error:
        if error.reason not in _GONE:
            raise
        why = error.message
    _remark(out, f"the donor's video is left out: {why}")
    return None


def _remark(out: Output, text: str) -> None:
    """For people and for machines."""
    out.note(text)
    out.machine(note=text)


def full_options(spec: GenerationSpec) -> SpecOptions:
    """What asks for the full computation of an accepted request: everything the same, but no reuse."""
    options: SpecOptions = {"model": spec.model_id, "seed": spec.seed, "reuse": "off", "no_store": True}
    if spec.HasField("shape"):
        options["frames"] = spec.shape.frames
        options["height"], options["width"] = spec.shape.height, spec.shape.width
    if spec.HasField("schedule"):
        options["sigmas"] = list(spec.schedule.sigmas)
    elif spec.HasField("steps"):
        options["steps"] = spec.steps
    return options
