"""Corrupted blobs and hostile messages, drawn from a seeded generator."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, cast

from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import latents_pb2
from google.protobuf.message import DecodeError, Message

from services.cache.validation import Limits
from tests.contract.samples import SHAPE, admission, fetch, header, latents, lookup, new_entry, side_header

LIMITS = Limits(prompt=2_000, blob=64 << 10, entry=128 << 10)

# Latents large enough that a tenth of them holds hostile side data.
_LARGE_SHAPE = (4, 8, 16, 24)
_VALUES = latents(0)[8 + int.from_bytes(latents(0)[:8], "little") :]
_LARGE = latents(0, _LARGE_SHAPE)
_DIGITS = "9" * 4_000
_IDS = ("", "x" * 129, "a b", 'x" or "a" == "a', "../x", "x\n", "x\0", "-x", "é", "\u200b", "x" * 70_000)
_DIGESTS = ("", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n", "٠" * 64, "../" * 20)
_FLOATS = (math.nan, math.inf, -math.inf, -1.0, 1e308, -1e308)

Messages = list[cache_pb2.AdmitRequest]


def pack(text: str | bytes, values: bytes = _VALUES, length: int | None = None) -> bytes:
    """Returns a file in the layout of safetensors, whatever the text of its header is."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw + values


def describe(**changes: Any) -> dict[str, Any]:
    """Returns the header of one tensor, with changes."""
    return {"dtype": "F32", "shape": list(SHAPE), "data_offsets": [0, len(_VALUES)], **changes}


def to_text(tensor: object = None, name: str = "latents", **more: object) -> str:
    return json.dumps({**more, name: describe() if tensor is None else tensor})


def _length(random: Random) -> bytes:
    text = to_text()
    size = len(text) + len(_VALUES)
    lengths = (0, 1, len(text) - 1, len(text) + 1, size, size + 1, 1 << 20, 1 << 32, 1 << 63, (1 << 64) - 1)
    return pack(text, length=random.choice((*lengths, random.getrandbits(64), random.getrandbits(9))))


def _deep(random: Random) -> bytes:
    depth = random.choice((50, 127, 128, 129, 500, 990, 1_000, 5_000, 20_000))
    deep = random.choice(("[" * depth + "]" * depth, "[" * depth, '{"a":' * depth + "0" + "}" * depth))
    places = (
        deep,
        to_text("@"),
        to_text(describe(shape="@")),
        to_text(describe(dtype="@")),
        to_text(describe(data_offsets="@")),
        to_text(describe(more="@")),
        to_text(__metadata__="@"),
        to_text(__metadata__={"a": "@"}),
    )
    return pack(random.choice(places).replace('"@"', deep))


