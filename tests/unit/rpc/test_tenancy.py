"""Verifies that the tenant is read from call metadata and validated."""

from __future__ import annotations

import pytest
from chorus_rpc import tenancy
from chorus_rpc.errors import ChorusError


def test_tenant_is_read_and_validated() -> None:
    assert tenancy.read_tenant(None) == "default"
    assert tenancy.read_tenant([("other", "x"), ("chorus-tenant", "acme-1")]) == "acme-1"
    for bad in ("", "A", "a/b", "a" * 64, "-a", 'a" or 1==1'):
        with pytest.raises(ChorusError):
            tenancy.read_tenant([("chorus-tenant", bad)])
