"""`chorus generate` and `chorus retry`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from chorus_client import AsyncChorusClient, ChorusError, SpecOptions
from chorus_client.plans import plan_from_options
from chorus_client.spec import parse_duration, parse_numbers
from chorus_rpc.errors import invalid
from chorus_rpc.limits import MAX_OUTPUTS, MAX_PROMPT_BYTES
from chorus_rpc.plan_bounds import MAX_STRENGTH

from chorus_cli import rendering
from chorus_cli.connect import connect_scheduler
from chorus_cli.filters import parse_labels
from chorus_cli.following import generate_and_save, options_from_spec, run
from chorus_cli.identifiers import find_generation
from chorus_cli.options import (
    GenerationId,
    Json,
    Labels,
    OutFile,
    PriorityChoice,
    RegionChoice,
    ReuseChoice,
    Target,
)
from chorus_cli.output import FAILED, UNREACHABLE, Output, check_folder, exit_code, one_line, reject_stdout
from chorus_cli.outputs import generate_outputs
from chorus_cli.prompt_files import name_videos, read_prompts

_VIDEOS = Path("out")

Detach = Annotated[
    bool, typer.Option("--detach", help="Submit, print the id, and return without waiting for the video.")
]


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help=f"Text of the video, 1 to {MAX_PROMPT_BYTES:,} bytes of UTF-8."
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            help="File of prompts, one a line, instead of PROMPT; # starts a comment; - is stdin. They are "
            "generated in order, and the failure of one does not stop the rest.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="File that receives the mp4, default ID.mp4; with --file their folder, default out.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="ID", help="Model id. Default: the server's.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the noise, 0 to 2^64 - 1. Default: chosen by the server.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Number of denoising steps. Default: the model's.")
    ] = None,
    sigmas: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Noise levels instead of --steps, decreasing to 0, such as 1,0.94,0.83,0.63,0.",
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Number of frames; needs --height and --width. Default: the model's.")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Height of the video, in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the video, in pixels.")] = None,
    reuse: Annotated[
        ReuseChoice | None,
        typer.Option(help="Policy: how far quality may be traded for speed. Default: the server's."),
    ] = None,
    max_reuse_steps: Annotated[
        int | None,
        typer.Option(
            help="Upper bound on the steps that a policy reuses, at least 1. Default: the policy's."
        ),
    ] = None,
    donor: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Generation to reuse, and no other: the video keeps what the prompts have in common.",
        ),
    ] = None,
    reuse_steps: Annotated[
        int | None,
        typer.Option(help="Explicit plan: number of steps reused from the most similar donor, at least 1."),
    ] = None,
    region_end: Annotated[
        int | None,
        typer.Option(help="Explicit plan: last step that computes a region only. Default: none does."),
    ] = None,
    region: Annotated[
        RegionChoice | None, typer.Option(help="Explicit plan: how the region is found. Needs --region-end.")
    ] = None,
    amplify: Annotated[
        str | None,
        typer.Option(
            metavar="FORM:STRENGTH",
            help="Explicit plan: amplification of the new words: contrast, bias or value-gain, and a "
            f"strength of 0 to {MAX_STRENGTH:g}, such as contrast:0.5.",
        ),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="Explicit plan: lower bound on the donor's similarity, -1 to 1. Default: 0."),
    ] = None,
    renoised: Annotated[
        bool | None,
        typer.Option(
            "--renoised", help="Explicit plan: start from the donor's clean latents with new noise added."
        ),
    ] = None,
    draft_step: Annotated[
        int | None,
        typer.Option(
            help="Explicit plan: step that is computed first, from the donor's latents at it, as a draft"
            " to start from; at least --reuse-steps. Default: none."
        ),
    ] = None,
    priority: Annotated[
        PriorityChoice | None,
        typer.Option(help="Class in the order of the queue. Default: normal."),
    ] = None,
    label: Labels = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="https URL that receives a signed request when the generation has ended."
        ),
    ] = None,
    webhook_events: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Ends that --webhook receives, of completed,failed,cancelled. Default: all."
        ),
    ] = None,
    outputs: Annotated[
        int,
        typer.Option(
            min=1,
            max=MAX_OUTPUTS,
            help="Number of videos of the prompt, each with another seed; a stated seed is that of the first."
            " With -o out.mp4 they are written to out-1.mp4, out-2.mp4 and so on.",
        ),
    ] = 1,
    step_previews: Annotated[
        bool,
        typer.Option(
            "--step-previews",
            help="Keep a small picture of what each computed step predicts, which the console shows.",
        ),
    ] = False,
    no_store: Annotated[
        bool, typer.Option("--no-store", help="Do not keep the latents for later requests.")
    ] = False,
    lifetime: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="Age at which the cache drops the latents, such as 12h or 7d. Default: the cache's.",
        ),
    ] = None,
    pin: Annotated[
        bool, typer.Option("--pin", help="Keep the latents in the cache even if it needs room.")
    ] = False,
    deadline: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Seconds until the generation fails if it has not ended. Default: the server's.",
        ),
    ] = None,
    request_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Id of the request: sending the same id and request again returns the same generation.",
        ),
    ] = None,
    preview: Annotated[
        bool,
        typer.Option(
            "--preview", help="Show what would be reused, and how long it would take. Submit nothing."
        ),
    ] = False,
    detach: Detach = False,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Generate a video, several of one prompt, or one for each prompt of a file. Ctrl-C cancels it."""
    out = Output(as_json)

    async def main() -> None:
        options: SpecOptions = {
            "model": model,
            "seed": seed,
            "steps": steps,
            "sigmas": None if sigmas is None else parse_numbers(sigmas, "sigmas"),
            "frames": frames,
            "height": height,
            "width": width,
            "reuse": reuse,
            "max_reuse_steps": max_reuse_steps,
            "donor": donor,
            "explicit_reuse": plan_from_options(
                reuse_steps,
                region_end=region_end,
                region=region,
                amplify=amplify,
                min_score=min_score,
                renoised=renoised,
                draft_step=draft_step,
            ),
            "priority": priority,
            "labels": parse_labels(label or []),
            "webhook": webhook,
            "webhook_events": None if webhook_events is None else webhook_events.split(","),
            "step_previews": step_previews,
            "no_store": no_store,
            "lifetime": None if lifetime is None else parse_duration(lifetime, "lifetime"),
            "pin": pin,
            "deadline": deadline,
            "request_id": request_id,
        }
        reject_stdout(output, "output")
        if file is not None:
            if prompt is not None:
                raise invalid("file", "give PROMPT or --file, not both")
            if preview:
                raise invalid("preview", "cannot be given with --file: it plans one request")
            if request_id is not None:
                raise invalid("request_id", "cannot be given with --file: it names one request")
            prompts = read_prompts(file)
            async with connect_scheduler(target) as client:
                await _complete_donor(client, options)
                await _generate_all(client, prompts, options, outputs, output or _VIDEOS, detach, out)
            return
        if preview:
            if prompt is None:
                raise invalid("preview", "needs a PROMPT")
            if outputs > 1:
                raise invalid("preview", "cannot be given with --outputs: it plans one video")
            async with connect_scheduler(target) as client:
                await _complete_donor(client, options)
                found = await client.preview(prompt, **options)
            out.print(rendering.describe_preview(found.proto), preview=found.proto)
            return
        if prompt is None:
            raise invalid("prompt", "give a PROMPT, or a file of prompts with --file")
        if output is not None and output.is_dir():
            raise invalid("output", f"{output} is a folder; name a file")
        check_folder(output, "output")
        async with connect_scheduler(target) as client:
            await _complete_donor(client, options)
            await _generate_one(client, prompt, options, outputs, output, detach, out)

    run(main(), out)


