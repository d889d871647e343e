"""The `chorus` command.

Exit status: 0 done; 1 the generation or the server failed; 2 the input is at fault; 3 nobody answers; 130
interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from chorus_client import (
    AsyncCacheClient,
    AsyncChorusClient,
    Event,
    Generation,
    SpecOptions,
    Video,
    endpoints,
)
from chorus_client.handles import WATCH_SECONDS
from chorus_client.plans import plan_from_options
from chorus_client.spec import parse_duration, parse_numbers
from chorus_rpc import telemetry
from chorus_rpc.tenancy import DEFAULT_TENANT

from chorus_cli import plugins, rendering
from chorus_cli.output import Output, check_folder

T = TypeVar("T")

app = typer.Typer(
    help="Text-to-video by few-step diffusion, faster by reusing what similar requests computed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(help="Look at the cache, or empty it.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

Target = Annotated[
    str | None,
    typer.Option(
        envvar="CHORUS_TARGET",
        help="The scheduler, host:port. Default: the `chorus up` of this directory, else localhost:7400.",
    ),
]
CacheTarget = Annotated[
    str | None,
    typer.Option(
        "--target",
        envvar="CHORUS_CACHE_TARGET",
        help="The cache, host:port. Default: the `chorus up` of this directory, else localhost:7402.",
    ),
]
Tenant = Annotated[str, typer.Option(envvar="CHORUS_TENANT", help="Whose entries.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, nothing else.")]
OutFile = Annotated[
    Path | None,
    typer.Option("--output", "-o", dir_okay=False, help="Where the mp4 goes; an older file is replaced."),
]


def _run(work: Coroutine[Any, Any, T], out: Output) -> T:
    """Runs a command's coroutine."""
    with out.faults():
        return asyncio.run(work)


@app.callback()
def _configure(context: typer.Context) -> None:
    try:
        telemetry.configure("client")
    except ImportError as error:
        raise typer.BadParameter(str(error)) from None
    context.call_on_close(telemetry.shutdown)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the video is to show.")],
    output: OutFile = None,
    model: Annotated[str | None, typer.Option(help="Model id. Default: the server's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: chosen by the server.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. Default: the model's.")] = None,
    sigmas: Annotated[
        str | None, typer.Option(help="Noise levels instead of --steps, decreasing to 0: 1,0.94,0.83,0.63,0.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="With --height and --width.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    reuse: Annotated[
        str | None, typer.Option(help="off, safe, balanced or fast. Default: the server's.")
    ] = None,
    reuse_steps: Annotated[
        int | None,
        typer.Option(help="A plan of your own: take so many steps from the most similar donor; 1 or more."),
    ] = None,
    region_end: Annotated[
        int | None, typer.Option(help="With --reuse-steps: the steps up to this one compute only a region.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="With --region-end: find the region by probe, full-step or attention.")
    ] = None,
    amplify: Annotated[
        str | None,
        typer.Option(
            metavar="FORM:STRENGTH",
            help="With --reuse-steps: contrast, bias or value-gain, and 0 to 4.",
        ),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="With --reuse-steps: lowest similarity of a donor, −1 to 1. Default: 0."),
    ] = None,
    renoised: Annotated[
        bool | None,
        typer.Option("--renoised", help="With --reuse-steps: start from clean latents, noised again."),
    ] = None,
    no_store: Annotated[bool, typer.Option("--no-store", help="Keep nothing for later requests.")] = False,
    deadline: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="The generation fails if it has not ended by then."),
    ] = None,
    request_id: Annotated[
        str | None, typer.Option(help="The same id with the same request is the same generation.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Submit, print the id, leave.")] = False,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Generate a video. Ctrl-C cancels it."""
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
            "explicit_reuse": plan_from_options(
                reuse_steps,
                region_end=region_end,
                region=region,
                amplify=amplify,
                min_score=min_score,
                renoised=renoised,
            ),
            "no_store": no_store,
            "deadline": deadline,
            "request_id": request_id,
        }
        check_folder(output, "output")
        async with AsyncChorusClient(endpoints.resolve("scheduler", target)) as client:
            if detach:
                handle = await client.submit(prompt, **options)
                assert handle.accepted is not None  # as of every submission
                out.say(handle.id, generation=handle.accepted.proto)
                return
            follower = _Follower(out)
            try:
                with follower:
                    video = await client.generate(
                        prompt, on_accepted=follower.accepted, on_event=follower.event, **options
                    )
            except asyncio.CancelledError as interrupted:
                words = str(interrupted) or "interrupted"
                out.note(words)
                out.fault("CANCELLED", words)
                raise
            await _deliver(video, output, follower, out)

    _run(main(), out)


@app.command()
def watch(
    generation_id: Annotated[str, typer.Argument(metavar="ID")],
    output: OutFile = None,
    after_sequence: Annotated[int, typer.Option(min=0, help="Only events after this one.")] = 0,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Wait no longer.")] = WATCH_SECONDS,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Follow a generation to its end, and fetch its video with -o. Ctrl-C only stops looking."""
    out = Output(as_json)

    async def main() -> None:
        check_folder(output, "output")
        async with AsyncChorusClient(endpoints.resolve("scheduler", target)) as client:
            # First, so that a wrong id or a dead server is told at once.
            follower = _Follower(out)
            handle = client.handle(generation_id)
            generation = await handle.status()
            with follower:
                follower.accepted(generation)
                watching = handle.events(after_sequence, timeout=timeout)
                async with contextlib.aclosing(watching) as events:
                    async for event in events:
                        follower.event(event)
            generation = await handle.status()
            generation.raise_for_state()
            if output is None:
                summary = rendering.summary(generation.proto, follower.saved)
                out.say(summary, generation=generation.proto)
                return
            await _deliver(await handle.result(), output, follower, out)

    _run(main(), out)


