"""`chorus cache`: entries, statistics, verification, purge and adoption."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

import typer
from chorus_client import Verification, endpoints
from chorus_client.spec import parse_duration
from chorus_rpc.errors import invalid
from chorus_rpc.tenancy import DEFAULT_TENANT

from chorus_cli import cache_rendering as rendering
from chorus_cli.connect import connect_cache
from chorus_cli.following import run
from chorus_cli.identifiers import find_entry, shorten
from chorus_cli.options import CacheTarget, EntryId, EntryOrderChoice, Json, Tenant
from chorus_cli.output import FAILED, Output

app = typer.Typer(
    help="List, verify and purge the entries of the cache, show its statistics, or adopt its object store.",
    no_args_is_help=True,
)

# The sweeper of the cache frees blobs; the figure is the sum of the defaults of its two settings.
FREED_MINUTES = 15
_FREED = (
    f"The cache frees the space when its sweeper runs: within {FREED_MINUTES} minutes by default "
    "(CHORUS_CACHE_GRACE_SECONDS + CHORUS_CACHE_SWEEP_SECONDS)."
)


@app.command()
def stats(target: CacheTarget = None, tenant: Tenant = DEFAULT_TENANT, as_json: Json = False) -> None:
    """Show the entries of the cache, its size and its use."""
    out = Output(as_json)

    async def main() -> None:
        async with connect_cache(target, tenant) as client:
            found = await client.stats()
        out.print(rendering.stats_table(found.proto), cache=found.proto)

    run(main(), out)


@app.command("list")
def list_entries(
    order: Annotated[EntryOrderChoice, typer.Option(help="Order of the entries, descending.")] = "newest",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Number of entries to show.")] = 50,
    target: CacheTarget = None,
    tenant: Tenant = DEFAULT_TENANT,
    as_json: Json = False,
) -> None:
    """List the entries of the cache."""
    out = Output(as_json)

    async def main() -> None:
        async with connect_cache(target, tenant) as client:
            entries = await client.list(order, limit)
        for entry in entries:
            out.json_line(entry=entry.proto)
        if as_json:
            return
        if not entries:
            out.status("no entries")
            return
        ids = [entry.id for entry in entries]
        if out.console.is_terminal:
            out.print(rendering.entries_table(entries, shorten(ids), out.console.width))
        else:
            out.print(rendering.entries_table(entries, ids, None))

    run(main(), out)


@app.command()
def show(
    entry: EntryId,
    target: CacheTarget = None,
    tenant: Tenant = DEFAULT_TENANT,
    as_json: Json = False,
) -> None:
    """Show an entry of the cache: its request, its blobs and its uses."""
    out = Output(as_json)

    async def main() -> None:
        async with connect_cache(target, tenant) as client:
            found = await find_entry(client, entry)
        out.print(rendering.entry_table(found), entry=found.proto)

    run(main(), out)


@app.command()
def verify(
    entry: Annotated[
        str | None, typer.Option(metavar="ID", help="The one entry to verify. Default: every entry.")
    ] = None,
    target: CacheTarget = None,
    tenant: Tenant = DEFAULT_TENANT,
    as_json: Json = False,
) -> None:
    """Read the blobs of the entries and compare them with their digests. Changes nothing.

    The exit status is 1 if an entry is damaged.
    """
    _verify(entry, target, tenant, as_json, repair=False)


@app.command()
def repair(
    entry: Annotated[
        str | None, typer.Option(metavar="ID", help="The one entry to verify. Default: every entry.")
    ] = None,
    target: CacheTarget = None,
    tenant: Tenant = DEFAULT_TENANT,
    as_json: Json = False,
) -> None:
    """Verify the entries, and remove the damaged ones, which can serve no request."""
    _verify(entry, target, tenant, as_json, repair=True)


def _verify(entry: str | None, target: str | None, tenant: str, as_json: bool, *, repair: bool) -> None:
    out = Output(as_json)

    async def main() -> None:
        reported = 0

        def report(done: Verification) -> None:
            nonlocal reported
            for damage in done.damaged[reported:]:
                out.print(rendering.damage_line(damage), damaged=damage.proto)
            reported = len(done.damaged)
            if live is not None:
                live.update(rendering.verification_line(done))

        async with connect_cache(target, tenant) as client:
            wanted = None if entry is None else (await find_entry(client, entry)).id
            with nullcontext() if as_json else out.notes.status("verifying") as live:
                found = await client.verify(wanted, repair=repair, on_progress=report)
        out.print(
            rendering.verification_line(found),
            verified={"entries": found.entries, "bytes": found.bytes, "damaged": len(found.damaged)},
        )
        if any(not damage.deleted for damage in found.damaged):
            raise typer.Exit(FAILED)

    run(main(), out)


@app.command()
def purge(
    entry: Annotated[str | None, typer.Option(metavar="ID", help="Id of the one entry to remove.")] = None,
    model: Annotated[str | None, typer.Option(metavar="ID", help="Model whose entries are removed.")] = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Age from which entries are removed, such as 90s, 15m, 12h or 7d."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Remove every entry of the tenant; asks first.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed, and change nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask; needed with --all if no terminal can answer.")
    ] = False,
    target: CacheTarget = None,
    tenant: Tenant = DEFAULT_TENANT,
    as_json: Json = False,
) -> None:
    """Remove the entries that match every given option, so that no later request reuses them.

    The space is freed later, when the sweeper of the cache has run: within 15 minutes by default.
    """
    out = Output(as_json)

    async def main() -> None:
        age = None if older_than is None else parse_duration(older_than, "older-than")
        if everything and not (yes or dry_run):
            if not out.is_interactive:
                raise invalid("all", "needs --yes without a terminal")
            address = endpoints.resolve("cache", target)
            out.confirm(f"Remove every entry of tenant {tenant!r} from the cache at {address}?")
        async with connect_cache(target, tenant) as client:
            wanted = None if entry is None else (await find_entry(client, entry)).id
            gone = await client.purge(
                entry=wanted, model=model, older_than=age, everything=everything, validate_only=dry_run
            )
        outcome = "would be removed" if dry_run else "removed"
        out.print(f"{gone.entries:,} entries, {gone.bytes:,} bytes {outcome}", purged=gone.proto)
        if gone.entries and not dry_run:
            out.status(_FREED)

    run(main(), out)


@app.command()
def adopt(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be deleted, and change nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask; needed if no terminal can answer.")
    ] = False,
    target: CacheTarget = None,
    tenant: Tenant = DEFAULT_TENANT,
    as_json: Json = False,
) -> None:
    """Claim the object store for the index of this cache, for all tenants.

    A cache deletes nothing from a store that another index owns, or that it has not claimed: its own index
    may be the wrong one. After the adoption its sweeper deletes every blob that no entry of its index names.
    """
    out = Output(as_json)

    async def main() -> None:
        if not (dry_run or yes or out.is_interactive):
            raise invalid("adopt", "needs --yes without a terminal")
        async with connect_cache(target, tenant) as client:
            if dry_run or not yes:
                found = await client.adopt(validate_only=True)
                if dry_run:
                    out.print(rendering.adoption_text(found.proto), adoption=found.proto)
                    return
                out.status(rendering.adoption_text(found.proto))
                address = endpoints.resolve("cache", target)
                out.confirm(
                    f"Claim the object store for the index {found.index_id} of the cache at {address}?"
                )
            found = await client.adopt()
        out.print(rendering.adoption_text(found.proto), adoption=found.proto)
        if found.orphaned_blobs or found.broken_entries:
            out.status(_FREED)

    run(main(), out)
