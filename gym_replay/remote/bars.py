"""The bar of bytes that go to an address, or come from there."""

from __future__ import annotations

from typing import Any


def byte_bar(total: int, what: str, *, progress: bool) -> Any:
    """A bar of tqdm over so many bytes, shown where it takes longer than a second; none without ``progress``."""
    from tqdm import tqdm

    return tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc=what, delay=1, disable=not progress)
