"""Types of index on a Milvus server: `infra/testservers/run .venv/bin/python -m bench.index_types`.

For each number of entries and each type: the time to build the index, the time of a filtered search, and the
share of the true neighbours that it finds. A lookup is filtered by tenant, so one search is among nearly all
entries and one among a hundredth. Vectors lie in clusters, as prompts that were edited do. Writes
bench/results/index_types.json. 1,000,000 entries take about an hour and 8 GiB of memory.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray
from pymilvus import DataType, MilvusClient

from bench import results
from bench.cache_milvus import URI
from bench.results import Figure

OUT: Final = results.RESULTS / "index_types.json"
_DIMENSIONS: Final = 384
_LIMIT: Final = 8  # neighbours of a lookup
_CLUSTER: Final = 200  # entries of a cluster
_SPREAD: Final = 0.35
_BATCH: Final = 2_000  # rows of one write
_SECONDS: Final = 3_600.0
# Type → parameters of the index, and of a search.
TYPES: Final[Mapping[str, tuple[Mapping[str, int], Mapping[str, int]]]] = {
    "FLAT": ({}, {}),
    "IVF_FLAT": ({"nlist": 1024}, {"nprobe": 32}),
    "HNSW": ({"M": 16, "efConstruction": 200}, {"ef": 64}),
}
# Every how many entries one belongs to the tenant with few.
_FEW: Final = 100


def draw_clustered(count: int, clusters: int, seed: int) -> NDArray[np.float32]:
    """Draws vectors of length 1 around centres, which depend on their number alone."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((clusters, _DIMENSIONS))
    drawn = centres[rng.integers(0, len(centres), count)]
    drawn += _SPREAD * rng.standard_normal(drawn.shape)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn.astype(np.float32)


def name_tenant(number: int) -> str:
    return "few" if number % _FEW == 0 else "most"


def fill(client: MilvusClient, name: str, vectors: NDArray[np.float32]) -> None:
    """Creates a collection without an index, and fills it."""
    schema = client.create_schema(auto_id=False)
    schema.add_field("number", DataType.INT64, is_primary=True)
    schema.add_field("tenant", DataType.VARCHAR, max_length=64, is_partition_key=False)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=_DIMENSIONS)
    client.create_collection(name, schema=schema, timeout=_SECONDS)
    for begin in range(0, len(vectors), _BATCH):
        rows = [
            {"number": i, "tenant": name_tenant(i), "vector": vectors[i].tolist()}
            for i in range(begin, min(begin + _BATCH, len(vectors)))
        ]
        client.insert(name, rows, timeout=_SECONDS)
    client.flush(name, timeout=_SECONDS)


def build(client: MilvusClient, name: str, kind: str, parameters: Mapping[str, int]) -> float:
    """Builds the index of a type and loads the collection. Returns the seconds until it can be searched."""
    start = time.perf_counter()
    index = client.prepare_index_params()
    index.add_index("vector", index_type=kind, metric_type="COSINE", params=dict(parameters))
    client.create_index(name, index, timeout=_SECONDS)
    client.load_collection(name, timeout=_SECONDS)
    return time.perf_counter() - start


def measure(
    client: MilvusClient, name: str, vectors: NDArray[np.float32], queries: NDArray[np.float32], key: str
) -> Iterator[tuple[str, Figure]]:
    """Yields the figures of each type on a filled collection.

    Args:
        key: label of the number of entries.
    """
    numbers = np.arange(len(vectors))
    few = numbers % _FEW == 0
    own = {"few": numbers[few], "most": numbers[~few]}
    true = {
        tenant: [set(ids[np.argsort(-(vectors[ids] @ query))[:_LIMIT]].tolist()) for query in queries]
        for tenant, ids in own.items()
    }
    for kind, (parameters, search) in TYPES.items():
        seconds = build(client, name, kind, parameters)
        yield f"build_seconds_{kind}_{key}", results.single(seconds, "s")
        for tenant, wanted in true.items():
            durations, found = [], []
            for query, neighbours in zip(queries, wanted, strict=True):
                start = time.perf_counter()
                [hits] = client.search(
                    name,
                    data=[query.tolist()],
                    filter=f'tenant == "{tenant}"',
                    limit=_LIMIT,
                    search_params={"metric_type": "COSINE", "params": dict(search)},
                    timeout=_SECONDS,
                )
                durations.append(1000 * (time.perf_counter() - start))
                found.append(len(neighbours & {hit["id"] for hit in hits}) / len(neighbours))
            yield f"search_p50_ms_{kind}_{tenant}_{key}", results.median(durations, "ms")
            yield f"search_p99_ms_{kind}_{tenant}_{key}", results.quantile(durations, 0.99, "ms")
            yield f"recall_{kind}_{tenant}_{key}", results.mean(found, "of the true neighbours")
        client.release_collection(name, timeout=_SECONDS)
        client.drop_index(name, "vector", timeout=_SECONDS)


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of entries, separated by commas.")] = "10000,100000",
    requests: Annotated[int, typer.Option(min=10, help="Number of searches of each figure.")] = 200,
) -> None:
    """Measures the types of index and writes the result file."""
    uri = os.environ.get(URI)
    if not uri:
        raise typer.BadParameter(f"{URI} is not set: start this by infra/testservers/run")
    client: Any = MilvusClient(uri=uri, timeout=_SECONDS)
    figures: dict[str, Figure] = {}
    for size in map(int, sizes.split(",")):
        name = f"types_{uuid.uuid4().hex}"
        clusters = max(1, size // _CLUSTER)
        vectors = draw_clustered(size, clusters, 1)
        queries = draw_clustered(requests, clusters, 2)
        try:
            fill(client, name, vectors)
            for key, figure in measure(client, name, vectors, queries, f"{size // 1000}k"):
                print(f"{key}: {figure.value:.4g} {figure.unit}", flush=True)
                figures[key] = figure
        finally:
            client.drop_collection(name, timeout=_SECONDS)
    client.close()
    command = (
        f"infra/testservers/run .venv/bin/python -m bench.index_types {shlex.join(sys.argv[1:])}".strip()
    )
    results.write(OUT, command, figures)


if __name__ == "__main__":
    typer.run(main)
