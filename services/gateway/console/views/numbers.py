"""Numbers as people read them."""

from __future__ import annotations


def format_seconds(seconds: float) -> str:
    """Returns a duration such as "35 ms", "0.42 s", "12 s" or "3 min 5 s"."""
    if seconds >= 60:
        whole = round(seconds)
        return f"{whole // 60} min {whole % 60} s"
    if abs(seconds) < 0.1:
        return f"{1000 * seconds:.0f} ms" if round(1000 * seconds) else "0 s"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2f} s"


def format_bytes(count: int) -> str:
    """Returns a size such as "512 B" or "3.4 MB"."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1_000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1_000
    return f"{size:,.1f} TB"


def format_share(share: float) -> str:
    """Returns a share, 0 to 1, in percent."""
    return f"{share:.0%}"


def format_money(amount: float, currency: str) -> str:
    """Returns an amount such as "12.40 USD"; small ones have four digits after the point."""
    return f"{amount:,.{2 if amount >= 1 else 4}f} {currency}".rstrip()
