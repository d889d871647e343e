"""Verifies which URLs a webhook may have."""

from __future__ import annotations

import pytest
from chorus.scheduler.v1 import scheduler_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.webhook_addresses import AddressRules, parse_rules
from services.scheduler.webhooks.acceptance import accept_webhook
from services.scheduler.webhooks.url import InvalidUrl, ReceiverUrl, parse_url


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://hooks.example.com", ReceiverUrl("hooks.example.com", 443, "/")),
        ("HTTPS://Hooks.Example.com:8443/A/b?c=D&e", ReceiverUrl("hooks.example.com", 8443, "/A/b?c=D&e")),
        ("https://h?x=1", ReceiverUrl("h", 443, "/?x=1")),
        ("https://xn--bcher-kva.example/%C3%A4", ReceiverUrl("xn--bcher-kva.example", 443, "/%C3%A4")),
        ("https://93.184.216.34/x", ReceiverUrl("93.184.216.34", 443, "/x")),
        ("https://[2606:4700::1111]:1/x", ReceiverUrl("2606:4700::1111", 1, "/x")),
        ("https://a/" + "x" * 2_038, ReceiverUrl("a", 443, "/" + "x" * 2_038)),
    ],
)
def test_url_of_a_receiver_is_accepted(url: str, parts: ReceiverUrl) -> None:
    assert parse_url(url) == parts


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("", "1 to 2,048 characters, not 0"),
        ("https://a/" + "x" * 2_039, "1 to 2,048 characters, not 2,049"),
        ("http://a.example/secret", "must begin with https://"),
        ("ftp://a.example/secret", "must begin with https://"),
        ("a.example/secret", "must begin with https://"),
        ("https:a.example/secret", "must name a host"),
        ("https:///secret", "must name a host"),
        ("https://user:secret@a.example/", "no user or password"),
        ("https://@a.example/secret", "no user or password"),
        ("https://a.example/#secret", "no fragment"),
        ("https://a.example/#", "no fragment"),
        ("https://a.example:0/secret", "port of 1 to 65535"),
        ("https://a.example:/secret", "port of 1 to 65535"),
        ("https://a.example:65536/secret", "port of 1 to 65535"),
        ("https://a.example:x/secret", "port of 1 to 65535"),
        ("https://[::1/secret", "port of 1 to 65535"),
        ("https://bücher.example/secret", "xn--"),
        ("https://a.example/se cret", "printable ASCII"),
        ("https://a.example/secret\n", "printable ASCII"),
        ("https://a.example\\@b.example/secret", "printable ASCII"),
        ("https://a.example./secret", "must name a host"),
        ("https://a..example/secret", "must name a host"),
        ("https://-a.example/secret", "must name a host"),
        ("https://" + "a" * 64 + ".example/secret", "must name a host"),
        ("https://[fe80::1%25eth0]/secret", "must name a host"),
        ("https://[2606:4700::1111]a.example/secret", "must name a host"),
        # Forms that resolvers read as IPv4 addresses.
        ("https://127.1/secret", "must name a host"),
        ("https://2130706433/secret", "must name a host"),
        ("https://0x7f000001/secret", "must name a host"),
        ("https://0177.0.0.1/secret", "must name a host"),
        ("https://127.0.0.0x1/secret", "must name a host"),
    ],
)
def test_other_url_is_refused_without_naming_it(url: str, fault: str) -> None:
    with pytest.raises(InvalidUrl) as refused:
        parse_url(url)
    assert fault in str(refused.value)
    assert "secret" not in str(refused.value)


@given(st.text(max_size=60).map("https://".__add__) | st.text(max_size=60))
def test_every_text_is_parsed_or_refused(url: str) -> None:
    try:
        parts = parse_url(url)
    except InvalidUrl:
        return
    assert parts.target.startswith("/")
    assert 1 <= parts.port <= 65_535
    rebuilt = parse_url(f"https://{parts.authority}{parts.target}")
    assert rebuilt == parts


def refusals(webhook: pb.Webhook, rules: AddressRules | None = None) -> list[tuple[str, str]]:
    _, violations = accept_webhook(webhook, rules or AddressRules())
    return [(violation.field, violation.description) for violation in violations]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]"]
)
def test_private_address_is_refused_unless_it_is_allowed(host: str) -> None:
    webhook = pb.Webhook(url=f"https://{host}/hook")
    [(field, description)] = refusals(webhook)
    assert field == "spec.webhook.url"
    assert "public address" in description
    assert "CHORUS_SCHEDULER_WEBHOOK_ALLOWED" in description
    assert refusals(webhook, parse_rules(["127.0.0.0/8", "10.0.0.0/8", "169.254.169.254", "::1"])) == []


def make_webhook(url: str, *events: int) -> pb.Webhook:
    return pb.Webhook(url=url, events=events)  # type: ignore[arg-type]


def test_events_are_distinct_and_default_to_all() -> None:
    url = "https://a.example/"
    accepted, violations = accept_webhook(pb.Webhook(url=url), AddressRules())
    assert violations == []
    assert accepted == make_webhook(url, 1, 2, 3)
    accepted, violations = accept_webhook(make_webhook(url, 3, 1), AddressRules())
    assert violations == []
    assert accepted == make_webhook(url, 1, 3)
    for events in ([0], [4], [1, 1], [1, 2, 3, 3]):
        [(field, description)] = refusals(make_webhook(url, *events))
        assert field == "spec.webhook.events"
        assert "WEBHOOK_EVENT_COMPLETED" in description
    assert {field for field, _ in refusals(make_webhook("", 0))} == {
        "spec.webhook.url",
        "spec.webhook.events",
    }
