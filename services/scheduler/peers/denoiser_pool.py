"""The denoisers of this scheduler: follows their addresses, health and models, and selects one for a run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from chorus.denoiser.v1.denoiser_pb2 import ModelInfo
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.runtime.resources import Resources
from services.scheduler.peers.agreement import Agreement, agree
from services.scheduler.peers.denoiser import DenoiserClient
from services.scheduler.peers.discovery import Discovery
from services.scheduler.peers.health import PeerHealth
from services.scheduler.peers.pooled_denoiser import PooledDenoiser
from services.scheduler.peers.selection import Candidate, select_denoiser

log = get_logger("denoisers")

# Opens the connection to an address. The resources close it.
Connect = Callable[[str, Resources, Callable[[PeerHealth], None]], DenoiserClient]


class DenoiserPool:
    """Denoisers by address. `run` follows their addresses; `close` closes their connections.

    A denoiser whose address is gone gets no further run, and is closed when its runs have ended.

    Args:
        slots: number of jobs that run on a denoiser at once.
        interval: time between two queries of their addresses, in seconds.
        max_pause: upper bound on the pause after a failure of a denoiser, in seconds.
        on_change: called when denoisers or their models have changed; receives whether one is ready that was
            not.
        ended_task: completed when an essential task of a connection has ended.

    Attributes:
        name: short name, as error messages use it.
        models: models of all denoisers by id, the first denoiser's first.
    """

    name: Final = "denoiser"

    def __init__(
        self,
        discovery: Discovery,
        connect: Connect,
        *,
        slots: int,
        interval: float,
        max_pause: float,
        on_change: Callable[[bool], None],
        ended_task: asyncio.Future[str],
    ) -> None:
        self._discovery = discovery
        self._connect = connect
        self._slots = slots
        self._interval = interval
        self._max_pause = max_pause
        self._on_change = on_change
        self._ended_task = ended_task
        self._found = False  # whether the addresses were found once
        self._members: dict[str, PooledDenoiser] = {}
        self._leaving: dict[str, PooledDenoiser] = {}
        self._agreement = Agreement({}, {})
        self._runs = 0

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        return self._agreement.models

    @property
    def members(self) -> Sequence[PooledDenoiser]:
        """Denoisers of the current addresses, in the order of these."""
        return tuple(self._members.values())

    @property
    def serving(self) -> bool | None:
        """Whether a denoiser is ready; None until that is known."""
        if any(each.ready for each in self._members.values()):
            return True
        return None if self._is_undecided() else False

    @property
    def slots(self) -> int:
        """Number of jobs that can run at once, at least that of one denoiser."""
        return self._slots * max(1, self.count_ready())

    @property
    def free_slots(self) -> int:
        """Number of jobs that can start now."""
        return sum(
            max(0, self._slots - each.running)
            for each in self._members.values()
            if each.ready and not each.rest_seconds()
        )

    def count_ready(self) -> int:
        """Returns the number of denoisers that serve."""
        return sum(each.ready for each in self._members.values())

    def count_refused(self) -> int:
        """Returns the number of denoisers that serve a model differently from the description in force."""
        return len({address for address, _ in self._agreement.refused})

    def count_runs(self) -> Mapping[str, int]:
        """Returns the number of runs by address."""
        return {each.address: each.running for each in (*self._members.values(), *self._leaving.values())}

    def remember(self, models: Iterable[ModelInfo]) -> None:
        """Takes over the models of an earlier process, until the denoisers have answered."""
        self._agreement = Agreement({model.model_id: model for model in models}, {})

    def unavailable(self) -> ChorusError:
        """Returns the DEPENDENCY_UNAVAILABLE error that says why no denoiser is ready."""
        members = list(self._members.values())
        if not members:
            return errors.unavailable(self.name, self._discovery.fault or "its addresses are not known yet")
        first = members[0].unavailable()
        if len(members) == 1:
            return first
        return errors.unavailable(
            self.name, f"none of {len(members)} serves; of {members[0].address}: {first.message}"
        )

    def find_outage(self, model_id: str) -> ChorusError | None:
        """Returns the error of a job whose model no denoiser can run at present.

        None if one can, even if it is busy, and while that is not known.
        """
        if self._is_undecided() or any(self._servers(model_id)):
            return None
        if not self.count_ready():
            return self.unavailable()
        return errors.unavailable(self.name, f"no denoiser that serves {model_id!r} is ready")

    def lacks_model(self) -> bool:
        """Returns whether jobs of a model wait because no denoiser can run it at present."""
        return any(self.find_outage(model_id) for model_id in self.models)

    def reserve(self, model_id: str) -> PooledDenoiser | None:
        """Takes a slot of the best denoiser for a job; None if none is free. The caller releases it."""
        chosen = select_denoiser(
            Candidate(each.address, each.running, self._slots, each.suspect, each.last_run(model_id))
            for each in self._servers(model_id)
            if not each.rest_seconds()
        )
        if chosen is None:
            return None
        self._runs += 1
        self._members[chosen].reserve(model_id, self._runs)
        return self._members[chosen]

    def can_run(self, model_id: str) -> bool:
        """Returns whether a job of this model needs to wait for nothing but a slot."""
        return any(not each.rest_seconds() for each in self._servers(model_id))

    def rest_seconds(self, model_id: str | None = None) -> float:
        """Returns the time until the first pause of a denoiser ends, in seconds; 0 if none pauses.

        Args:
            model_id: model that it serves; None for any.
        """
        members = self._members.values() if model_id is None else self._servers(model_id)
        return min(filter(None, (each.rest_seconds() for each in members)), default=0.0)

    async def describe(self) -> None:
        """Requests models, for a caller that needs some, until a denoiser answers. Raises the first error."""
        first: ChorusError | None = None
        for each in list(self._members.values()):
            try:
                await each.describe()
            except ChorusError as error:
                first = first or error
            else:
                self._settle()
                return
        raise first or self.unavailable()

    async def run(self) -> None:
        """Follows the addresses until it is cancelled."""
        while True:
            self._update(await self._discovery.find())
            await self._close_unused()
            await (asyncio.sleep(self._interval) if self._discovery.changes else asyncio.Event().wait())

    async def close(self) -> None:
        """Closes every connection."""
        for each in (*self._members.values(), *self._leaving.values()):
            await each.close()

    async def _close_unused(self) -> None:
        for address in [address for address, each in self._leaving.items() if each.idle]:
            await self._leaving.pop(address).close()

    def _is_undecided(self) -> bool:
        return not self._found or any(each.undecided for each in self._members.values())

    def _servers(self, model_id: str) -> Iterator[PooledDenoiser]:
        """Yields the denoisers that are ready for a model; every ready one for a model that none serves."""
        for each in self._members.values():
            serves = each.models is not None and model_id in each.models
            refused = (each.address, model_id) in self._agreement.refused
            if each.ready and ((serves and not refused) or model_id not in self.models):
                yield each

    def _update(self, addresses: Iterable[str]) -> None:
        """Adds and removes denoisers, so that they are those of the addresses."""
        before = self.count_ready()
        members = {address: self._members.get(address) or self._add(address) for address in addresses}
        for address, gone in self._members.items():
            if address not in members:
                log.info("denoiser removed", denoiser=address, runs=gone.running)
                gone.leaving = True
                self._leaving[address] = gone
        changed = members.keys() != self._members.keys() or not self._found
        self._members = members
        self._found = True
        if changed:
            self._settle()
            self._on_change(self.count_ready() > before)

    def _add(self, address: str) -> PooledDenoiser:
        log.info("denoiser added", denoiser=address)
        known = self._leaving.pop(address, None)
        if known is not None:
            known.leaving = False
            return known
        resources = Resources(self._ended_task)

        def handle_health(_: PeerHealth) -> None:
            added.note_health_change()
            self._on_change(False)

        client = self._connect(address, resources, handle_health)
        added = PooledDenoiser(address, client, resources, self._max_pause)
        resources.start_task(added.follow_models(self._handle_answer), f"models of {address}")
        return added

    def _handle_answer(self, succeeded: bool) -> None:
        self._settle()
        self._on_change(succeeded)

    def _settle(self) -> None:
        """Decides which models are served, and by whom."""
        members = self._members
        answers = {address: each.models for address, each in members.items() if each.models is not None}
        complete = bool(members) and len(answers) == len(members) and not self._discovery.fault
        former, self._agreement = self._agreement, agree(self.models, answers, complete=complete)
        for (address, model_id), fields in self._agreement.refused.items():
            if former.refused.get((address, model_id)) != fields:
                log.error(
                    "model of a denoiser refused: another denoiser serves it with a different description",
                    denoiser=address,
                    model_id=model_id,
                    fields=fields,
                )
