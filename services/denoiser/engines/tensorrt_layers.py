"""Layers of an engine, parsed from the builder's log at detailed verbosity.

TensorRT's inspector deserialises the engine and therefore needs a GPU; the log does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_LAYER = re.compile(
    r"^\s*Name: (?P<name>.+?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], (Constants|Outputs)"
)
_SHAPE = re.compile(r"Dimensions: \[([^]]*)\]")
_FUSED = re.compile(r"mha|fmha|flash", re.IGNORECASE)
# Queries, keys and values have three dimensions inside the fused kernel; a mask has four.
_MASK_RANK = 4


@dataclass(frozen=True)
class Layers:
    """Layers of an engine.

    Attributes:
        attentions: Number of attentions in the graph.
        fused: Number of attentions that became one kernel; None if the log contains no layers.
        masks: Shapes [T, heads, queries, keys] of the masks read by fused attentions; -1 is dynamic.
        kinds: Number of layers by kind.
    """

    attentions: int
    fused: int | None
    masks: tuple[tuple[int, ...], ...]
    kinds: dict[str, int]

    @property
    def all_fused(self) -> bool:
        return self.fused == self.attentions

    @property
    def masks_expanded(self) -> int:
        """Number of masks with values per head or query, although values per key suffice."""
        return sum(mask[1:3] != (1, 1) for mask in self.masks)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "masks_expanded": self.masks_expanded}


def parse_layers(log: Iterable[str], attentions: int) -> Layers:
    """Parses the lines of a build log written at detailed profiling verbosity.

    Args:
        attentions: Number of attentions in the graph.
    """
    kinds: Counter[str] = Counter()
    masks: list[tuple[int, ...]] = []
    fused = 0
    for line in log:
        if (layer := _LAYER.match(line)) is None:
            continue
        kinds[layer["kind"]] += 1
        if _FUSED.search(layer["name"]):
            fused += 1
            shapes = [tuple(int(n) for n in text.split(",") if n) for text in _SHAPE.findall(layer["inputs"])]
            masks.extend(shape for shape in shapes if len(shape) == _MASK_RANK)
    return Layers(attentions, fused if kinds else None, tuple(masks), dict(kinds))


def merge_layers(parts: Sequence[Layers]) -> Layers:
    """Adds up the layers of engines that run in sequence."""
    kinds: Counter[str] = Counter()
    fused = [part.fused for part in parts]
    for part in parts:
        kinds.update(part.kinds)
    return Layers(
        sum(part.attentions for part in parts),
        None if None in fused else sum(count for count in fused if count is not None),
        tuple(mask for part in parts for mask in part.masks),
        dict(kinds),
    )
