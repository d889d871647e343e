"""Loads TensorRT or TensorRT-RTX, whichever is installed; both have the same Python API."""

from __future__ import annotations

import importlib
from types import ModuleType

from services.denoiser.backends.base import BackendError

NAMES = ("tensorrt", "tensorrt_rtx")


def load_module(name: str = "auto") -> ModuleType:
    """Imports a TensorRT module.

    Args:
        name: Element of NAMES, or "auto" for the first one that can be imported.

    Raises:
        BackendError: No module can be imported. The message contains the reasons.
    """
    reasons = []
    for candidate in NAMES if name == "auto" else (name,):
        try:
            return importlib.import_module(candidate)
        except (
            ImportError,
            OSError,
            RuntimeError,
        ) as error:  # the wheel may be a stub, or its libraries may be missing
            reasons.append(f"{candidate}: {error}")
    raise BackendError(
        f"TensorRT cannot be imported ({'; '.join(reasons)}); "
        f"install it (pip install -e ./client -e '.[engine]'), or use an image that contains it"
    )


def describe_module(module: ModuleType) -> str:
    """Returns name and version in the format used by engine keys."""
    return f"{module.__name__} {module.__version__}"


def is_rtx(module: ModuleType) -> bool:
    """Returns whether the module is TensorRT-RTX.

    TensorRT-RTX builds for any target without the device; TensorRT builds for the device it runs on.
    """
    return module.__name__ == "tensorrt_rtx"
