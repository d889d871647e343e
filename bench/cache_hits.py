"""Speed-up of hits on the whole stack, by the number of entries in the cache: one part of `bench.cache`.

One deployment per number runs at the same time as the others, on a copy of the same donors. Half of the other
entries belong to the donors' identity, so that a lookup compares its vector with theirs, and half to another.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
from chorus.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from chorus_client import ChorusClient
from rich.progress import track

from bench import results
from bench.cache_rows import TENANT, divide, draw_vectors, fill, label_size, make_entry, to_ms
from bench.results import Figure
from evaluation.deployment import local_deployment
from evaluation.measure import vary_spacing
from evaluation.prompts import Group
from evaluation.scenes import SINGLE_EDITS, make_groups
from evaluation.timing import TimedGeneration, generate_timed, warm_up
from services.cache.directory import DirectoryBlobs
from services.cache.embedded import EmbeddedIndex
from services.cache.entries import Blob, Entry, Space, make_blob_key
from services.contract.identity import entry_id, prompt_hash

if TYPE_CHECKING:
    from collections.abc import Iterator

POLICY: Final = "balanced"
SECONDS: Final = 60.0
STORES: Final = "stores"  # folder of index and latents, beside that of the deployment, which is emptied
OTHER_MODEL: Final = "bench-other"
_CALL_SECONDS: Final = 30.0


@dataclass
class Timings:
    """Durations of the same targets in one deployment.

    Attributes:
        hits, full: Durations of hits and of full computations, in seconds.
        donors: Ids of the donors' generations.
    """

    hits: list[float] = field(default_factory=list)
    full: list[float] = field(default_factory=list)
    donors: list[str] = field(default_factory=list)


@contextmanager
def deploy(folder: Path) -> Iterator[dict[str, str]]:
    """Runs all services with index and latents in `folder`/stores, which is kept; yields their addresses."""
    stores = {
        "CHORUS_CACHE_MILVUS_URI": str(folder / STORES / "milvus.db"),
        "CHORUS_CACHE_BLOB_DIR": str(folder / STORES / "blobs"),
    }
    with local_deployment(folder / "up", settings=stores) as targets:
        yield targets


def prepare_donors(folder: Path, groups: Sequence[Group], seed: int) -> Space:
    """Generates the donors into the stores of `folder`; returns the space of their vectors."""
    with deploy(folder) as targets, ChorusClient(targets["scheduler"]) as client:
        warm_up(client, no_store=True)
        for number, group in enumerate(track(groups, "donors")):
            generate_timed(client, group.donor.prompt, seed=seed + number, reuse="off")
        # A run begins once the latents of the one before are admitted.
        warm_up(client, no_store=True)
        with grpc.insecure_channel(targets["embedder"]) as channel:
            stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
            reply = stub.DescribeEncoders(embedder_pb2.DescribeEncodersRequest(), timeout=_CALL_SECONDS)
        [encoder] = [each for each in reply.encoders if each.retrieval]
        return Space(encoder.encoder_id, encoder.vector_dim)


def make_fillers(donor: Entry, other_blob: Blob, count: int) -> list[Entry]:
    """Returns entries whose latents exist, so that a sweep keeps them: every second one of another identity.

    Args:
        donor: Entry whose identity and latents the others share.
        other_blob: Blob that exists for the other identity.
    """
    fillers = []
    for number in range(count):
        own = make_entry(number, donor.identity, donor.model_id)
        if number % 2:
            other = make_entry(number, prompt_hash(OTHER_MODEL), OTHER_MODEL)
            fillers.append(replace(other, blobs=(other_blob,), created_ms=donor.created_ms))
            continue
        prompt = f"nothing that resembles any request, entry {number}"
        fillers.append(
            replace(
                own,
                entry_id=entry_id(TENANT, donor.identity, prompt, number),
                prompt=prompt,
                prompt_hash=prompt_hash(prompt),
                blobs=donor.blobs,
                created_ms=donor.created_ms,
            )
        )
    return fillers


async def fill_stores(stores: Path, space: Space, entries: int) -> None:
    """Adds rows to the index of a cache that does not run, until it holds `entries` of them."""
    index = await EmbeddedIndex.open_path(str(stores / "milvus.db"), seconds=SECONDS)
    blobs = await DirectoryBlobs.open(stores / "blobs", seconds=SECONDS, threads=1)
    try:
        donors = [entry async for page in index.every_entry(space.name) for entry in page]
        data = b"latents of another identity"
        other_blob = Blob(1, 0.8, len(data), prompt_hash(data.decode()))
        await blobs.put(make_blob_key(TENANT, prompt_hash(OTHER_MODEL), other_blob.digest), data)
        missing = max(0, entries - len(donors))
        fillers = make_fillers(donors[0], other_blob, missing)
        await fill(index, space, fillers, draw_vectors(missing, 0, space.dimension))
    finally:
        await blobs.close()
        await index.close()


def time_target(client: ChorusClient, prompt: str, seed: int) -> tuple[TimedGeneration, TimedGeneration]:
    """Generates a target with reuse and in full; stores neither."""
    hit = generate_timed(client, vary_spacing(prompt, 0), seed=seed, reuse=POLICY, no_store=True)
    full = generate_timed(client, vary_spacing(prompt, 1), seed=seed, reuse="off", no_store=True)
    return hit, full


def time_targets(
    clients: Mapping[int, ChorusClient], groups: Sequence[Group], seed: int
) -> dict[int, Timings]:
    """Times every target in every deployment, alternately; omits those that are not reused everywhere."""
    timings = {entries: Timings() for entries in clients}
    for number, group in enumerate(track(groups, "hits")):
        order = sorted(clients, reverse=bool(number % 2))
        found = {
            entries: time_target(clients[entries], group.targets[0].prompt, seed + number)
            for entries in order
        }
        if not all(hit.generation.HasField("donor") for hit, _ in found.values()):
            continue
        for entries, (hit, full) in found.items():
            timings[entries].hits.append(hit.seconds)
            timings[entries].full.append(full.seconds)
            timings[entries].donors.append(hit.generation.donor.generation_id)
    return timings


def build_figures(timings: Mapping[int, Timings], prompts: int) -> dict[str, Figure]:
    """Computes the speed-ups by number of entries, and the ratio of the last to the first.

    Raises SystemExit if no target was reused.

    Args:
        timings: Durations by number of entries.
        prompts: Number of targets that were requested.
    """
    (first, few), (last, many) = min(timings.items()), max(timings.items())
    if not few.hits:
        raise SystemExit("no target was reused")
    figures = {"hit_share": results.share(len(few.hits), prompts)}
    for entries, timed in timings.items():
        label = label_size(entries)
        figures[f"hit_speedup_{label}"] = results.median(divide(timed.full, timed.hits), "x")
        figures[f"hit_ms_{label}"] = results.median(to_ms(timed.hits), "ms")
    same = sum(a == b for a, b in zip(few.donors, many.donors, strict=True))
    figures["hit_same_donor"] = results.share(same, len(few.donors))
    ratios = divide(divide(many.full, many.hits), divide(few.full, few.hits))
    figures[f"hit_speedup_{label_size(last)}_over_{label_size(first)}"] = results.median(ratios, "x")
    return figures


def measure_hits(folder: Path, entries: Sequence[int], prompts: int, seed: int) -> dict[str, Figure]:
    """Measures hits of edited prompts at several numbers of entries.

    Args:
        folder: Empty folder for the deployments.
        entries: Numbers of entries, each at least the number of prompts.
        prompts: Number of edited prompts.
        seed: Seed of the prompts and of the first video.
    """
    groups = choose_groups(lambda pairs: make_groups("test", pairs, seed, "unseen"), prompts)
    space = prepare_donors(folder / "donors", groups, seed)
    with ExitStack() as running:
        clients: dict[int, ChorusClient] = {}
        for count in entries:
            place = folder / str(count)
            shutil.copytree(folder / "donors" / STORES, place / STORES)
            asyncio.run(fill_stores(place / STORES, space, count))
        for count in entries:
            targets = running.enter_context(deploy(folder / str(count)))
            clients[count] = running.enter_context(ChorusClient(targets["scheduler"]))
            warm_up(clients[count], no_store=True)
        timings = time_targets(clients, groups, seed)
    return build_figures(timings, len(groups))


def choose_groups(make: Callable[[int], Sequence[Group]], prompts: int) -> list[Group]:
    """Returns the first `prompts` pairs that differ by a single edit.

    Args:
        make: Function that returns a number of pairs of all kinds.
    """
    pairs = prompts
    while len(found := [group for group in make(pairs) if group.kind in SINGLE_EDITS]) < prompts:
        pairs *= 2
    return found[:prompts]
