"""Reads safetensors weights; everything is checked before a tensor is allocated."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from chorus_rpc.chunks import BlobFault
from chorus_rpc.file_kinds import SAFETENSORS, describe_file, describe_folder
from safetensors import safe_open
from torch import Tensor

from services.contract import safetensors_header
from services.contract.safetensors_header import SafetensorsHeader, TensorHeader
from services.denoiser.checkpoint.names import describe_foreign_network

NETWORK_TYPES = ("F32", "F16", "BF16")  # floating types a network is stored in
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32")
_QUANTISED = "quantised weights are not supported; use the release in bfloat16 or float16"
# Tensors of adapters, and the scales of quantised weights, by a part of their names.
_ADAPTER_PART = re.compile(r"[._]lora[._]|\.(hada_|lokr_|diff(_[bm])?$|dora_scale)")
_QUANTISED_PART = re.compile(
    r"(?:^|[._])(qweight|qzeros|g_idx|absmax|quant_map|quant_state|scale_weight|weight_scale|input_scale|scaled_fp8)\b"
)
_MAX_HEADER = 64 << 20  # bytes; Wan's 14B index is a few hundred kB


class WeightsError(Exception):
    """Fault of a weights file; the message names file and tensor."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


def read_header(path: Path) -> SafetensorsHeader:
    """Reads the header of a safetensors file; the sizes of its tensors are checked against the file's length.

    Raises WeightsError if the file is missing, truncated or not safetensors.
    """
    try:
        with path.open("rb") as stream:
            return safetensors_header.read_header(stream, path.stat().st_size, _MAX_HEADER)
    except OSError as error:
        raise WeightsError(path, f"cannot be read: {error.strerror}") from error
    except BlobFault as fault:
        kind = describe_file(path)
        if kind is None or kind == SAFETENSORS:
            raise WeightsError(path, _explain_fault(str(fault))) from fault
        raise WeightsError(path, f"{kind} (expected safetensors)") from fault


def _explain_fault(fault: str) -> str:
    """Returns the fault of a header with what to do about it."""
    if "truncated" in fault:
        return f"{fault}; fetch it again"
    return f"{fault}: {_QUANTISED}" if re.search(r"unknown type F[468]", fault) else fault


def check_types(path: Path, tensor: TensorHeader, types: Collection[str] = NETWORK_TYPES) -> None:
    """Raises WeightsError for a tensor of another type, by default one in which no network is stored."""
    if tensor.dtype not in types:
        quantised = types is NETWORK_TYPES and (tensor.dtype.startswith("F8") or tensor.dtype in _INTEGERS)
        hint = f": {_QUANTISED}" if quantised else ""
        raise WeightsError(
            path, f"tensor {tensor.name}: type {tensor.dtype}, expected {' or '.join(types)}{hint}"
        )


def weight_files(path: Path) -> list[Path]:
    """Returns the files of a path in name order: itself, the shards of a `*.index.json`, or a folder's files.

    A folder, as diffusers saves one, holds either one index or one safetensors file.
    """
    if path.is_dir():
        found = sorted(path.glob("*.safetensors.index.json")) or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise WeightsError(path, _describe_weights_folder(path, found))
        return weight_files(found[0])
    if path.suffix != ".json":
        return [path]
    try:
        shards = set(json.loads(path.read_bytes())["weight_map"].values())
    except OSError as error:
        raise WeightsError(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            path,
            f"not an index of safetensors shards ({error}): name a *.safetensors.index.json or its folder",
        ) from error
    for shard in shards:
        if not re.fullmatch(r"[\w.-]+\.safetensors", str(shard)):
            raise WeightsError(
                path, f"shard {shard!r}: must be a *.safetensors file in the folder of the index"
            )
    files = [path.parent / str(shard) for shard in sorted(shards)]
    if missing := [file.name for file in files if not file.exists()]:
        raise WeightsError(
            path,
            f"names {len(files)} shards, of which {', '.join(missing[:3])} {_count_rest(missing)}missing: "
            "fetch the whole folder again",
        )
    return files


def _count_rest(missing: Sequence[str]) -> str:
    if len(missing) == 1:
        return "is "
    return f"and {len(missing) - 3} more are " if len(missing) > 3 else "are "


