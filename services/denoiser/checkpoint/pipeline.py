"""Checks that a transformer is a whole text-to-video model, by the files of the pipeline that it belongs to.

The weights alone do not show it: the two experts of Wan2.2-A14B, each trained for one range of noise levels,
have the shapes of Wan2.1-14B.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from services.denoiser.checkpoint.config import read_config, read_network_sizes
from services.denoiser.checkpoint.weights import WeightsError

# Classes of model_index.json whose transformer makes a video from a text. The second is FastWan's.
_PIPELINES = ("WanPipeline", "WanDMDPipeline")
_ONE_OF_TWO = "one of two transformers, each for its own noise levels; models of two are not supported"
_EXPERT = re.compile(r"(high|low)[-_ ]?noise", re.IGNORECASE)
_FILE = "diffusion_pytorch_model"  # start of diffusers' and of the original release's file names


def check_pipeline(weights: Path) -> None:
    """Raises WeightsError if weights are a part of a model, or of another kind of pipeline.

    Args:
        weights: Weights file, index of shards, or folder with either. Files of the pipeline are looked up in
            its folder and in the folder above.
    """
    folder = weights if weights.is_dir() else weights.parent
    for name in dict.fromkeys((weights.name, folder.name)):
        if _EXPERT.search(name):
            raise WeightsError(
                weights, f"{name} is, by its name, {_ONE_OF_TWO}; rename it if it is a whole model"
            )
    if folder.name == "transformer" and (folder.parent / "transformer_2").is_dir():
        raise WeightsError(folder, f"next to transformer_2: {_ONE_OF_TWO}")
    try:
        # A single file of another name may lie in a folder of other models.
        if (weights.is_dir() or weights.name.startswith(_FILE)) and (folder / "config.json").is_file():
            read_network_sizes(folder / "config.json")
        for root in (folder, folder.parent):
            if (index := root / "model_index.json").is_file():
                found = read_config(index)
                if root == folder or folder.name in found:
                    _check_index(index, found)
                    _check_scheduler(root / "scheduler" / "scheduler_config.json")
    except WeightsError:
        raise
    except ValueError as error:  # it begins with the path
        path, _, message = str(error).partition(": ")
        raise WeightsError(Path(path), message) from error


def _check_index(path: Path, index: dict[str, Any]) -> None:
    if _names_part(index.get("transformer_2")):
        raise WeightsError(path, f"transformer_2: the model is {_ONE_OF_TWO}")
    if index.get("boundary_ratio") is not None:
        raise WeightsError(path, f"boundary_ratio: the model is {_ONE_OF_TWO}")
    kind = index.get("_class_name")
    if isinstance(kind, str) and "Causal" in kind:
        raise WeightsError(path, f"_class_name: {kind} attends causally in time, which is not supported")
    if kind not in _PIPELINES:
        raise WeightsError(path, f"_class_name: must be {' or '.join(_PIPELINES)}, not {kind!r}")
    if _names_part(index.get("image_encoder")):
        raise WeightsError(path, "image_encoder: must be null: image-to-video is not supported")


def _check_scheduler(path: Path) -> None:
    if not path.is_file():
        return
    kind = read_config(path).get("prediction_type", "flow_prediction")
    if kind != "flow_prediction":
        raise WeightsError(path, f"prediction_type: must be flow_prediction, not {kind!r}")


def _names_part(part: Any) -> bool:
    """Returns whether a value of model_index.json names a part; a missing part is null or [null, null]."""
    return any(part) if isinstance(part, list) else part is not None
