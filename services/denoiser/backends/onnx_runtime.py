"""`onnxruntime` backend: runs the exported graph, from which engines are built, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from services.denoiser.backends.base import BackendError
from services.denoiser.backends.graph_backend import GraphBackend, PartRunner
from services.denoiser.network.wan import WanTransformer


class _Session(PartRunner):
    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Waiting threads sleep instead of spinning, because other services share the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BackendError(f"{path}: onnxruntime cannot load it: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._inputs = {entry.name for entry in self._session.get_inputs()}

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        # The exporter removes inputs without effect.
        feed = {name: tensor.numpy() for name, tensor in inputs.items() if name in self._inputs}
        try:
            out = self._session.run(self._outputs, feed)
        except Exception as error:
            raise BackendError(f"onnxruntime failed: {error}") from error
        return {name: torch.from_numpy(array) for name, array in zip(self._outputs, out, strict=True)}


def onnx_backend(
    transformer: WanTransformer,
    paths: Sequence[Path],
    blocks_each: int,
    *,
    plugin: bool = False,
    threads: int = 0,
) -> GraphBackend:
    """Creates the backend for a float32 graph written by `onnx_export.export`.

    Args:
        paths: One .onnx file per part.
        blocks_each: Number of blocks in each part; 0 for a single part.
        plugin: Whether the files contain the plugin graph.
        threads: Number of threads; 0 for torch's number.

    Raises:
        BackendError: A file cannot be loaded.
    """
    sessions = [_Session(path, threads or torch.get_num_threads()) for path in paths]
    return GraphBackend("onnxruntime", transformer, blocks_each, sessions, dtype=torch.float32, plugin=plugin)