@app.command()
def jobs(
    state: Annotated[
        str | None, typer.Option(help="queued, waiting, running, succeeded, failed or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List generations, newest first."""
    out = Output(as_json)

    async def main() -> None:
        async with AsyncChorusClient(endpoints.resolve("scheduler", target)) as client:
            found = [generation.proto for generation in await client.list(state, limit)]
        for generation in found:
            out.machine(generation=generation)
        if not as_json:
            out.console.print(rendering.jobs_table(found) if found else "no generations")

    _run(main(), out)


@app.command()
def cancel(
    generation_id: Annotated[str, typer.Argument(metavar="ID")], target: Target = None, as_json: Json = False
) -> None:
    """Cancel a generation; it ends at its next step."""
    out = Output(as_json)

    async def main() -> None:
        async with AsyncChorusClient(endpoints.resolve("scheduler", target)) as client:
            generation = await client.handle(generation_id).cancel()
        out.say(f"{generation.id} {generation.state}", generation=generation.proto)

    _run(main(), out)


@cache_app.command()
def stats(target: CacheTarget = None, tenant: Tenant = DEFAULT_TENANT, as_json: Json = False) -> None:
    """What the cache holds and how it was used."""
    out = Output(as_json)

    async def main() -> None:
        async with AsyncCacheClient(endpoints.resolve("cache", target), tenant) as client:
            found = await client.stats()
        out.say(rendering.stats_table(found.proto), cache=found.proto)

    _run(main(), out)


@cache_app.command()
def purge(
    entry: Annotated[str | None, typer.Option(help="Only this entry.")] = None,
    model: Annotated[str | None, typer.Option(help="Only entries of this model.")] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only entries older than this: 90s, 15m, 12h, 7d.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every entry.")] = False,
    target: CacheTarget = None,
    tenant: Tenant = DEFAULT_TENANT,
    as_json: Json = False,
) -> None:
    """Drop the entries that match every option given."""
    out = Output(as_json)

    async def main() -> None:
        age = None if older_than is None else parse_duration(older_than, "older-than")
        async with AsyncCacheClient(endpoints.resolve("cache", target), tenant) as client:
            gone = await client.purge(entry=entry, model=model, older_than=age, everything=everything)
        out.say(f"{gone.entries} entries, {gone.bytes:,} bytes dropped", purged=gone.proto)

    _run(main(), out)


@app.command()
def up(
    directory: Annotated[
        Path, typer.Option("--dir", file_okay=False, help="Stores, logs and endpoints.json.")
    ] = endpoints.DIRECTORY,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Serve this model file, not the one that ships; again for more. The first is the default.",
        ),
    ] = None,
    startup_seconds: Annotated[
        float, typer.Option(min=1, max=3_600, help="How long the services may take to become ready.")
    ] = 300.0,
    as_json: Json = False,
) -> None:
    """Run all four services on this machine until Ctrl-C.

    The embedder loads the text encoders that the models' files name. Any CHORUS_<SERVICE>_<SETTING> variable
    that is set wins over what this command chooses.
    """
    from chorus_cli.local.up import run_up  # POSIX only, and none of the other commands needs it

    out = Output(as_json)
    status = _run(run_up(directory.absolute(), model or (), startup_seconds, out), out)
    raise typer.Exit(status)


class _Follower:
    """Shows a generation as it goes: a live bar, or JSON lines."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._view = None if out.as_json else rendering.GenerationView(out.notes)
        self.saved = 0.0

    def __enter__(self) -> None:
        if self._view is not None:
            self._view.__enter__()

    def __exit__(self, *_: object) -> None:
        if self._view is not None:
            self._view.__exit__(None, None, None)

    def accepted(self, generation: Generation) -> None:
        self._out.machine(accepted=generation.proto)
        if self._view is not None:
            self._view.accepted(generation.proto)

    def event(self, event: Event) -> None:
        self.saved = event.seconds_saved or self.saved
        self._out.machine(event=event.proto)
        if self._view is not None:
            self._view.event(event.proto)


async def _deliver(video: Video, output: Path | None, follower: _Follower, out: Output) -> None:
    path = output or Path(f"{video.generation.id}.mp4")
    await asyncio.to_thread(video.save, path)
    out.say(
        f"{path}: {rendering.summary(video.generation.proto, follower.saved)}",
        generation=video.generation.proto,
        output=str(path),
    )


plugins.add_commands(app)


def main() -> None:
    app(prog_name="chorus")
