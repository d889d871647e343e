"""Tests of the recognition of files and folders by their content, whatever their names say."""

import gzip
import json
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from chorus_rpc.file_kinds import SAFETENSORS, describe_file, describe_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

pytestmark = pytest.mark.fault("misleading-refusals")

STATE = {"blocks.0.self_attn.q.weight": torch.ones(4, 4)}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 28000000000\n"


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "model.py")


def write_npz(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, a=np.ones(3))


def write_npy(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.ones(3))


WRITERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "torch.save": (lambda path: torch.save(STATE, path), "pickled PyTorch file"),
    "torch.save, old": (
        lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
        "pickled PyTorch file",
    ),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "pickled PyTorch file"),
    "GGUF": (lambda path: path.write_bytes(b"GGUF\x03\0\0\0" + bytes(64)), "is a GGUF file"),
    "LFS pointer": (lambda path: path.write_text(LFS), "Git LFS pointer .*git lfs pull"),
    "web page": (lambda path: path.write_text("\n<!DOCTYPE html><html>Sign in</html>"), "web page"),
    "empty": (lambda path: path.write_bytes(b""), "is empty: .*fetch it again"),
    "tar": (write_tar, "is an archive: unpack it"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"weights")), "is an archive: unpack it"),
    "npz": (write_npz, "is an archive: unpack it"),
    "npy": (write_npy, "NumPy array"),
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64)), "HDF5"),
    "video": (lambda path: path.write_bytes(b"\0\0\0\x20ftypisom" + bytes(64)), "is a video"),
    "safetensors": (lambda path: save_file(STATE, path), "is a safetensors file"),
    "JSON": (lambda path: path.write_text('{"a": 1}'), "is a JSON file"),
    "text": (lambda path: path.write_text("Nicht möglich."), "is a text file"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_file_is_recognised_by_its_content(tmp_path: Path, kind: str) -> None:
    write, expected = WRITERS[kind]
    path = tmp_path / "model.safetensors"
    write(path)
    found = describe_file(path)
    assert found is not None
    assert re.search(expected, found)


def test_safetensors_file_whose_length_looks_like_a_pickle_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = b"{}".ljust(0x280)
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert path.read_bytes().startswith(b"\x80\x02")
    assert describe_file(path) == SAFETENSORS


def test_unknown_and_missing_files_are_not_described(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(range(255, 0, -1)))
    assert describe_file(tmp_path / "noise") is None
    assert describe_file(tmp_path / "none") is None
    assert describe_file(tmp_path) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_content_is_accepted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(content)
    assert describe_file(path) is None or content or "is empty" in str(describe_file(path))


def test_folder_of_a_pipeline_names_its_components(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    for name in ("vae", "transformer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert describe_folder(tmp_path) == (
        "is the folder of a diffusers pipeline: name the folder of one component (transformer, vae)"
    )


@pytest.mark.parametrize("sign", ["encoder", "config"])
def test_original_release_of_wan_is_recognised(tmp_path: Path, sign: str) -> None:
    if sign == "encoder":
        torch.save(STATE, tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    else:
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanModel", "model_type": "t2v"}))
    assert "original release of Wan" in str(describe_folder(tmp_path))


def test_folder_of_an_adapter_and_of_pickled_weights_are_recognised(tmp_path: Path) -> None:
    assert describe_folder(tmp_path) is None
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds pytorch_model.bin, which is a pickled PyTorch file" in str(describe_folder(tmp_path))
    (tmp_path / "pytorch_model.bin").unlink()
    (tmp_path / "config.json").write_text("[")
    assert "holds the settings of an adapter of PEFT" in str(describe_folder(tmp_path))
