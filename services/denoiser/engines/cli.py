"""`chorus engine`: builds, lists, inspects and verifies the engines of a model.

Heavy modules are imported when a command runs, so that the command line starts fast.
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
        "--engines", envvar="CHORUS_DENOISER_ENGINES", file_okay=False, help="Folder of the built engines."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print only JSON to stdout, one object per line.")]
Model = Annotated[
    Path | None, typer.Argument(exists=True, dir_okay=False, help="Model file. Default: the shipped model.")
]
Digest = Annotated[str, typer.Argument(help="First characters of a digest from `chorus engine list`.")]
ENGINES: Final = Path(".chorus/engines")


@app.command()
def build(
    model: Model = None,
    engines_dir: Folder = ENGINES,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="auto|tensorrt|tensorrt_rtx|onnxruntime",
            help="Runtime of the engine: auto is the installed TensorRT, onnxruntime is float32 on a CPU.",
        ),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="bfloat16|float16|float32", help="Type of the engine; float32 disables fused attention."
        ),
    ] = "bfloat16",
    fp8: Annotated[
        bool,
        typer.Option("--fp8", help="Use 8-bit floats for the matrices of the blocks; needs sm_89 or later."),
    ] = False,
    tokens: Annotated[
        str | None,
        typer.Option(metavar="MIN,OPT,MAX", help="Video tokens of a step. Default: the model's bounds."),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(metavar="MIN,OPT,MAX", help="Tokens of a text. Default: the model's bounds."),
    ] = None,
    blocks: Annotated[
        int, typer.Option(min=0, help="Blocks per engine; fewer need less memory to build. 0: all blocks.")
    ] = 0,
    target: Annotated[
        str,
        typer.Option(help="Compute capability such as sm_89, or current. Other devices need TensorRT-RTX."),
    ] = "current",
    plugin: Annotated[
        bool,
        typer.Option(
            "--plugin", help="Use the amplified attention kernel; needs TensorRT (not TensorRT-RTX)."
        ),
    ] = False,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Stream weights from the host while the engine runs.")
    ] = False,
    level: Annotated[int, typer.Option(min=0, max=5, help="Optimisation level of the builder.")] = 3,
    workspace: Annotated[
        int, typer.Option(min=0, help="Scratch memory of the builder, in MiB. 0: the builder's default.")
    ] = 0,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build even if the engine exists.")] = False,
    as_json: Json = False,
) -> None:
    """Export the graph of a model and build engines from it, unless they exist."""
    from services.denoiser.engines import commands

    options = commands.parse_options(
        runtime, precision, fp8, plugin, blocks, target, weight_streaming, level, workspace << 20
    )
    commands.build(Output(as_json), model, engines_dir, options, tokens, keys, rebuild)


@app.command(name="list")
def list_engines(engines_dir: Folder = ENGINES, as_json: Json = False) -> None:
    """List built engines, newest first."""
    from services.denoiser.engines import commands

    commands.list_engines(Output(as_json), engines_dir)


@app.command()
def inspect(engine: Digest, engines_dir: Folder = ENGINES, as_json: Json = False) -> None:
    """Show everything an engine depends on, and how many of its attentions are fused."""
    from services.denoiser.engines import commands

    commands.inspect(Output(as_json), engines_dir, engine)


@app.command()
def verify(engine: Digest, model: Model = None, engines_dir: Folder = ENGINES, as_json: Json = False) -> None:
    """Verify the files of an engine, and compare its predictions with those of torch.

    Without a CUDA device, the graph is exported in float32 and runs on onnxruntime instead.
    """
    from services.denoiser.engines import commands

    commands.verify(Output(as_json), engines_dir, engine, model)