def _huge(random: Random) -> bytes:
    count = random.randrange(500, LIMITS.blob // 16)
    whole = random.choice(
        (
            json.dumps({str(i): i for i in range(count)}, separators=(",", ":")),
            "[" + "[]," * count + "[]]",
            "[" + "{}," * count + "{}]",
            "[" + '{"a":0},' * count + "{}]",
            to_text(describe(shape=[1] * count)),
            to_text(describe(dtype="F" * count)),
            to_text(name="n" * count),
            json.dumps({"__metadata__": {str(i): "" for i in range(count)}, "latents": describe()}),
            " " * count + to_text(),
        )
    )
    return pack(whole[: LIMITS.blob - 8 - len(_VALUES)])


def _encoded(random: Random) -> bytes:
    text = to_text()
    raw = text.encode()
    place = random.randrange(len(raw) + 1)
    return pack(
        random.choice(
            (
                raw[:place]
                + random.choice((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\0", b"\x1f"))
                + raw[place:],
                text.encode(random.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"))),
                b"\xef\xbb\xbf" + raw,
                to_text(name="\ud800").encode(),
                to_text(name="\ud800", tensor=describe(dtype="F16")).encode(),
                to_text(describe(dtype="\udfff")).encode(),
                to_text(__metadata__={"a": "\udead"}).encode(),
                to_text(__metadata__={"\ud83d": "a"}).encode(),
            )
        )
    )


def _duplicated(random: Random) -> bytes:
    text = to_text()
    other = json.dumps(describe(**random.choice(({}, {"dtype": "F16"}, {"shape": [1]}))))
    return pack(
        random.choice(
            (
                f'{text[:-1]},"latents":{other}}}',
                f'{{"latents":{other},{text[1:]}',
                text.replace('"dtype"', '"dtype":"F16","dtype"'),
                text.replace('"shape"', '"shape":[1],"shape"'),
                text.replace('"data_offsets"', '"data_offsets":[0,4],"data_offsets"'),
                '{"__metadata__":{},"__metadata__":{},' + text[1:],
                '{"__metadata__":{"a":"1","a":"2"},' + text[1:],
            )
        )
    )


def _numbers(random: Random) -> bytes:
    number = random.choice(
        ("NaN", "Infinity", "-Infinity", "1e999", "1e5", "0.5", _DIGITS, _DIGITS * 2, "-1")
    )
    place = random.choice(
        (
            to_text(describe(shape="@")),
            to_text(describe(shape=["@", *SHAPE[1:]])),
            to_text(describe(data_offsets=[0, "@"])),
            to_text(describe(data_offsets=["@", len(_VALUES)])),
            to_text(describe(more="@")),
            to_text("@"),
            to_text(__metadata__={"a": "@"}),
        )
    )
    return pack(place.replace('"@"', number))


def _dtype(random: Random) -> bytes:
    known = ("F16", "BF16", "F64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "f32", "F32 ", "", "F32\0")
    return pack(to_text(describe(dtype=random.choice((*known, 1, None, [], {}, ["F32"], True)))))


def _shape(random: Random) -> bytes:
    shapes: tuple[object, ...] = (
        [2, 4, 3, 3], [4, 2, 3], [4, 2, 9], [72], [], [4, 2, 3, 3, 1], [1, 4, 2, 3, 3], [0, 2, 3, 3],
        [1 << 32, 1 << 32, 1, 72], [1 << 62, 4, 1, 72], [(1 << 63) - 1] * 8, [1 << 63], [1 << 64, 0],
        [-4, -2, 3, 3], [4.0, 2, 3, 3], [4.9, 2, 3, 3], ["4", 2, 3, 3], "4233", [True, 8, 3, 3],
        [[4, 2, 3, 3]], {"4": 0, "2": 0, "3": 0}, None, 72, [None, 2, 3, 3], [1] * 9,
        [random.getrandbits(64) for _ in range(4)], [4, 2, 3, random.randrange(100)],
    )  # fmt: skip
    return pack(to_text(describe(shape=random.choice(shapes))))


def _offsets(random: Random) -> bytes:
    size = len(_VALUES)
    ranges: tuple[object, ...] = (
        [0, 1 << 64], [1 << 63, 1 << 64], [size, 0], [0, size + 1], [1, size], [0, size - 1], [-size, 0],
        [4, size + 4], [-1, size - 1], [0], [], [0, size, size], [0.0, size], [0, size + 0.5],
        ["0", str(size)], "09", {"0": 0, str(size): 0}, None, size, [False, size], [[0], [size]],
        [random.randrange(size), random.randrange(2 * size)],
    )  # fmt: skip
    if random.random() < 0.7:
        return pack(to_text(describe(data_offsets=random.choice(ranges))))
    half = {"dtype": "F32", "shape": [random.choice((36, 37, 72))]}
    first, second = sorted(random.randrange(0, size + 1, 4) for _ in range(2))
    return pack(
        json.dumps({"a": {**half, "data_offsets": [0, second]}, "b": {**half, "data_offsets": [first, size]}})
    )


def _cut(random: Random) -> bytes:
    data = latents(random.getrandbits(16))
    if random.random() < 0.5:
        return data[: random.randrange(1, len(data))]
    return data + random.randbytes(random.choice((1, 7, 8, 288, 4_096)))


def _flipped(random: Random) -> bytes:
    data = bytearray(latents(random.getrandbits(16)))
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        data[random.randrange(random.choice((8, 80, len(data))))] ^= 1 << random.randrange(8)
    return bytes(data)


def _foreign(random: Random) -> bytes:
    data = latents(random.getrandbits(16))
    cut = random.randrange(len(data))
    noise = random.randbytes(random.randrange(1, 600))
    return random.choice((noise, data[:cut] + noise, noise + data, data[cut:] + data[:cut], pack("{}", b"")))


def _unusual(random: Random) -> bytes:
    """Returns a file that is unusual but valid."""
    text = to_text()
    return pack(
        random.choice(
            (
                text,
                text + " " * random.randrange(64),
                to_text(name=random.choice(("", "x", "ü", "🔴", "__metadata", "../x", "\\u0000"))),
                to_text(__metadata__={"format": "pt", "é": "x" * random.randrange(64)}),
            )
        ),
        random.randbytes(len(_VALUES)),
    )


BLOBS: Sequence[Callable[[Random], bytes]] = (
    _length, _deep, _huge, _encoded, _duplicated, _numbers, _dtype, _shape, _offsets, _cut, _flipped,
    _foreign, _unusual,
)  # fmt: skip


def draw_blob_admission(random: Random, prompt: str) -> Messages:
    """Returns an admission whose messages are valid, and whose latents or side data may not be.

    The announced size and digest are those of the blob, or, in one of ten, the digest is of other data.
    """
    data = random.choice(BLOBS)(random) or b"\0"
    if random.random() < 0.2 and len(data) < 2 * len(_LARGE) // 10:
        offered = new_entry(prompt)
        offered.identity.latent_shape[:] = _LARGE_SHAPE
        messages = list(admission(offered, {1: _LARGE, 2: _LARGE}, LIMITS.blob, side=data))
    else:
        messages = list(admission(new_entry(prompt), {1: data}, len(data) // random.randrange(1, 9) or 1))
    if random.random() < 0.1:
        position = max(i for i, message in enumerate(messages) if message.HasField("header"))
        messages[position].header.digest = header(1, latents(99)).digest
    return messages


def _set_list(message: Any, field: str, values: Sequence[object]) -> None:
    del getattr(message, field)[:]
    getattr(message, field).extend(values)


def _spoil_identity(random: Random, identity: latents_pb2.LatentIdentity) -> None:
    match random.randrange(8):
        case 0:
            identity.model_id = random.choice(_IDS)
        case 1:
            field = random.choice(("weights_digest", "model_digest"))
            setattr(identity, field, random.choice(_DIGESTS))
        case 2:
            sigmas: tuple[list[float], ...] = (
                [],
                [1.0],
                [1.0] * 3,
                [0.5, 0.6, 0.0],
                [1.0, math.nan, 0.0],
                [math.inf, 0.0],
                [1.0, 0.5],
            )
            many = [1 - i / 300 for i in range(300)] + [0.0]
            _set_list(identity.schedule, "sigmas", random.choice((*sigmas, many)))
        case 3:
            shapes: tuple[list[int], ...] = (
                [],
                [4, 2, 3],
                [4, 2, 3, 0],
                [(1 << 32) - 1] * 4,
                [1] * 1_000,
                [16_385, 1, 1, 1],
                [16_384] * 4,
            )
            _set_list(identity, "latent_shape", random.choice(shapes))
        case 4:
            identity.latent_dtype = cast("latents_pb2.DType.ValueType", random.choice((0, 2, 3, 4, 99, -1)))
        case 5:
            field = random.choice(("codec_id", "conditioning_encoder_id"))
            setattr(identity, field, random.choice(("", "x" * 513, "a\nb", "\u202e", "\x7f")))
        case 6:
            for _ in range(random.choice((1, 16, 17, 400))):
                identity.adapters.add(
                    adapter_id=random.choice(_IDS[:-1]),
                    digest=random.choice(_DIGESTS),
                    scale=random.choice(_FLOATS),
                )
        case _:
            identity.approximation.policy = random.choice(("", "off", "x" * 5_000, "safe"))
            identity.approximation.max_reuse_steps = random.choice((0, 201, (1 << 32) - 1))


def draw_vector(random: Random) -> list[float]:
    """Returns a retrieval vector that no check may accept."""
    size = random.choice((1, 2, 16, 384, 4_096))
    vectors: tuple[list[float], ...] = (
        [], [0.0] * size, [1.0] * 4_097, [1.0] * 16, [math.nan] * size, [1.0, math.nan], [math.inf, 0.0],
        [-math.inf], [3e38] * size, [1e-40] * size, [1.002], [0.998, 0.0], [1.0] + [math.nan] * size + [0.1],
    )  # fmt: skip
    return random.choice(vectors)


def _spoil_entry(random: Random, entry: cache_pb2.NewEntry) -> None:
    match random.randrange(9):
        case 0 | 1:
            _spoil_identity(random, entry.identity)
        case 2:
            _set_list(entry, "vector", draw_vector(random))
        case 3:
            entry.prompt = random.choice(("", "x" * 2_001, "é" * 1_001, "🔴" * 501, "x" * 100_000))
        case 4:
            entry.retrieval_encoder_id = random.choice(("", "x" * 513, "a\0", "\u2028", "x" * 100_000))
        case 5:
            entry.cost_seconds = random.choice((*_FLOATS, 1e6 + 1))
        case 6:
            entry.traceparent = random.choice(
                ("00", "x" * 70_000, entry.traceparent + "\n", entry.traceparent.upper())
            )
            entry.generation_id = random.choice(_IDS[1:])
        case 7:
            steps: tuple[list[int], ...] = (
                [],
                [1, 1],
                [4],
                [(1 << 32) - 1],
                list(range(65)),
                [1] * 5_000,
                [3, 2],
                [1, 2, 3],
            )
            _set_list(entry, "steps", random.choice(steps))
        case _:
            entry.side_data = not entry.side_data


def _spoil_header(random: Random, announced: latents_pb2.BlobHeader) -> None:
    match random.randrange(5):
        case 0:
            announced.step.index = random.choice((0, 3, 4, 200, (1 << 32) - 1))
        case 1:
            announced.step.sigma = random.choice((*_FLOATS, 0.0, 0.9 + 2e-9))
        case 2:
            sizes = (0, 1, announced.size_bytes - 1, announced.size_bytes + 1, LIMITS.blob, LIMITS.blob + 1)
            announced.size_bytes = random.choice((*sizes, 1 << 40, 1 << 63, (1 << 64) - 1))
        case 3:
            announced.digest = random.choice((*_DIGESTS, "0" * 64))
        case _:
            announced.kind = cast("latents_pb2.BlobKind.ValueType", random.choice((1, 2, 9, -1)))


def _spoil_order(random: Random, messages: Messages) -> None:
    first, second = random.randrange(len(messages)), random.randrange(len(messages))
    match random.randrange(9):
        case 0:
            del messages[first]
        case 1:
            messages.insert(second, messages[first])
        case 2:
            messages[first], messages[second] = messages[second], messages[first]
        case 3:
            random.shuffle(messages)
        case 4:
            messages.sort(key=lambda message: message.WhichOneof("part") != "chunk")
        case 5:
            del messages[first:]
        case 6:
            messages.insert(first, cache_pb2.AdmitRequest())
        case 7:
            messages.insert(
                first, cache_pb2.AdmitRequest(chunk=random.choice((b"", b"x", bytes(LIMITS.blob))))
            )
        case _:
            data = latents(7)
            messages += [cache_pb2.AdmitRequest(header=side_header(data)), cache_pb2.AdmitRequest(chunk=data)]


def flip_bits(random: Random, message: Message) -> bytes:
    """Returns the encoding of a message with some of its bits or bytes altered."""
    raw = bytearray(message.SerializeToString())
    for _ in range(random.choice((1, 1, 2, 5))):
        if raw:
            raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
    return bytes(raw[: random.randrange(len(raw) + 1)] if random.random() < 0.1 else raw)


def _flip_decodable(random: Random, message: Message) -> None:
    while True:
        try:
            message.ParseFromString(flip_bits(random, message))
        except DecodeError:
            continue
        return


def draw_admission(random: Random, prompt: str) -> Messages:
    """Returns the messages of an admission of two valid blobs, spoilt once or several times."""
    data = {1: latents(random.getrandbits(8)), 2: latents(random.getrandbits(8))}
    messages = list(admission(new_entry(prompt), data, random.choice((64, LIMITS.blob))))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        entries = [message.entry for message in messages if message.HasField("entry")]
        headers = [message.header for message in messages if message.HasField("header")]
        match random.randrange(6):
            case 0 | 1 if entries:
                _spoil_entry(random, random.choice(entries))
            case 2 if headers:
                _spoil_header(random, random.choice(headers))
            case 3 if messages:
                _flip_decodable(random, random.choice(messages))
            case _ if messages:
                _spoil_order(random, messages)
    return messages


Request = (
    cache_pb2.LookupRequest
    | cache_pb2.FindRequest
    | cache_pb2.FetchRequest
    | cache_pb2.ListEntriesRequest
    | cache_pb2.GetEntryRequest
    | cache_pb2.VerifyEntriesRequest
    | cache_pb2.PurgeRequest
)


def draw_request(random: Random) -> Request:
    """Returns a request of another method, with one or several spoilt fields."""
    request: Request
    match random.randrange(7):
        case 0:
            request = lookup(random.getrandbits(8))
            request.limit = random.choice((0, 1, 16, 17, (1 << 32) - 1))
            request.min_score = random.choice((*_FLOATS, -1.0, 1.0))
            if random.random() < 0.5:
                _set_list(request, "vector", draw_vector(random))
        case 1:
            request = cache_pb2.FindRequest(
                identity=lookup().identity,
                retrieval_encoder_id=random.choice(("minilm", "", "x" * 513)),
                vector_dim=random.choice((0, 1, 16, 4_097, (1 << 32) - 1)),
                prompt=random.choice(("a circle", "", "x" * 2_001)),
                seed=random.getrandbits(64),
            )
        case 2:
            steps = random.choice(((), (1,), (1, 1), tuple(range(65)), ((1 << 32) - 1,)))
            request = fetch(random.choice((*_DIGESTS, "0" * 64)), *steps)
        case 3:
            request = cache_pb2.ListEntriesRequest(
                page_size=random.choice((0, 1, 1_000, 1_001, (1 << 32) - 1)),
                page_token=random.choice(("", "?", "bmFuIHggeQ==", "x" * 4_096, "\x00")),
            )
            request.order = random.choice((0, 1, 3, 4, 99, -1))  # type: ignore[assignment]
        case 4:
            request = cache_pb2.GetEntryRequest(entry_id=random.choice((*_DIGESTS, "0" * 64)))
        case 5:
            request = cache_pb2.VerifyEntriesRequest(entry_id=random.choice((*_DIGESTS, "0" * 64)))
        case _:
            request = cache_pb2.PurgeRequest(
                entry_id=random.choice((*_DIGESTS, "0" * 64)),
                model_id=random.choice((*_IDS, "shapes")),
                all=random.random() < 0.2,
            )
            if random.random() < 0.5:
                request.older_than.seconds = random.choice((-1, 0, 1 << 62, -(1 << 62), 400_000_000))
                request.older_than.nanos = random.choice((-1, 0, 1_000_000_000, (1 << 31) - 1))
    with_identity = cache_pb2.LookupRequest | cache_pb2.FindRequest | cache_pb2.FetchRequest
    if isinstance(request, with_identity) and random.random() < 0.5:
        _spoil_identity(random, request.identity)
    if random.random() < 0.3:
        _flip_decodable(random, request)
    return request
