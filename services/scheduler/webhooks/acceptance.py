"""Whether a request may name a webhook: its URL, its tenant's secret, and the room in the outbox."""

from __future__ import annotations

from collections.abc import Sequence

from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, Violation

from services.scheduler.jobs.outbox import Outbox
from services.scheduler.webhook_addresses import AddressRules
from services.scheduler.webhooks.secret_file import SETTING, SigningSecrets
from services.scheduler.webhooks.url import InvalidUrl, parse_url

LIMIT_SETTING = "CHORUS_SCHEDULER_WEBHOOK_PENDING_LIMIT"
_URL = "spec.webhook.url"
_EVENTS = "spec.webhook.events"
_ALL_EVENTS = (pb.WEBHOOK_EVENT_COMPLETED, pb.WEBHOOK_EVENT_FAILED, pb.WEBHOOK_EVENT_CANCELLED)
# Delay before a retry that is suggested to callers, in seconds: a receiver that is down may take long.
_RETRY_SECONDS = 60.0


def accept_webhook(webhook: pb.Webhook, rules: AddressRules) -> tuple[pb.Webhook, list[Violation]]:
    """Returns the webhook with every default filled in, and the violations. Resolves no name."""
    violations = []
    try:
        url = parse_url(webhook.url)
    except InvalidUrl as error:
        violations.append(Violation(_URL, str(error)))
    else:
        if url.address is not None and not rules.allows(url.host, url.address):
            violations.append(
                Violation(
                    _URL,
                    f"must be at a public address, not {url.address}; the operator of the server may allow"
                    " networks and hosts by CHORUS_SCHEDULER_WEBHOOK_ALLOWED",
                )
            )
    known = [event for event in webhook.events if event in _ALL_EVENTS]
    if len(set(known)) < len(webhook.events):
        names = ", ".join(pb.WebhookEvent.Name(event) for event in _ALL_EVENTS)
        violations.append(Violation(_EVENTS, f"must be empty for all, or distinct ones of {names}"))
    return pb.Webhook(url=webhook.url, events=sorted(known) or _ALL_EVENTS), violations


class WebhookAcceptance:
    """Accepts webhooks of requests.

    Args:
        pending_limit: upper bound on the pending deliveries of a tenant at which a request is accepted.
    """

    def __init__(
        self, secrets: SigningSecrets, rules: AddressRules, outbox: Outbox, pending_limit: int
    ) -> None:
        self._secrets = secrets
        self._rules = rules
        self._outbox = outbox
        self._pending_limit = pending_limit

    def accept(self, tenant: str, spec: pb.GenerationSpec) -> tuple[pb.Webhook | None, Sequence[Violation]]:
        """Returns the webhook of a request as accepted, None if it has none, and the violations."""
        if not spec.HasField("webhook"):
            return None, []
        webhook, violations = accept_webhook(spec.webhook, self._rules)
        if not self._secrets.find(tenant):
            violations.append(
                Violation(
                    "spec.webhook",
                    f"must not be set: tenant {tenant!r} has no signing secret; the operator of the server"
                    f" adds one to the file of {SETTING}",
                )
            )
        return webhook, violations

    async def require_room(self, tenant: str) -> None:
        """Raises TENANT_LIMIT_REACHED while too many deliveries of a tenant wait for their receivers.

        Generations that have not ended yet may exceed the limit later, by as many as the queue holds.
        """
        pending = await self._outbox.count_deliveries(tenant)
        if pending >= self._pending_limit:
            raise ChorusError(
                errors.TENANT_LIMIT_REACHED,
                f"{pending:,} webhooks of tenant {tenant!r} wait for their receivers; at most"
                f" {self._pending_limit:,} may ({LIMIT_SETTING}): check the receivers, submit without a"
                f" webhook, or try again in {_RETRY_SECONDS:g} s",
                metadata={"limit": str(self._pending_limit), "setting": LIMIT_SETTING},
                retry_after=_RETRY_SECONDS,
            )
