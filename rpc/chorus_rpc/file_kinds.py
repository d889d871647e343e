"""Recognises files and folders by their content, so that a refusal says what they are and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

SAFETENSORS = "is a safetensors file"
TEXT = "is a text file"
_HEAD_BYTES = 4096
_PICKLE = (
    "is a pickled PyTorch file, which can run code when it is loaded: use the release in safetensors, or "
    "convert it with safetensors.torch.save_file"
)
_ARCHIVE = "is an archive: unpack it and name the safetensors file in it"


def _starts(*prefixes: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(prefixes)


def _is_html(head: bytes) -> bool:
    return re.match(rb"\s*(<!doctype html|<html|<\?xml)", head, re.IGNORECASE) is not None


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32


def _is_text(head: bytes) -> bool:
    # The last character may be cut.
    return b"\0" not in head and "\ufffd" not in head.decode("utf-8", "replace")[:-1]


# The first that fits describes a file, as the predicate of a sentence.
_KINDS: tuple[tuple[Callable[[bytes], bool], str], ...] = (
    (lambda head: not head, "is empty: its download was interrupted; fetch it again"),
    # Before the others: the length at its start may look like the magic number of another kind.
    (_is_safetensors, SAFETENSORS),
    (
        _starts(b"version https://git-lfs"),
        "is a Git LFS pointer to the file, not the file: run `git lfs pull`, or fetch it with `hf download`",
    ),
    (_is_html, "is a web page: the download saved a login, licence or error page; use `hf download`"),
    (_starts(b"GGUF"), "is a GGUF file, quantised for other programs: use the release in safetensors"),
    (lambda head: head.startswith(b"PK\x03\x04") and b"data.pkl" in head, _PICKLE),
    (lambda head: re.match(rb"\x80[\x02-\x05]", head) is not None, _PICKLE),
    (_starts(b"\x89HDF"), "is an HDF5 file, as Keras saves weights: use the release in safetensors"),
    (_starts(b"\x93NUMPY"), "is a NumPy array: save the tensors by name as safetensors"),
    (_starts(b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd", b"Rar!"), _ARCHIVE),
    (lambda head: head[257:262] == b"ustar", _ARCHIVE),
    (_starts(b"\x89PNG", b"\xff\xd8\xff", b"RIFF"), "is an image or a video, not a model"),
    (lambda head: head[4:8] == b"ftyp", "is a video, not a model"),
    (_starts(b"{", b"["), "is a JSON file"),
    (_is_text, TEXT),
)
_MODEL_FILE = "a model is described by a TOML file that names its weights, as in examples/models"
_PICKLED_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")


def describe_file(path: Path) -> str | None:
    """Describes what a file is, as the predicate of a sentence; None if it is unknown or cannot be read."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return None
    return next((text for fits, text in _KINDS if fits(head)), None)


def describe_folder(path: Path) -> str | None:
    """Describes a folder that lacks what was expected, as the predicate of a sentence; None if unknown."""
    if (path / "model_index.json").is_file():
        components = sorted(config.parent.name for config in path.glob("*/config.json"))
        listed = f": name the folder of one component ({', '.join(components)})" if components else ""
        return f"is the folder of a diffusers pipeline{listed}"
    if any(path.glob("models_t5_*")) or _read_class(path) == "WanModel":
        return (
            "is the original release of Wan, whose text encoder and autoencoder are pickled: use the release "
            "in diffusers' format for them, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )
    foreign = (file for file in sorted(path.glob("*")) if file.suffix in _PICKLED_SUFFIXES)
    described = ((file, describe_file(file)) for file in foreign)
    if found := next((f"holds {file.name}, which {text}" for file, text in described if text), None):
        return found
    if (path / "adapter_config.json").is_file():
        return "holds the settings of an adapter of PEFT, which a model file names under [[adapters]]"
    return None


def describe_wrong_model_file(path: Path) -> str | None:
    """Describes what was given in the place of a model file (TOML); None for text and for an unknown file."""
    if path.is_dir():
        found = sorted(path.glob("*.toml"))
        if found:
            return f"is a folder; name the model file in it, {found[0]}"
        kind = describe_folder(path)
        return f"is a folder{f' that {kind}' if kind else ''}; {_MODEL_FILE}"
    kind = describe_file(path)
    return None if kind in (None, TEXT) else f"not TOML; it {kind}; {_MODEL_FILE}"


def _read_class(folder: Path) -> str | None:
    """Returns the class that a config.json in the style of diffusers names."""
    try:
        found = json.loads((folder / "config.json").read_bytes()).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None
