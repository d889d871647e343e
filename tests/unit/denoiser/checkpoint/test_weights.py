"""Tests of weights files: matching files load; others are rejected by name before anything is allocated."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from services.denoiser.checkpoint.weights import (
    WeightsError,
    check_weights,
    load_weights,
    verify_digest,
    weights_digest,
)

STATE = {"a.weight": torch.arange(12.0).view(3, 4), "a.bias": torch.ones(3), "b": torch.zeros(2, 2, 2)}
EXPECTED = {k: v.shape for k, v in STATE.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    return path


def shards(folder: Path) -> Path:
    save_file({"b": STATE["b"]}, folder / "part-1.safetensors")
    save_file({k: v for k, v in STATE.items() if k != "b"}, folder / "part-2.safetensors")
    index = folder / "model.safetensors.index.json"
    places = {"b": "part-1.safetensors", "a.weight": "part-2.safetensors", "a.bias": "part-2.safetensors"}
    index.write_text(json.dumps({"weight_map": places}))
    return index


def test_single_file_is_loaded(file: Path) -> None:
    state = load_weights(file, EXPECTED)
    assert all(torch.equal(state[k], v) for k, v in STATE.items())


@pytest.mark.parametrize("place", ["index", "folder"])
def test_shards_are_loaded_and_converted(tmp_path: Path, place: str) -> None:
    index = shards(tmp_path)
    state = load_weights(
        index if place == "index" else tmp_path,
        EXPECTED,
        convert=lambda name, tensor: tensor.to(torch.bfloat16 if name == "b" else torch.float64),
    )
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
        k: (v.shape, torch.bfloat16 if k == "b" else torch.float64) for k, v in STATE.items()
    }


def test_digest_covers_the_bytes_in_name_order(tmp_path: Path) -> None:
    index = shards(tmp_path)
    parts = [(tmp_path / f"part-{i}.safetensors").read_bytes() for i in (1, 2)]
    assert weights_digest(index) == weights_digest(tmp_path) == hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("files", [(), ("a.safetensors", "b.safetensors")])
def test_folder_must_hold_exactly_one_set_of_weights(tmp_path: Path, files: tuple[str, ...]) -> None:
    for name in files:
        save_file(STATE, tmp_path / name)
    with pytest.raises(WeightsError, match=f"must hold one .* not {len(files)}"):
        load_weights(tmp_path, EXPECTED)


def test_renamed_tensors_load_and_collisions_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "spelled.safetensors"
    save_file({f"net.{k}": v for k, v in STATE.items()}, path)
    state = load_weights(path, EXPECTED, rename=lambda name: name.removeprefix("net."))
    assert set(state) == set(EXPECTED)
    save_file({"net.b": STATE["b"].clone()} | STATE, path)
    with pytest.raises(WeightsError, match=r"also in spelled\.safetensors"):
        load_weights(path, EXPECTED, rename=lambda name: name.removeprefix("net."))


def test_half_precision_on_disk_is_loaded(tmp_path: Path) -> None:
    save_file({k: v.half() for k, v in STATE.items()}, tmp_path / "half.safetensors")
    state = load_weights(tmp_path / "half.safetensors", EXPECTED)
    assert state["a.weight"].dtype == torch.float32
    assert torch.equal(state["a.weight"], STATE["a.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.bias": None}, "tensor a.bias: missing"),
        ({"lora.up": torch.ones(1)}, "tensor lora.up: no such parameter"),
        ({"a.bias": torch.ones(4)}, r"tensor a.bias: shape \[4\], expected \[3\]"),
        ({"a.bias": torch.ones(3, dtype=torch.int64)}, "tensor a.bias: type I64"),
    ],
)
def test_weights_of_another_network_are_rejected(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({k: v for k, v in {**STATE, **change}.items() if v is not None}, path)
    with pytest.raises(WeightsError, match=message) as caught:
        check_weights(path, EXPECTED)
    assert str(path) in str(caught.value)


def test_weights_with_another_digest_are_rejected(file: Path) -> None:
    with pytest.raises(WeightsError, match=r"sha256 .* expected 0000"):
        verify_digest(file, "0" * 64)
    assert verify_digest(file, None) == verify_digest(file, weights_digest(file)) == weights_digest(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_truncated_file_is_rejected_at_any_length(file: Path, data: st.DataObject) -> None:
    raw = file.read_bytes()
    cut = file.with_name("cut.safetensors")
    cut.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(WeightsError, match="truncated"):
        check_weights(cut, EXPECTED)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_file_of_arbitrary_bytes_is_rejected(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(raw)
    with pytest.raises(WeightsError, match="safetensors"):
        check_weights(path, EXPECTED)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c))
)
def test_header_of_other_json_is_rejected(tmp_path: Path, header: object) -> None:
    raw = json.dumps(header).encode()
    path = tmp_path / "header.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    with pytest.raises(WeightsError):
        check_weights(path, EXPECTED)


@pytest.mark.parametrize("offsets", [[0, 8], [-4, 8], [4, 16], [0, 1 << 40]])
def test_offsets_that_do_not_tile_the_file_are_rejected(tmp_path: Path, offsets: list[int]) -> None:
    header = json.dumps({"a.bias": {"dtype": "F32", "shape": [3], "data_offsets": offsets}}).encode()
    path = tmp_path / "offsets.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    with pytest.raises(WeightsError):
        check_weights(path, {"a.bias": torch.Size([3])})


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none.safetensors: cannot be read: No such file"):
        check_weights(tmp_path / "none.safetensors", EXPECTED)
    index = shards(tmp_path)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"names 2 shards, of which part-1\.safetensors is missing: fetch"):
        check_weights(index, EXPECTED)


def test_index_must_not_leave_its_directory(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b": "../secret.safetensors"}}))
    with pytest.raises(WeightsError, match="in the folder of the index"):
        check_weights(index, EXPECTED)
