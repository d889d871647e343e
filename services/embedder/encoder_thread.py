"""Encoders behind one worker thread, and a cache of the encodings of recent prompts."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import TypeVar

import torch
from chorus_rpc import errors, semconv, telemetry
from chorus_rpc.errors import ChorusError
from safetensors import SafetensorError

from services.embedder.encoders import (
    CLIPEncoder,
    Encoder,
    Encoding,
    MiniLMEncoder,
    Tokens,
    UMT5Encoder,
)
from services.embedder.settings import EncoderSpec
from services.runtime.logs import get_logger
from services.runtime.startup import StartupError, progress

log = get_logger("encoder")

T = TypeVar("T")

# Delay before a retry, in seconds. MiniLM takes about 15 ms for a prompt, so a full queue empties quickly.
RETRY_SECONDS = 0.5


def load_encoder(spec: EncoderSpec, dtype: torch.dtype, device: str) -> Encoder:
    """Loads an encoder and runs it once. Raises OSError or ValueError that names the fault.

    Args:
        dtype, device: floating-point type and device of an encoder from a directory.
    """
    start = time.monotonic()
    encoder: Encoder
    if spec.path is None:
        encoder = MiniLMEncoder()
    else:
        encoder = (CLIPEncoder if spec.kind == "clip" else UMT5Encoder)(spec.path, dtype, device)
    try:
        encoder.encode(["a red circle"])
    except ChorusError as error:
        raise ValueError(error.message) from error
    log.info("encoder ready", id=encoder.id, seconds=round(time.monotonic() - start, 1))
    return encoder


def _encode_separately(encoder: Encoder) -> Callable[[Sequence[str]], list[Encoding]]:
    # One at a time: in a batch, padding changes the last bits, and equal prompts must give equal states.
    return lambda prompts: [encoder.encode([prompt])[0] for prompt in prompts]


class RecentEncodings:
    """Encodings of recent prompts, at most `limit` bytes; the least recently used are evicted first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._encodings: OrderedDict[tuple[str, str], Encoding] = OrderedDict()

    def __len__(self) -> int:
        return len(self._encodings)

    def get(self, encoder_id: str, prompt: str) -> Encoding | None:
        key = (encoder_id, prompt)
        if key in self._encodings:
            self._encodings.move_to_end(key)
        return self._encodings.get(key)

    def put(self, encoder_id: str, prompt: str, encoding: Encoding) -> None:
        key = (encoder_id, prompt)
        if key in self._encodings or _size(encoding) > self._limit:
            return
        self._encodings[key] = encoding
        self._bytes += _size(encoding)
        while self._bytes > self._limit:
            self._bytes -= _size(self._encodings.popitem(last=False)[1])


def _size(encoding: Encoding) -> int:
    return int(encoding.states.nbytes + encoding.retrieval.nbytes)


