"""TensorRT or TensorRT-RTX, whichever is installed: the same Python API, taken as a value."""

from __future__ import annotations

import importlib
from types import ModuleType

from services.denoiser.backends.base import BackendError

NAMES = ("tensorrt", "tensorrt_rtx")


def load_module(name: str = "auto") -> ModuleType:
    """The module `name`, or the first of NAMES that can be imported.

    Raises BackendError that says why not.
    """
    refusals = []
    for candidate in NAMES if name == "auto" else (name,):
        try:
            return importlib.import_module(candidate)
        except (
            ImportError,
            OSError,
            RuntimeError,
        ) as error:  # the wheel may be a stub, or lack its libraries
            refusals.append(f"{candidate}: {error}")
    raise BackendError(
        f"TensorRT cannot be imported ({'; '.join(refusals)}); "
        f"install chorus-serving[engine], or use an image that brings it"
    )


def described(module: ModuleType) -> str:
    """Name and version, as in an engine's key."""
    return f"{module.__name__} {module.__version__}"


def is_rtx(module: ModuleType) -> bool:
    """TensorRT-RTX builds for a target that need not be there; the other builds for the device it runs on."""
    return module.__name__ == "tensorrt_rtx"
