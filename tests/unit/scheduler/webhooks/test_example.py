"""Verifies that the example of docs/webhooks.md accepts what the scheduler signs, and nothing else."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from services.scheduler.webhooks.secret_file import parse_secrets
from services.scheduler.webhooks.signature import make_headers, parse_secret
from tests.processes import ROOT

PAGE = (ROOT / "docs" / "webhooks.md").read_text()


def find_block(language: str) -> str:
    [block] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(block)


@pytest.fixture
def verify() -> Any:
    names: dict[str, Any] = {}
    exec(find_block("python"), names)
    return names["verify"]


def test_example_verifies_the_signatures_of_the_scheduler(verify: Any) -> None:
    former, latter = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
    secrets = [parse_secret(former), parse_secret(latter)]
    headers = make_headers(secrets, "evt_1", int(time.time()), b'{"id":"evt_1"}')
    verify(headers, b'{"id":"evt_1"}', former)
    verify(headers, b'{"id":"evt_1"}', latter)
    with pytest.raises(ValueError, match="no signature"):
        verify(headers, b'{"id":"evt_2"}', former)
    with pytest.raises(ValueError, match="no signature"):
        verify(headers, b'{"id":"evt_1"}', "whsec_" + "A" * 32)
    old = make_headers(secrets, "evt_1", int(time.time()) - 600, b"{}")
    with pytest.raises(ValueError, match="too old"):
        verify(old, b"{}", former)


def test_file_of_the_page_is_valid() -> None:
    assert list(parse_secrets(find_block("json").encode())) == ["default"]
