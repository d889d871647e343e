"""The work of `chorus engine`, told through its output."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from chorus_cli.output import Output
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.denoiser.backends.base import BackendError
from services.denoiser.backends.graph_backend import Profile, Sizes
from services.denoiser.checkpoint.weights import WeightsError
from services.denoiser.engines.build import ONNX, EngineOptions, default_profile, ensure_engine, load_engine
from services.denoiser.engines.store import Artefact, EngineStore
from services.denoiser.engines.verify import compare, token_counts
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.spec import SpecError
from services.denoiser.settings import SHIPPED_MODEL

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


def options_of(
    runtime: str,
    precision: str,
    fp8: bool,
    plugin: bool,
    blocks: int,
    target: str,
    weight_streaming: bool,
    level: int,
    workspace_bytes: int,
) -> EngineOptions:
    """As the command line has them; a graph for onnxruntime is of the CPU, in float32."""
    on_cpu = runtime == "onnxruntime"
    return EngineOptions(
        runtime=runtime,
        precision="float32" if on_cpu else precision,
        fp8=fp8,
        plugin=plugin,
        blocks_each=blocks,
        target="cpu" if on_cpu else target,
        weight_streaming=weight_streaming,
        optimization_level=level,
        workspace_bytes=workspace_bytes,
    )


def build(
    out: Output,
    model: Path | None,
    folder: Path,
    options: EngineOptions,
    tokens: str | None,
    keys: str | None,
    rebuild: bool,
) -> None:
    """`tokens` and `keys` are "MIN,OPT,MAX"; None is what the model's bounds allow."""
    with _faults(out):
        loaded = LoadedModel.load(model or SHIPPED_MODEL)
        options = replace(options, profile=_profile(loaded, tokens, keys))
        artefact = ensure_engine(loaded, options, EngineStore(folder), out.status, rebuild=rebuild)
        out.print(f"{artefact.digest}  {_words(artefact)}", engine=_plain(artefact))


def show_all(out: Output, folder: Path) -> None:
    found = list(EngineStore(folder).manifests())
    for digest, manifest in found:
        key, files = manifest["key"], manifest["files"]
        megabytes = sum(file["bytes"] for file in files) / 1e6
        words = (
            f"{digest[:_SHORT]}  {key['model_id']}  {key['runtime']} for {key['target']}  {key['precision']}"
            f"{' fp8' if key['fp8'] else ''}  {megabytes:.1f} MB  {manifest['built']}"
        )
        out.print(words, engine=digest, built=manifest["built"], megabytes=round(megabytes, 3), key=key)
    if not found:
        out.status(f"no engines in {folder}")


def inspect(out: Output, folder: Path, engine: str) -> None:
    with _faults(out):
        artefact = _found(EngineStore(folder), engine)
        rows = {
            **artefact.key,
            **artefact.facts,
            "built": artefact.built,
            "files": [f.name for f in artefact.files],
        }
        out.print("\n".join(f"{name}: {value}" for name, value in rows.items()), engine=_plain(artefact))


def verify(out: Output, folder: Path, engine: str, model: Path | None) -> None:
    with _faults(out):
        store = EngineStore(folder)
        artefact = _found(store, engine)
        on_gpu = not str(artefact.key["runtime"]).startswith("onnxruntime")
        runs = torch.cuda.is_available() or not on_gpu
        path = model or SHIPPED_MODEL
        loaded = LoadedModel.load(path, "cuda" if on_gpu and runs else "cpu")
        adapters = [[adapter.digest, adapter.scale] for adapter in loaded.adapters]
        if artefact.key["weights_digest"] != loaded.weights_digest or artefact.key["adapters"] != adapters:
            raise BackendError(
                f"{artefact.digest} was built from other weights or adapters than those of {path}"
            )
        if runs:
            ran = str(artefact.key["runtime"])
            options = EngineOptions(runtime=ran.split()[0])
        else:
            ran = "onnxruntime, from the float32 graph: there is no CUDA device to run the engine on"
            key = artefact.key
            options = replace(
                ONNX,
                fp8=bool(key["fp8"]),
                plugin=bool(key["options"]["plugin"]),
                blocks_each=int(key["blocks_each"]),
            )
            artefact = ensure_engine(loaded, options, store, out.status)
        least, most = artefact.profile.tokens.min, artefact.profile.tokens.max
        counts = [count for count in token_counts(loaded) if least <= count <= most]
        with closing(load_engine(loaded, artefact, options)) as backend:
            errors_by_tokens = compare(loaded, backend, counts or [least])
        lines = [f"files: digests match; ran {ran}", "tokens  largest error, by torch's largest value"]
        lines += [f"{tokens:6d}  {error.relative:.2e}" for tokens, error in errors_by_tokens.items()]
        out.print(
            "\n".join(lines),
            ran=ran,
            relative_error={str(n): e.relative for n, e in errors_by_tokens.items()},
        )


def _found(store: EngineStore, start: str) -> Artefact:
    """Raises BackendError unless exactly one digest begins so; ArtefactError for damaged files."""
    digests = [digest for digest, _ in store.manifests() if digest.startswith(start)]
    if len(digests) != 1:
        raise BackendError(f"{start!r}: {len(digests)} engines in {store.root} begin so; `list` shows them")
    return store.read(digests[0])


def _profile(model: LoadedModel, tokens: str | None, keys: str | None) -> Profile:
    usual = default_profile(model)
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
        fused = "unknown" if layers["fused"] is None else layers["fused"]
        words += f", {fused} of {layers['attentions']} attentions fused"
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
