"""Admissions of results to the cache, off the path of the runs."""

from __future__ import annotations

import asyncio

from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.denoiser.denoise import Result
from services.denoiser.latent_cache import LatentCache
from services.denoiser.request import DenoiseJob
from services.runtime.logs import get_logger

log = get_logger("denoiser.admissions")

# Upper bound on the wait for admissions at shutdown, in seconds.
_CLOSE_SECONDS = 5.0


class Admissions:
    """Admits results in the background; each continues even if the caller of its run disconnects.

    Args:
        max_count: Number of admissions under way; further results are not admitted.
        max_bytes: Upper bound on the latents and side data of all admissions under way, in bytes. A result
            that waits for no other is exempt: the cache has its own bound on an entry.
    """

    def __init__(self, latent_cache: LatentCache, *, max_count: int, max_bytes: int) -> None:
        self._latent_cache = latent_cache
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._pending: dict[asyncio.Task[denoiser_pb2.Admission], int] = {}

    def start(self, job: DenoiseJob, tenant: str, result: Result) -> asyncio.Future[denoiser_pb2.Admission]:
        """Starts the admission of a result. The outcome has the id of the entry, or the error.

        Await it through `asyncio.shield`: cancelling it ends the admission.
        """
        size = _count_bytes(result)
        refusal = _find_foreign_precision(job, result) or self._refuse(size)
        if refusal is None:
            task = asyncio.create_task(self._admit(job, tenant, result))
            self._pending[task] = size
            task.add_done_callback(self._pending.pop)
            return task
        log.warning("latents not admitted", generation_id=job.generation_id, reason=refusal.message)
        outcome: asyncio.Future[denoiser_pb2.Admission] = asyncio.get_running_loop().create_future()
        outcome.set_result(denoiser_pb2.Admission(error=errors.to_job_error(refusal)))
        return outcome

    async def close(self) -> None:
        """Waits a few seconds for admissions, then ends the rest."""
        if not self._pending:
            return
        _, late = await asyncio.wait(self._pending, timeout=_CLOSE_SECONDS)
        if late:
            log.warning("admissions ended by the shutdown", admissions=len(late))
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _refuse(self, size: int) -> ChorusError | None:
        """Returns the error of a result for which there is no room, or None."""
        if len(self._pending) >= self._max_count:
            reason, setting = f"{len(self._pending)} results", "CHORUS_DENOISER_MAX_ADMISSIONS"
        elif self._pending and sum(self._pending.values()) + size > self._max_bytes:
            pending = sum(self._pending.values())
            reason = f"{pending} bytes of results, in addition to its own {size} bytes,"
            setting = "CHORUS_DENOISER_MAX_ADMISSION_BYTES"
        else:
            return None
        return ChorusError(
            errors.QUEUE_FULL,
            f"the result was not admitted: {reason} already wait for the cache ({setting})",
            metadata={"service": "cache", "setting": setting},
        )

    async def _admit(self, job: DenoiseJob, tenant: str, result: Result) -> denoiser_pb2.Admission:
        if not result.latents:
            return denoiser_pb2.Admission()  # a run of one step has no latents between noise and video
        # Without a donor the same latents would have cost every step that leads to them.
        cost = result.denoise_seconds / max(result.computed_steps, 1e-3) * max(result.latents)
        try:
            entry_id = await self._latent_cache.admit(
                job, tenant, result.latents, cost, result.side, result.approximation
            )
        except ChorusError as error:
            log.warning("latents not admitted", generation_id=job.generation_id, reason=error.message)
            return denoiser_pb2.Admission(error=errors.to_job_error(error))
        except Exception:
            log.exception("latents not admitted", generation_id=job.generation_id)
            fault = ChorusError(errors.INTERNAL, "internal error; the denoiser's log has its cause")
            return denoiser_pb2.Admission(error=errors.to_job_error(fault))
        return denoiser_pb2.Admission(entry_id=entry_id)


def _find_foreign_precision(job: DenoiseJob, result: Result) -> ChorusError | None:
    """Returns the error of a result whose identity states 8-bit floats that another backend did not use."""
    if not (job.model.fp8 and result.fell_back):
        return None
    return ChorusError(
        errors.WRONG_STATE,
        "the result was not admitted: torch ran a step in place of the engine, whose 8-bit floats are part "
        "of the identity of the latents",
        metadata={"service": "denoiser"},
    )


def _count_bytes(result: Result) -> int:
    side = 0 if result.side is None else result.side.maps.nbytes + result.side.text.nbytes
    return side + sum(latents.nbytes for latents in result.latents.values())
