"""`chorus engine`: builds, lists, inspects and verifies the graphs and engines of a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from chorus_client.output import Output

from services.common import errors
from services.common.errors import ChorusError
from services.denoiser.backends import engines
from services.denoiser.backends.artefacts import Artefact, ArtefactStore
from services.denoiser.backends.base import BackendError
from services.denoiser.backends.engines import EngineOptions
from services.denoiser.backends.parts import Profile, Sizes
from services.denoiser.backends.verify import compare
from services.denoiser.models.pipeline import LoadedModel
from services.denoiser.models.spec import SpecError
from services.denoiser.models.weights import WeightsError
from services.denoiser.settings import SHIPPED_MODEL

app = typer.Typer(no_args_is_help=True, help="Build, list, inspect and verify engines of the denoiser.")

Folder = Annotated[
    Path,
    typer.Option(
        "--engines", envvar="CHORUS_DENOISER_ENGINES", file_okay=False, help="Where engines are kept."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, nothing else.")]
Model = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A model file.")]
ENGINES: Final = Path(".chorus/engines")
_SHORT: Final = 12  # of a digest, where it is shown


@contextmanager
def _faults(out: Output) -> Iterator[None]:
    """What an engine or a model lacks ends the command with its words."""
    # The progress is the command's own; the exporter's and the store's remarks are not for its reader.
    logging.getLogger("torch").setLevel(logging.ERROR)
    with out.faults():
        try:
            yield
        except (BackendError, SpecError, WeightsError) as error:
            raise ChorusError(errors.INVALID_FIELD, str(error)) from error


@app.command()
def build(
    model: Model = SHIPPED_MODEL,
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
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Weights may stay on the host while the engine runs.")
    ] = False,
    level: Annotated[int, typer.Option(min=0, max=5, help="The builder's optimisation level.")] = 3,
    workspace: Annotated[int, typer.Option(min=0, help="MiB of scratch memory; 0: the builder's bound.")] = 0,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Also if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Export a model's graph and build engines from it, unless they are there."""
    out = Output(as_json)
    with _faults(out):
        loaded = LoadedModel.load(model)
        options = EngineOptions(
            runtime=runtime,
            precision="float32" if runtime == "onnxruntime" else precision,
            fp8=fp8,
            blocks_each=blocks,
            profile=_profile(loaded, tokens, keys),
            target="cpu" if runtime == "onnxruntime" else target,
            weight_streaming=weight_streaming,
            optimization_level=level,
            workspace_bytes=workspace << 20,
        )
        artefact = engines.build(loaded, options, ArtefactStore(engines_dir), out.note, rebuild=rebuild)
        out.say(f"{artefact.digest}  {_words(artefact)}", engine=_plain(artefact))


@app.command(name="list")
def list_engines(engines_dir: Folder = ENGINES, as_json: Json = False) -> None:
    """List what was built, the newest first."""
    out = Output(as_json)
    found = list(ArtefactStore(engines_dir).manifests())
    for digest, manifest in found:
        key, files = manifest["key"], manifest["files"]
        megabytes = sum(file["bytes"] for file in files) / 1e6
        words = (
            f"{digest[:_SHORT]}  {key['model_id']}  {key['runtime']} for {key['target']}  {key['precision']}"
            f"{' fp8' if key['fp8'] else ''}  {megabytes:.1f} MB  {manifest['built']}"
        )
        out.say(words, engine=digest, built=manifest["built"], megabytes=round(megabytes, 3), key=key)
    if not found:
        out.note(f"no engines in {engines_dir}")


@app.command()
def inspect(
    engine: Annotated[str, typer.Argument(help="The beginning of a digest that `list` shows.")],
    engines_dir: Folder = ENGINES,
    as_json: Json = False,
) -> None:
    """Tell everything an engine depends on, and what the builder made of its attentions."""
    out = Output(as_json)
    with _faults(out):
        artefact = _found(ArtefactStore(engines_dir), engine)
        rows = {
            **artefact.key,
            **artefact.facts,
            "built": artefact.built,
            "files": [f.name for f in artefact.files],
        }
        out.say("\n".join(f"{name}: {value}" for name, value in rows.items()), engine=_plain(artefact))


@app.command()
def verify(
    engine: Annotated[str, typer.Argument(help="The beginning of a digest that `list` shows.")],
    model: Model = SHIPPED_MODEL,
    engines_dir: Folder = ENGINES,
    as_json: Json = False,
) -> None:
    """Check an engine's files, and its predictions against torch's.

    Where the engine cannot run, its graph is exported in float32 and run by onnxruntime instead.
    """
    out = Output(as_json)
    with _faults(out):
        store = ArtefactStore(engines_dir)
        artefact = _found(store, engine)
        on_gpu = not str(artefact.key["runtime"]).startswith("onnxruntime")
        runs = torch.cuda.is_available() or not on_gpu
        loaded = LoadedModel.load(model, "cuda" if on_gpu and runs else "cpu")
        if artefact.key["weights_digest"] != loaded.weights_digest:
            raise BackendError(f"{artefact.digest} was built from other weights than those of {model}")
        if runs:
            ran = str(artefact.key["runtime"])
            options = EngineOptions(runtime=ran.split()[0])
        else:
            ran = "onnxruntime, from the float32 graph: there is no CUDA device to run the engine on"
            options = replace(
                engines.ONNX, fp8=bool(artefact.key["fp8"]), blocks_each=int(artefact.key["blocks_each"])
            )
            artefact = engines.build(loaded, options, store, out.note)
        errors_by_tokens = compare(loaded, engines.load(loaded, artefact, options))
        lines = [f"files: digests match; ran {ran}", "tokens  largest error, by torch's largest value"]
        lines += [f"{tokens:6d}  {error:.2e}" for tokens, error in errors_by_tokens.items()]
        out.say("\n".join(lines), ran=ran, relative_error={str(n): e for n, e in errors_by_tokens.items()})


def _found(store: ArtefactStore, start: str) -> Artefact:
    """Raises BackendError unless exactly one digest begins so; ArtefactError for damaged files."""
    digests = [digest for digest, _ in store.manifests() if digest.startswith(start)]
    if len(digests) != 1:
        raise BackendError(f"{start!r}: {len(digests)} engines in {store.root} begin so; `list` shows them")
    return store.read(digests[0])


def _profile(model: LoadedModel, tokens: str | None, keys: str | None) -> Profile:
    usual = engines.default_profile(model)
    return Profile(_sizes("tokens", tokens) or usual.tokens, _sizes("keys", keys) or usual.keys)


def _sizes(name: str, text: str | None) -> Sizes | None:
    if text is None:
        return None
    try:
        least, opt, most = (int(part) for part in text.split(","))
        return Sizes(least, opt, most)
    except ValueError as error:
        raise BackendError(f"--{name}: must be MIN,OPT,MAX, three numbers: {error}") from error


def _words(artefact: Artefact) -> str:
    key, facts = artefact.key, artefact.facts
    words = f"{key['runtime']} for {key['target']}, {key['precision']}, {artefact.size_bytes / 1e6:.1f} MB"
    if layers := facts.get("layers"):
        words += f", {layers['fused']} of {layers['attentions']} attentions fused"
    return words


def _plain(artefact: Artefact) -> dict[str, Any]:
    return {
        "digest": artefact.digest,
        "folder": str(artefact.folder),
        "key": dict(artefact.key),
        "facts": dict(artefact.facts),
        "built": artefact.built,
        "bytes": artefact.size_bytes,
    }
