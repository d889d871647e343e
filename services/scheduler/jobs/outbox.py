"""Port of the outbox: reports about ends of jobs that must still reach a receiver.

`JobStore.advance` writes a delivery in the transaction that ends its job. Times are those of the database's
clock, which all schedulers share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Delivery:
    """A claimed delivery.

    Attributes:
        job_id: the job whose end it reports; also the id of the delivery.
        url: URL of the receiver.
        type: type of the event, such as "video.completed".
        created: time of the end of the job, in Unix seconds.
        age: seconds since then.
        attempts: number of claims, with this one.
    """

    job_id: str
    tenant: str
    url: str
    type: str
    created: float
    age: float
    attempts: int


@dataclass(frozen=True)
class OutboxState:
    """Figures of the pending deliveries.

    Attributes:
        pending: their number.
        oldest_age: seconds since the end of the job of the oldest; 0 without any.
    """

    pending: int
    oldest_age: float


class Outbox(ABC):
    """Pending deliveries. Every method is one transaction, and raises as those of JobStore do.

    Several schedulers may share an outbox. A delivery that is claimed is claimed by no other scheduler until
    the lease of the claim has ended.
    """

    @abstractmethod
    async def claim_delivery(self, lease_seconds: float, excluded: Collection[str] = ()) -> Delivery | None:
        """Claims the delivery that has been due for longest; None if none is due.

        Args:
            lease_seconds: time after which others may claim it, unless it is finished or postponed before.
            excluded: tenants whose deliveries are passed over.
        """

    @abstractmethod
    async def finish_delivery(self, job_id: str) -> bool:
        """Removes a delivery that has reached its receiver, or is given up. Returns whether it existed."""

    @abstractmethod
    async def postpone_delivery(self, delivery: Delivery, seconds: float) -> bool:
        """Makes a delivery due again after some seconds.

        Returns False, and changes nothing, if it was claimed again or removed meanwhile.
        """

    @abstractmethod
    async def seconds_to_next(self, excluded: Collection[str] = ()) -> float | None:
        """Returns the seconds until a delivery is due, at most 0 if one is; None if there is none.

        Args:
            excluded: as of `claim_delivery`.
        """

    @abstractmethod
    async def count_deliveries(self, tenant: str) -> int:
        """Returns the number of pending deliveries of a tenant."""

    @abstractmethod
    async def outbox_state(self) -> OutboxState: ...
