"""Many generations on a small disk: one part of `bench.cache`.

All services keep their files on the disk: index, latents, jobs and videos. The cache takes a tenth of it, so
that it evicts all the time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from chorus_client import CacheClient, ChorusClient
from rich.progress import track

from bench import results
from bench.results import Figure
from evaluation.deployment import local_deployment
from evaluation.scenes import make_groups

GENERATIONS: Final = 300


def count_bytes(folder: Path) -> int:
    """Adds up the files below a folder, of which some may be deleted meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def measure_disk(folder: Path, generations: int, seed: int) -> dict[str, Figure]:
    """Generates videos of different prompts, and edits of them, one after the other.

    Args:
        folder: folder on the disk; a new one is made in it.
        generations: number of generations, at least 2.
        seed: seed of the prompts and of the first video.
    """
    disk = os.statvfs(folder)
    groups = make_groups("test", (generations + 1) // 2, seed, "unseen")
    prompts = [case.prompt for group in groups for case in (group.donor, group.targets[0])][:generations]
    home = folder / "up"
    made, unstored, hits, largest = 0, 0, 0, 0
    free = disk.f_bavail * disk.f_frsize
    with (
        local_deployment(home) as targets,
        ChorusClient(targets["scheduler"]) as client,
        CacheClient(targets["cache"]) as cache,
    ):
        for number, prompt in enumerate(track(prompts, "small disk")):
            video = client.generate(prompt, seed=seed + number // 2)
            made += bool(video.data)
            hits += video.hit
            unstored += any("not stored" in warning.message for warning in video.warnings)
            largest = max(largest, count_bytes(home / "blobs"))
            left = os.statvfs(folder)
            free = min(free, left.f_bavail * left.f_frsize)
        stats = cache.stats()
    return {
        "small_disk_bytes": results.single(disk.f_blocks * disk.f_frsize, "B"),
        "small_disk_least_free_bytes": results.single(free, "B"),
        "small_disk_videos": results.share(made, len(prompts)),
        "small_disk_unstored": results.share(unstored, len(prompts)),
        "small_disk_hits": results.share(hits, len(prompts)),
        "small_disk_evictions": results.single(sum(stats.evictions.values()), "entries"),
        "capacity_overshoot_ratio": results.single(largest / stats.capacity, "of the capacity"),
    }
