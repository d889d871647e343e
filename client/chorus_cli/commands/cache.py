"""`chorus cache`: statistics, purge and adoption."""

from __future__ import annotations

from typing import Annotated

import typer
from chorus_client import endpoints
from chorus_client.spec import parse_duration
from chorus_rpc.errors import invalid
from chorus_rpc.tenancy import DEFAULT_TENANT

from chorus_cli import rendering
from chorus_cli.connect import connect_cache
from chorus_cli.following import run
from chorus_cli.options import CacheTarget, Json, Tenant
from chorus_cli.output import Output

app = typer.Typer(
    help="Show the statistics of the cache, purge its entries, or adopt its object store.",
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
            gone = await client.purge(
                entry=entry, model=model, older_than=age, everything=everything, validate_only=dry_run
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