def retry(
    generation_id: GenerationId,
    output: OutFile = None,
    detach: Detach = False,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Submit a generation again, as a new one with the same seed."""
    out = Output(as_json)

    async def main() -> None:
        check_folder(output, "output")
        async with connect_scheduler(target) as client:
            spec = (await find_generation(client, generation_id)).proto.spec
            await _generate_one(client, spec.prompt, options_from_spec(spec), 1, output, detach, out)

    run(main(), out)


async def _complete_donor(client: AsyncChorusClient, options: SpecOptions) -> None:
    """Replaces the short id of a donor by the complete one."""
    if donor := options.get("donor"):
        options["donor"] = (await find_generation(client, donor)).id


async def _generate_one(
    client: AsyncChorusClient,
    prompt: str,
    options: SpecOptions,
    outputs: int,
    output: Path | None,
    detach: bool,
    out: Output,
    hint: bool = True,
) -> None:
    if detach:
        for handle in await client.submit_many(prompt, outputs, **options):
            assert handle.accepted is not None  # the same deadline as for every submission
            out.print(handle.id, generation=handle.accepted.proto)
        return
    if outputs > 1:
        videos = await generate_outputs(client, prompt, options, outputs, output, out)
    else:
        videos = [await generate_and_save(client, prompt, options, output, out)]
    hits = [video for video in videos if video.hit]
    if hint and hits:
        out.status(f"details: chorus explain {hits[0].generation.id}")


async def _generate_all(
    client: AsyncChorusClient,
    prompts: Sequence[str],
    options: SpecOptions,
    outputs: int,
    folder: Path,
    detach: bool,
    out: Output,
) -> None:
    """Generates the prompts in order, so that later ones can reuse earlier ones.

    Continues after a failure, except if the scheduler or a service behind it is down. Ends the command with
    FAILED if any prompt failed.
    """
    if not detach:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    done = failed = 0
    try:
        for number, (prompt, path) in enumerate(zip(prompts, name_videos(prompts, folder), strict=True), 1):
            out.status(f"{number} of {len(prompts)}: {one_line(prompt)}")
            try:
                await _generate_one(client, prompt, options, outputs, path, detach, out, hint=False)
                done += 1
            except ChorusError as error:
                if exit_code(error) == UNREACHABLE:
                    raise
                out.error(error)
                failed += 1
    finally:
        left = len(prompts) - done - failed
        word = "submitted" if detach else "generated"
        out.status(
            f"{done} of {len(prompts)} {word}"
            + (f", {failed} failed" if failed else "")
            + (f", {left} not started or not finished" if left else "")
        )
        out.json_line(summary={"prompts": len(prompts), "succeeded": done, "failed": failed})
    if failed:
        raise typer.Exit(FAILED)
