"""Worker processes of one thread each, which hold the models and measure cases."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

import torch

from models.shapes.generate import Generator
from services.denoiser.engines.select import choose_backend
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor
from services.denoiser.settings import DenoiserSettings

Models = dict[str, Generator]
T = TypeVar("T")
R = TypeVar("R")
_REPORTED: Final = 50  # results after which progress is printed
_models: Models = {}


def load_models(files: dict[str, Path]) -> Models:
    """Loads models with the backend that the denoiser uses by default, by the name of the network."""
    settings = DenoiserSettings(backend_fallback=False, threads=torch.get_num_threads())
    models = {}
    for name, path in files.items():
        model = LoadedModel.load(path)
        predictor = Predictor.create(model, lambda each: choose_backend(each, settings, lambda _: True))
        models[name] = Generator(model, predictor)
    return models


def _start(files: dict[str, Path]) -> None:
    torch.set_num_threads(1)
    _models.update(load_models(files))


def _call(task: tuple[Callable[[Models, T], R], T]) -> R:
    function, item = task
    return function(_models, item)


class Workers:
    """Processes that call functions of the models. Results are in the order of the items.

    Args:
        files: Model files by the name of the network.
        count: Number of processes; 0 to call in this process.
    """

    def __init__(self, files: dict[str, Path], count: int) -> None:
        self._models: Models = {}
        self._pool: ProcessPoolExecutor | None = None
        if count:
            # Unlike multiprocessing.Pool, it ends with an error when a process cannot load its models.
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, spawn, _start, (files,))
        else:
            self._models = load_models(files)

    def map(self, name: str, function: Callable[[Models, T], R], items: Sequence[T]) -> list[R]:
        """Calls a function of this module's importers with each item, and prints the progress.

        Args:
            name: Name in the progress.
            function: Function at the top of a module.
        """
        results: list[R] = []
        tasks = [(function, item) for item in items]
        calls = (
            self._pool.map(_call, tasks) if self._pool else (function(self._models, item) for item in items)
        )
        for result in calls:
            results.append(result)
            if len(results) % _REPORTED == 0 or len(results) == len(items):
                print(f"{name}: {len(results)} of {len(items)}", flush=True)
        return results

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