class EncoderThread:
    """Encodes prompts in one thread that it owns, so that the event loop never waits for a model.

    Args:
        retrieval: encoder that finds donors and aligns two prompts.
        conditioning: encoders whose token states condition models; `retrieval` may be one of them.
        queue_limit: upper bound on the calls that wait for or use the thread.
        recent_bytes: memory for the encodings of recent prompts, in bytes.
    """

    def __init__(
        self, retrieval: Encoder, conditioning: Sequence[Encoder], *, queue_limit: int, recent_bytes: int
    ) -> None:
        self.retrieval = retrieval
        self.conditioning = {encoder.id: encoder for encoder in conditioning}
        self._recent = RecentEncodings(recent_bytes)
        self._places = BoundedSemaphore(queue_limit)
        self._queue_limit = queue_limit
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")

    def close(self) -> None:
        """Ends the thread after its current prompt; waiting calls are cancelled."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def encode(
        self, encoder: Encoder, prompts: Sequence[str], *, together: bool = False
    ) -> list[Encoding]:
        """Returns one Encoding for each prompt. Raises QUEUE_FULL when too many calls wait already.

        Args:
            together: whether prompts that are not cached run as one batch. This is faster, but the last bits
                of the states then depend on the other prompts, so they serve, and are cached for, comparison
                only.
        """
        found: dict[str, Encoding] = {}
        cache_id = _batch_cache_id(encoder) if together else encoder.id
        for prompt in prompts:
            recent = self._find_recent(encoder, prompt) if together else self._recent.get(encoder.id, prompt)
            if recent is not None:
                found[prompt] = recent
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        if missing:
            with telemetry.span(
                semconv.SPAN_EMBED.format(model=encoder.id),
                {semconv.GEN_AI_OPERATION: "embeddings", semconv.GEN_AI_MODEL: encoder.id},
            ) as span:
                encodings = await self._submit(
                    encoder.encode if together else _encode_separately(encoder), missing
                )
                span.set_attribute(semconv.TOKENS, sum(len(encoding.tokens) for encoding in encodings))
            for prompt, encoding in zip(missing, encodings, strict=True):
                found[prompt] = encoding
                self._recent.put(cache_id, prompt, encoding)
        return [found[prompt] for prompt in prompts]

    async def tokenize(self, encoder: Encoder, prompts: Sequence[str]) -> list[Tokens]:
        """Returns the tokens of each prompt, cached or read now. Raises QUEUE_FULL as `encode` does."""
        found: dict[str, Tokens] = {}
        for prompt in prompts:
            if recent := self._find_recent(encoder, prompt):
                found[prompt] = recent
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        if missing:
            found.update(zip(missing, await self._submit(encoder.tokenize, missing), strict=True))
        return [found[prompt] for prompt in prompts]

    def _find_recent(self, encoder: Encoder, prompt: str) -> Encoding | None:
        """Returns the cached encoding of a prompt: computed separately, or else in a batch."""
        return self._recent.get(encoder.id, prompt) or self._recent.get(_batch_cache_id(encoder), prompt)

    async def _submit(self, work: Callable[[Sequence[str]], list[T]], prompts: list[str]) -> list[T]:
        if not self._places.acquire(blocking=False):
            raise ChorusError(
                errors.QUEUE_FULL,
                f"{self._queue_limit} calls wait for the encoder already (CHORUS_EMBEDDER_QUEUE_LIMIT);"
                " retry later",
                metadata={"service": "embedder"},
                retry_after=RETRY_SECONDS,
            )
        future = self._thread.submit(work, prompts)
        # A cancelled call frees its place only when the thread is done with it.
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)


def _batch_cache_id(encoder: Encoder) -> str:
    """Returns the cache key of encodings whose last bits depend on other prompts."""
    return f"{encoder.id} in a batch"


def load_encoders(
    retrieval: EncoderSpec,
    conditioning: Sequence[EncoderSpec],
    *,
    dtype: str,
    device: str,
    threads: int,
    queue_limit: int,
    recent_bytes: int,
) -> EncoderThread:
    """Loads every encoder once and warms it up. Takes seconds, so call it off the event loop.

    Args:
        dtype: name of a torch dtype.

    Raises StartupError for a device that is missing or too small, and for a directory that holds no usable
    encoder.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise StartupError(f"CHORUS_EMBEDDER_DEVICE: {device}: torch finds no CUDA device; use cpu")
    torch.set_num_threads(threads)
    loaded = {}
    for spec in dict.fromkeys((retrieval, *conditioning)):
        variable = "CHORUS_EMBEDDER_RETRIEVAL" if spec == retrieval else "CHORUS_EMBEDDER_CONDITIONING"
        progress.waiting_for = f"the encoder {spec}"
        try:
            loaded[spec] = load_encoder(spec, getattr(torch, dtype), device)
        except torch.OutOfMemoryError:
            raise StartupError(f"CHORUS_EMBEDDER_DEVICE: {device} has too little memory for {spec}") from None
        except ImportError as error:
            raise StartupError(f"{variable}: {spec} needs a package that is not installed: {error}") from None
        except (OSError, ValueError, SafetensorError) as error:
            raise StartupError(f"{variable}: {spec} cannot be loaded: {error}") from error
    return EncoderThread(
        loaded[retrieval],
        [loaded[spec] for spec in conditioning],
        queue_limit=queue_limit,
        recent_bytes=recent_bytes,
    )