def _describe_weights_folder(path: Path, found: Sequence[Path]) -> str:
    """Describes why a folder does not hold one set of weights, and what to do."""
    rule = f"must hold one *.safetensors file or one index of shards, not {len(found)}"
    if not found:
        kind = describe_folder(path)
        return f"{rule}; it {kind}" if kind else rule
    names = ", ".join(file.name for file in found[:3])
    if all(re.search(r"-\d{5}-of-\d{5}\.", file.name) for file in found):
        return f"{rule}: {names} are shards; fetch their *.safetensors.index.json as well"
    return f"{rule}: name one of {names}"


def weights_digest(path: Path) -> str:
    """Returns the SHA-256, lower-case hex, of the bytes of all weight files in name order."""
    digest = hashlib.sha256()
    for file in weight_files(path):
        try:
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise WeightsError(file, f"cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def verify_digest(path: Path, sha256: str | None) -> str:
    """Returns the `weights_digest`. Raises WeightsError if it is not `sha256`."""
    found = weights_digest(path)
    if sha256 is not None and found != sha256.lower():
        raise WeightsError(path, f"sha256 {found}, expected {sha256.lower()}: not the weights of this model")
    return found


def check_weights(path: Path, expected: Mapping[str, torch.Size], rename: Callable[[str], str] = str) -> None:
    """Compares the tensors of weight files with the expected names and shapes, without reading them.

    Args:
        rename: Maps a name in the file to a name in `expected`.

    Raises WeightsError for a missing, unknown or repeated tensor, another shape or type.
    """
    found: dict[str, Path] = {}
    for file in weight_files(path):
        header = read_header(file)
        for tensor in header.tensors:
            check_types(file, tensor)
            name = tensor.name
            ours = rename(name)
            if ours not in expected:
                raise WeightsError(file, _describe_unknown(name, header, expected))
            if ours in found:
                raise WeightsError(file, f"tensor {name}: also in {found[ours].name}")
            if tensor.shape != tuple(expected[ours]):
                raise WeightsError(
                    file, f"tensor {name}: shape {list(tensor.shape)}, expected {list(expected[ours])}"
                )
            found[ours] = file
    if missing := sorted(set(expected) - set(found)):
        raise WeightsError(path, f"tensor {missing[0]}: missing (and {len(missing) - 1} more)")


def _describe_unknown(name: str, header: SafetensorsHeader, expected: Iterable[str]) -> str:
    """Describes a tensor that is no parameter of the network, by the company that it keeps."""
    names = [tensor.name for tensor in header.tensors]
    if any(map(_ADAPTER_PART.search, names)):
        return (
            f"tensor {name}: is part of an adapter, not of a whole network: name the file under [[adapters]]"
        )
    fault = f"tensor {name}: no such parameter in this architecture"
    if any(map(_QUANTISED_PART.search, names)):
        return f"{fault}: {_QUANTISED}"
    network = describe_foreign_network(names, expected)
    return f"{fault}: the file is of another network, {network}" if network else fault


def read_tensors(path: Path, device: str | torch.device = "cpu") -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of weight files one at a time, so that the network is never in memory twice."""
    for file in weight_files(path):
        with safe_open(file, framework="pt", device=str(device)) as tensors:
            for name in tensors.offset_keys():
                yield name, tensors.get_tensor(name)


def load_weights(
    path: Path,
    expected: Mapping[str, torch.Size],
    *,
    rename: Callable[[str], str] = str,
    convert: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor.float(),
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Loads a state dict of the expected tensors. Raises WeightsError before it allocates any.

    Args:
        path: A safetensors file, an index of shards, or a folder with either.
        rename: Maps a name in the file to a name in `expected`.
        convert: Converts a stored tensor, given the name of its parameter.

    Raises WeightsError for a tensor that holds NaN or infinity, before or after its conversion.
    """
    check_weights(path, expected, rename)
    state: dict[str, Tensor] = {}
    for name, tensor in read_tensors(path, device):
        ours = rename(name)
        state[ours] = converted = convert(ours, tensor)
        if not is_finite(converted):
            raise WeightsError(path, f"tensor {name}: {_describe_infinity(tensor, converted.dtype)}")
    return state


def is_finite(tensor: Tensor) -> bool:
    """Returns whether a tensor that is not empty holds neither NaN nor infinity.

    It reads each value once and allocates nothing, which takes a tenth of the time of `isfinite().all()`.
    """
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def _describe_infinity(stored: Tensor, dtype: torch.dtype) -> str:
    """Describes why a tensor is not finite after its conversion to `dtype`."""
    if not is_finite(stored):
        return "holds NaN or infinity"
    name = str(dtype).removeprefix("torch.")
    return f"exceeds the range of {name}: set transformer.dtype to bfloat16 or float32"
