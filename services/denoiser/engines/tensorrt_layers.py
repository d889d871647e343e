"""What the builder made of a graph, read from the layers it logs at detailed verbosity.

TensorRT's own inspector needs a GPU, for it deserialises the engine; the log does not.
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

    Args:
        attentions: in the graph that was built.
        fused: of them, those that became one kernel; None where the log told of no layer.
        masks: shapes [T, heads, queries, keys] of the masks that those kernels read; -1 is dynamic.
        kinds: layers by kind.
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
        """Masks with a value for every head or query, where one for every key would do."""
        return sum(mask[1:3] != (1, 1) for mask in self.masks)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "masks_expanded": self.masks_expanded}


def read_layers(log: Iterable[str], attentions: int) -> Layers:
    """From the lines of a build's log, written at detailed profiling verbosity."""
    kinds: Counter[str] = Counter()
    masks: list[tuple[int, ...]] = []
    fused = 0
    for line in log:
        if (found := _LAYER.match(line)) is None:
            continue
        kinds[found["kind"]] += 1
        if _FUSED.search(found["name"]):
            fused += 1
            shapes = [tuple(int(n) for n in text.split(",") if n) for text in _SHAPE.findall(found["inputs"])]
            masks.extend(shape for shape in shapes if len(shape) == _MASK_RANK)
    return Layers(attentions, fused if kinds else None, tuple(masks), dict(kinds))


def merged(parts: Sequence[Layers]) -> Layers:
    """Of engines that run one after the other."""
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
