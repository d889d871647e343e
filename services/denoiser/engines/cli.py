"""`chorus engine`: builds, lists, inspects and verifies the graphs and engines of a model.

What the work needs is imported when a command runs: the command line itself stays light.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer
from chorus_cli.output import Output

app = typer.Typer(no_args_is_help=True, help="Build, list, inspect and verify engines of the denoiser.")

Folder = Annotated[
    Path,
    typer.Option(
        "--engines", envvar="CHORUS_DENOISER_ENGINES", file_okay=False, help="Where engines are kept."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, nothing else.")]
Model = Annotated[
    Path | None, typer.Argument(exists=True, dir_okay=False, help="A model file. Default: the shipped one.")
]
Digest = Annotated[str, typer.Argument(help="The beginning of a digest that `list` shows.")]
ENGINES: Final = Path(".chorus/engines")


@app.command()
def build(
    model: Model = None,
    engines_dir: Folder = ENGINES,
    runtime: Annotated[
        str, typer.Option(help="auto, tensorrt, tensorrt_rtx; or onnxruntime: the float32 graph for a CPU.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="bfloat16 or float16; float32 fuses no attention.")
    ] = "bfloat16",
    fp8: Annotated[
        bool, typer.Option("--fp8", help="The blocks' matrices in 8 bits; needs sm_89 or later.")
    ] = False,
    tokens: Annotated[
        str | None, typer.Option(metavar="MIN,OPT,MAX", help="Tokens of a step. Default: the model's bounds.")
    ] = None,
    keys: Annotated[
        str | None, typer.Option(metavar="MIN,OPT,MAX", help="Tokens of a text. Default: the model's bounds.")
    ] = None,
    blocks: Annotated[
        int, typer.Option(min=0, help="Blocks of one engine; fewer take less memory to build. 0: all.")
    ] = 0,
    target: Annotated[
        str, typer.Option(help="sm_89, …; another device than this one's with TensorRT-RTX only.")
    ] = "current",
    plugin: Annotated[
        bool, typer.Option("--plugin", help="Cross-attention by our own kernel; needs TensorRT itself.")
    ] = False,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Weights may stay on the host while the engine runs.")
    ] = False,
    level: Annotated[int, typer.Option(min=0, max=5, help="The builder's optimisation level.")] = 3,
    workspace: Annotated[int, typer.Option(min=0, help="MiB of scratch memory; 0: the builder's bound.")] = 0,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Also if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Export a model's graph and build engines from it, unless they are there."""
    from services.denoiser.engines import commands

    options = commands.options_of(
        runtime, precision, fp8, plugin, blocks, target, weight_streaming, level, workspace << 20
    )
    commands.build(Output(as_json), model, engines_dir, options, tokens, keys, rebuild)


@app.command(name="list")
def list_engines(engines_dir: Folder = ENGINES, as_json: Json = False) -> None:
    """List what was built, the newest first."""
    from services.denoiser.engines import commands

    commands.show_all(Output(as_json), engines_dir)


@app.command()
def inspect(engine: Digest, engines_dir: Folder = ENGINES, as_json: Json = False) -> None:
    """Tell everything an engine depends on, and what the builder made of its attentions."""
    from services.denoiser.engines import commands

    commands.inspect(Output(as_json), engines_dir, engine)


@app.command()
def verify(engine: Digest, model: Model = None, engines_dir: Folder = ENGINES, as_json: Json = False) -> None:
    """Check an engine's files, and its predictions against torch's.

    Where the engine cannot run, its graph is exported in float32 and run by onnxruntime instead.
    """
    from services.denoiser.engines import commands

    commands.verify(Output(as_json), engines_dir, engine, model)
