"""`onnxruntime`: the exported graph on the CPU. What engines are built from, run where no engine can be."""

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
        # Threads that wait sleep: the other services share the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BackendError(f"{path}: onnxruntime cannot load it: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._inputs = {entry.name for entry in self._session.get_inputs()}

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        # What the exporter found to have no effect is no input.
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
    """A float32 graph on the CPU, as `onnx_export.export` writes it.

    Args:
        threads: 0: torch's own number.

    Raises BackendError for a file that cannot be loaded.
    """
    sessions = [_Session(path, threads or torch.get_num_threads()) for path in paths]
    return GraphBackend("onnxruntime", transformer, blocks_each, sessions, dtype=torch.float32, plugin=plugin)
