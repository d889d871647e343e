"""Text for people about the cache: statistics, entries, damage, adoption."""

from __future__ import annotations

import time
from collections.abc import Sequence

from chorus.cache.v1 import cache_pb2
from chorus.cache.v1.cache_pb2 import AdoptResponse, StatsResponse
from chorus_client import CacheEntry, Damage, Verification
from chorus_rpc.errors import reason_name

from chorus_cli.output import one_line
from chorus_cli.tables import align_columns, fit_last_column, format_age, format_size


def stats_table(stats: StatsResponse) -> str:
    """Lists the statistics of the cache."""
    bound = f" of {format_size(stats.capacity_bytes)}" if stats.capacity_bytes else ""
    rows = {
        "entries": f"{stats.entries:,}",
        "size": format_size(stats.bytes) + bound,
        "pinned": f"{format_size(stats.pinned_bytes)} of {format_size(stats.max_pinned_bytes)}",
        "saved": f"{stats.seconds_saved:,.1f} s by {stats.hits:,} uses of these entries",
        "lookups": f"{stats.lookups:,}, {stats.lookups_with_donor:,} with a donor",
        "fetches": f"{stats.fetches:,}",
        "admissions": f"{stats.admissions:,}",
        "corrupt blobs": f"{stats.corrupt_blobs:,}",
        "evictions": _evictions(stats),
        "rejected": _rejections(stats),
        "stores": f"{stats.index_kind}, {stats.blobs_kind}",
        "object store": _ownership(stats),
        "failed sweeps": f"{stats.failed_sweeps:,}",
        "counting for": format_age(time.time() - stats.start_time.ToNanoseconds() / 1e9),
    }
    table = align_columns(list(rows.items()))
    return f"{table}\n\n{_models_table(stats)}" if stats.models else table


def _models_table(stats: StatsResponse) -> str:
    """Lists the entries of each model, and their bytes by step boundary."""
    rows = [("model", "entries", "size", "by step boundary")]
    for model in stats.models:
        steps = [
            f"{f'x_{each.step}' if each.HasField('step') else 'side data'} {format_size(each.bytes)}"
            for each in model.steps
        ]
        rows.append((model.model_id, f"{model.entries:,}", format_size(model.bytes), ", ".join(steps)))
    return align_columns(rows, right=(1, 2))


def entries_table(entries: Sequence[CacheEntry], ids: Sequence[str], width: int | None) -> str:
    """Lists entries of the cache.

    Args:
        ids: the id to show for each entry.
        width: columns of the terminal, see `fit_last_column`.
    """
    rows = [("id", "age", "size", "hits", "saved", "expires", "seed", "prompt")]
    for entry, id_ in zip(entries, ids, strict=True):
        rows.append(
            (
                id_,
                format_age(time.time() - entry.created.timestamp()),
                format_size(entry.bytes),
                f"{entry.hits:,}",
                f"{entry.seconds_saved:.1f}s",
                _expiry(entry),
                "" if entry.seed is None else str(entry.seed),
                one_line(entry.prompt) if entry.prompt else "not kept",
            )
        )
    return fit_last_column(rows, width, right=(1, 2, 3, 4, 5))


def entry_table(entry: CacheEntry) -> str:
    """Shows what the cache knows of one entry."""
    last = "" if entry.last_used is None else f", last {entry.last_used:%Y-%m-%d %H:%M:%S} UTC"
    origin = "made from another entry" if entry.from_donor else "computed in full"
    rows = {
        "entry": entry.id,
        "prompt": one_line(entry.prompt) if entry.prompt else "not kept",
        "seed": "unknown" if entry.seed is None else str(entry.seed),
        "model": entry.model,
        "generation": entry.generation_id or "unknown",
        "created": f"{entry.created:%Y-%m-%d %H:%M:%S} UTC",
        "expires": "never" if entry.expires is None else f"{entry.expires:%Y-%m-%d %H:%M:%S} UTC",
        "pinned": "yes" if entry.pinned else "no",
        "size": format_size(entry.bytes),
        "blobs": ", ".join([*(f"x_{step}" for step in entry.steps), *(["side data"] * entry.side_data)]),
        "computation": f"{entry.cost_seconds:.2f} s, {origin}",
        "uses": f"{entry.hits:,}, {entry.seconds_saved:.2f} s saved{last}",
        "nearest": f"cosine {entry.nearest:.3f} at the admission" if entry.nearest else "none",
    }
    return align_columns(list(rows.items()))


def damage_line(damage: Damage) -> str:
    """States what is wrong with an entry."""
    blob = "side data" if damage.step is None else f"latents of step {damage.step}"
    fault = "missing" if damage.missing else "altered"
    return f"{damage.entry}: {blob} {fault}" + (", entry removed" if damage.deleted else "")


def verification_line(found: Verification) -> str:
    """Sums up a verification."""
    return f"{found.entries:,} entries, {format_size(found.bytes)} verified, {len(found.damaged):,} damaged"


def _expiry(entry: CacheEntry) -> str:
    if entry.pinned and entry.expires is None:
        return "pinned"
    return "" if entry.expires is None else format_age(entry.expires.timestamp() - time.time())


def adoption_text(adoption: AdoptResponse) -> str:
    """States what sweeps delete once the object store is adopted."""
    owners = ", ".join(adoption.previous_owners) or "none"
    return (
        f"previous owner: {owners}\n"
        f"the sweeper will delete {adoption.orphaned_blobs:,} blobs without an entry"
        f" ({format_size(adoption.orphaned_bytes)})"
        f" and {adoption.broken_entries:,} entries without their blobs"
    )


def _evictions(stats: StatsResponse) -> str:
    """Returns the number of evicted entries, and for each reason."""
    counts = [f"{each.count:,} {each.reason}" for each in stats.evictions]
    total = sum(each.count for each in stats.evictions)
    return f"{total:,} entries" + (f": {', '.join(counts)}" if counts else "")


def _rejections(stats: StatsResponse) -> str:
    """Returns the number of rejected admissions, and for each reason."""
    counts = [f"{each.count:,} {reason_name(each.reason)}" for each in stats.rejected_admissions]
    total = sum(each.count for each in stats.rejected_admissions)
    return f"{total:,} admissions" + (f": {', '.join(counts)}" if counts else "")


def _ownership(stats: StatsResponse) -> str:
    remedy = "; not swept, see `chorus cache adopt`"
    match stats.store_ownership:
        case cache_pb2.STORE_OWNERSHIP_OWNED:
            return "owned by this index"
        case cache_pb2.STORE_OWNERSHIP_FOREIGN:
            return f"owned by another index ({', '.join(stats.store_owners)}); nothing is admitted{remedy}"
        case cache_pb2.STORE_OWNERSHIP_UNCLAIMED:
            return f"not claimed: its blobs and the entries of this index do not match{remedy}"
    return "not reported"
