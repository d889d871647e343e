"""Reads the sizes of a network from the `config.json` released with its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from chorus_rpc.file_kinds import describe_file, describe_folder

# Keys by which other networks differ from text-to-video Wan2.1, and the only value supported.
_DIFFUSERS_ONLY = {
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}
_ORIGINAL_ONLY = {"qk_norm": True, "cross_attn_norm": True}
# The second is Wan2.2-TI2V-5B: without an image it is a text-to-video network.
_ORIGINAL_TYPES = ("t2v", "ti2v")


def read_network_sizes(path: Path) -> dict[str, Any]:
    """Returns the fields of `spec.Transformer` from the config of a diffusers or an original Wan model.

    Raises ValueError naming a key that is missing or that belongs to an unsupported network.
    """
    config = read_config(path)
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ValueError(
            f"{path}: quantization_config: quantised weights ({method}) are not supported; "
            "use the release in bfloat16 or float16"
        )
    kind = config.get("_class_name")
    readers: dict[Any, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
        "WanTransformer3DModel": _diffusers,
        "WanModel": _original,
    }
    if kind not in readers:
        raise ValueError(f"{path}: _class_name: must be {' or '.join(readers)}, not {kind!r}")
    try:
        sizes = readers[kind](config)
        _require_text_to_video(sizes)
        return sizes
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]}: missing") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """Reads a `config.json`. Raises ValueError naming the file."""
    try:
        config = json.loads(path.read_bytes())
    except IsADirectoryError as error:
        raise ValueError(f"{path}: is a folder: name the config.json in it") from error
    except OSError as error:
        kind = describe_folder(path.parent)
        hint = f"; {path.parent} {kind}" if kind else ""
        raise ValueError(f"{path}: cannot be read: {error.strerror}{hint}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {describe_file(path) or error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: must hold a JSON object")
    return config


def _diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    _require(config, _DIFFUSERS_ONLY)
    return {
        "in_channels": config["in_channels"],
        "out_channels": config.get("out_channels") or config["in_channels"],
        "patch_size": config["patch_size"],
        "heads": config["num_attention_heads"],
        "head_dim": config["attention_head_dim"],
        "ffn_dim": config["ffn_dim"],
        "layers": config["num_layers"],
        "text_dim": config["text_dim"],
        "freq_dim": config["freq_dim"],
        "eps": config["eps"],
    }


def _original(config: Mapping[str, Any]) -> dict[str, Any]:
    if (kind := config.get("model_type", "t2v")) not in _ORIGINAL_TYPES:
        raise ValueError(f"model_type: must be {' or '.join(_ORIGINAL_TYPES)}, not {kind!r}")
    _require(config, _ORIGINAL_ONLY)
    dim, heads = int(config["dim"]), int(config["num_heads"])
    if dim % heads:
        raise ValueError(f"dim: must be a multiple of num_heads = {heads}, not {dim}")
    return {
        "in_channels": config["in_dim"],
        "out_channels": config["out_dim"],
        # The original release defines these two in its code.
        "patch_size": config.get("patch_size", (1, 2, 2)),
        "text_dim": config.get("text_dim", 4096),
        "heads": heads,
        "head_dim": dim // heads,
        "ffn_dim": config["ffn_dim"],
        "layers": config["num_layers"],
        "freq_dim": config["freq_dim"],
        "eps": config["eps"],
    }


def _require_text_to_video(sizes: Mapping[str, Any]) -> None:
    found, expected = sizes["in_channels"], sizes["out_channels"]
    if found != expected:
        raise ValueError(
            f"in_channels: must be out_channels = {expected}, not {found}: networks that read an image or a "
            f"control video in addition to the latents (image-to-video) are not supported"
        )


def _require(config: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    for key, value in only.items():
        if (found := config.get(key, value)) != value:
            raise ValueError(
                f"{key}: must be {value!r}, not {found!r}: only text-to-video Wan2.1 is supported"
            )
