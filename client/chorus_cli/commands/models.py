"""`chorus models`."""

from __future__ import annotations

from chorus_client import Model, Range

from chorus_cli.connect import connect_scheduler
from chorus_cli.following import run
from chorus_cli.options import Json, Target
from chorus_cli.output import Output
from chorus_cli.tables import align_columns

_HEADER = ("model", "frames", "height", "width", "steps", "default", "s/step")


def models(target: Target = None, as_json: Json = False) -> None:
    """List the models that can be requested, the default first, with the sizes and steps that they accept."""
    out = Output(as_json)

    async def main() -> None:
        async with connect_scheduler(target) as client:
            found = await client.models()
        for model in found:
            out.json_line(model=model.proto)
        if not as_json:
            out.print(align_columns([_HEADER, *map(_row, found)], right={6}))

    run(main(), out)


def _row(model: Model) -> tuple[str, ...]:
    frames, height, width = model.default_shape
    steps = len(model.default_sigmas) - 1
    seconds = f"{model.seconds_per_step:.2f}" if model.seconds_per_step else "?"
    default = f"{frames} x {height} x {width}, {steps} steps"
    ranges = (model.frames, model.height, model.width, model.steps)
    return (model.id, *map(_format_range, ranges), default, seconds)


def _format_range(valid: Range) -> str:
    """Returns "8-64 by 8", or "8-64" if every value in between is valid."""
    if valid.min == valid.max:
        return str(valid.min)
    return f"{valid.min}-{valid.max}" + (f" by {valid.multiple}" if valid.multiple > 1 else "")
