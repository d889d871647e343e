"""Commands of `chorus engine`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
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
from services.denoiser.engines.build import (
    ONNX,
    EngineOptions,
    build_default_profile,
    ensure_engine,
    load_engine,
)
from services.denoiser.engines.store import BuiltEngine, EngineStore
from services.denoiser.engines.verify import compare, select_token_counts
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.spec import SpecError
from services.denoiser.settings import SHIPPED_MODEL

_SHORT: Final = 12  # displayed characters of a digest


@contextmanager
def _handle_errors(out: Output) -> Iterator[None]:
    """Ends the command with a message and an exit status on errors of engines and models."""
    # The command prints its own progress; the exporter's messages are not meant for its user.
    logging.getLogger("torch").setLevel(logging.ERROR)
    with out.faults():
        try:
            yield
        except (BackendError, SpecError, WeightsError) as error:
            raise ChorusError(errors.INVALID_FIELD, str(error)) from error


def parse_options(
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
    """Converts options of the command line. A graph for onnxruntime is always float32, for the CPU."""
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
    """Builds the engine of a model, and that of its host if it has one, unless they exist.

    Args:
        model: Model file; None for the shipped model.
        folder: Folder of the built engines.
        tokens: Range of video tokens, "MIN,OPT,MAX"; None for the model's bounds.
        keys: Range of text tokens, "MIN,OPT,MAX"; None for the model's bounds.
        rebuild: Whether to build an existing engine again.
    """
    with _handle_errors(out):
        loaded = LoadedModel.load(model or SHIPPED_MODEL)
        options = replace(options, profile=_parse_profile(loaded, tokens, keys))
        for each in loaded.variants:
            engine = ensure_engine(each, options, EngineStore(folder), out.status, rebuild=rebuild)
            out.print(f"{engine.digest}  {_summarise(engine)}", engine=_to_json(engine))


def list_engines(out: Output, folder: Path) -> None:
    """Prints all engines of a folder, newest first."""
    manifests = list(EngineStore(folder).manifests())
    for digest, manifest in manifests:
        key, files = manifest["key"], manifest["files"]
        megabytes = sum(file["bytes"] for file in files) / 1e6
        line = (
            f"{digest[:_SHORT]}  {key['model_id']}  {key['runtime']} for {key['target']}  {key['precision']}"
            f"{' fp8' if key['fp8'] else ''}{_describe_adapters(manifest['facts'])}  "
            f"{megabytes:.1f} MB  {manifest['built']}"
        )
        out.print(line, engine=digest, built=manifest["built"], megabytes=round(megabytes, 3), key=key)
    if not manifests:
        out.status(f"no engines in {folder}")


def inspect(out: Output, folder: Path, prefix: str) -> None:
    """Prints the key and the facts of the engine whose digest starts with `prefix`."""
    with _handle_errors(out):
        engine = _find_by_prefix(EngineStore(folder), prefix)
        rows = {
            **engine.key,
            **engine.facts,
            "built": engine.built,
            "files": [f.name for f in engine.files],
        }
        out.print("\n".join(f"{name}: {value}" for name, value in rows.items()), engine=_to_json(engine))


def verify(out: Output, folder: Path, prefix: str, model: Path | None) -> None:
    """Verifies the files of an engine and prints the differences of its predictions from torch's."""
    with _handle_errors(out):
        store = EngineStore(folder)
        engine = _find_by_prefix(store, prefix)
        on_gpu = not str(engine.key["runtime"]).startswith("onnxruntime")
        can_run = torch.cuda.is_available() or not on_gpu
        path = model or SHIPPED_MODEL
        variants = LoadedModel.load(path, "cuda" if on_gpu and can_run else "cpu").variants
        loaded = next((each for each in variants if _is_built_from(engine, each)), None)
        if loaded is None:
            raise BackendError(f"{engine.digest} was built from other weights or adapters than {path} has")
        if can_run:
            ran = str(engine.key["runtime"])
            options = EngineOptions(runtime=ran.split()[0])
        else:
            ran = "onnxruntime with the float32 graph, because no CUDA device is available for the engine"
            key = engine.key
            options = replace(
                ONNX,
                fp8=bool(key["fp8"]),
                plugin=bool(key["options"]["plugin"]),
                blocks_each=int(key["blocks_each"]),
            )
            engine = ensure_engine(loaded, options, store, out.status)
        sizes = engine.profile.tokens
        counts = [count for count in select_token_counts(loaded) if sizes.min <= count <= sizes.max]
        with closing(load_engine(loaded, engine, options)) as backend:
            errors_by_tokens = compare(loaded, backend, counts or [sizes.min])
        lines = [
            f"files: digests match; ran {ran}",
            "tokens  largest error relative to torch's largest value",
        ]
        lines += [f"{tokens:6d}  {error.relative:.2e}" for tokens, error in errors_by_tokens.items()]
        out.print(
            "\n".join(lines),
            ran=ran,
            relative_error={str(n): e.relative for n, e in errors_by_tokens.items()},
        )


def _is_built_from(engine: BuiltEngine, model: LoadedModel) -> bool:
    adapters = [[adapter.digest, adapter.scale] for adapter in model.adapters]
    return (engine.key["weights_digest"], engine.key["adapters"]) == (model.weights_digest, adapters)


def _find_by_prefix(store: EngineStore, prefix: str) -> BuiltEngine:
    """Loads the engine whose digest starts with `prefix`.

    Raises BackendError unless exactly one digest matches, EngineError for damaged files.
    """
    digests = [digest for digest, _ in store.manifests() if digest.startswith(prefix)]
    if len(digests) != 1:
        raise BackendError(
            f"{prefix!r}: matches {len(digests)} engines in {store.root}; "
            f"`chorus engine list` shows their digests"
        )
    return store.read(digests[0])


def _parse_profile(model: LoadedModel, tokens: str | None, keys: str | None) -> Profile:
    default = build_default_profile(model)
    return Profile(
        _parse_sizes("tokens", tokens) or default.tokens, _parse_sizes("keys", keys) or default.keys
    )


def _parse_sizes(name: str, text: str | None) -> Sizes | None:
    if text is None:
        return None
    try:
        min_, opt, max_ = (int(part) for part in text.split(","))
        return Sizes(min_, opt, max_)
    except ValueError as error:
        raise BackendError(f"--{name}: must be MIN,OPT,MAX, three numbers: {error}") from error


def _summarise(engine: BuiltEngine) -> str:
    key, facts = engine.key, engine.facts
    summary = (
        f"{key['runtime']} for {key['target']}, {key['precision']}{_describe_adapters(facts)}, "
        f"{engine.size_bytes / 1e6:.1f} MB"
    )
    if layers := facts.get("layers"):
        fused = "unknown" if layers["fused"] is None else layers["fused"]
        summary += f", {fused} of {layers['attentions']} attentions fused"
    return summary


def _describe_adapters(facts: Mapping[str, Any]) -> str:
    adapters = ", ".join(facts.get("adapters", ()))
    return f" with {adapters}" if adapters else ""


def _to_json(engine: BuiltEngine) -> dict[str, Any]:
    return {
        "digest": engine.digest,
        "folder": str(engine.folder),
        "key": dict(engine.key),
        "facts": dict(engine.facts),
        "built": engine.built,
        "bytes": engine.size_bytes,
    }
