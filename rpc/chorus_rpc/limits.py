"""Bounds of public fields, each stated once in Python. Those of a plan are in `plan_bounds`."""

from typing import Final

MAX_STEPS: Final = 200
"""Upper bound on the number of steps of a schedule."""

MAX_PROMPT_BYTES: Final = 8_192
"""Upper bound on the length of a prompt without surrounding space, in bytes of UTF-8: 512 tokens, the most
that Wan reads, of 16 bytes. The cache's index stores prompts of this length."""

MIN_FPS: Final = 0.001
"""Lower bound on the frames per second of a video: an mp4 states them as a fraction with a denominator of at
most 1,000."""

MAX_FPS: Final = 240.0
"""Upper bound on the frames per second of a video."""

MAX_THUMBNAIL_PIXELS: Final = 320
"""Upper bound on the height and on the width of a thumbnail, in pixels."""

MAX_THUMBNAIL_BYTES: Final = 128 << 10
"""Upper bound on the size of a thumbnail, in bytes."""

MAX_PREVIEW_PIXELS: Final = 128
"""Upper bound on the height and on the width of the picture of a step, in pixels."""

MAX_PREVIEW_BYTES: Final = 16 << 10
"""Upper bound on the size of the picture of a step, in bytes. The events of a run hold at most MAX_STEPS of
them."""

MAX_URL_SECONDS: Final = 7 * 86_400
"""Upper bound on the lifetime of the URL of a video, in seconds (7 days): S3 signs none for longer."""

MAX_VECTOR_DIM: Final = 4_096
"""Upper bound on the dimension of a retrieval vector, in values."""

NORM_TOLERANCE: Final = 1e-3
"""Largest accepted difference between 1 and the L2 norm of a retrieval vector."""

MAX_DONORS: Final = 16
"""Upper bound on the donors of one lookup, and on the donor prompts of one alignment."""

MAX_BLOBS: Final = 64
"""Upper bound on the step boundaries whose latents one cache entry holds."""

SIDE_DATA_SHARE: Final = 10
"""Smallest accepted ratio of the bytes of an entry's latents to the bytes of its side data."""

MAX_ID_CHARACTERS: Final = 128
"""Upper bound on the length of an id of a model, a generation, a request or an adapter, in characters."""

MAX_ENCODER_ID_CHARACTERS: Final = 512
"""Upper bound on the length of an encoder id, in characters."""

MAX_WEIGHTED_TOKENS: Final = 2_048
"""Upper bound on the gained and on the lost tokens of a plan, in tokens each."""

MAX_ADAPTERS: Final = 16
"""Upper bound on the adapters of one model."""

DEFAULT_MAX_MESSAGE_BYTES: Final = 16 << 20
"""Default upper bound on one gRPC message, in bytes. The largest is UMT5's 512 token states, 8 MiB."""

DEFAULT_MAX_BLOB_BYTES: Final = 64 << 20
"""Default upper bound on the latents of one step boundary, and on the side data of an entry, in bytes."""

MAX_AGE_SECONDS: Final = 10 * 366 * 86_400
"""Upper bound on the age that selects the entries of a purge, in seconds (about ten years)."""

MAX_LIFETIME_SECONDS: Final = 10 * 366 * 86_400
"""Upper bound on the lifetime that a request states for its latents, in seconds (about ten years)."""

DEFAULT_ENTRIES_PAGE: Final = 50
MAX_ENTRIES_PAGE: Final = 1_000
"""Default and upper bound of the number of cache entries in a page of a list."""

DEFAULT_MAPPED_ENTRIES: Final = 200
MAX_MAPPED_ENTRIES: Final = 500
"""Default and upper bound of the number of cache entries that are placed in a plane."""

MAX_GROWTH_POINTS: Final = 500
"""Upper bound on the points of the growth of a cache."""

MAX_MAPPED_PROMPT_CHARACTERS: Final = 200
"""Upper bound on the part of a prompt that a placed entry carries, in characters."""

MAX_DEADLINE_SECONDS: Final = 86_400
"""Upper bound on the time from a submission to its deadline, in seconds (24 hours)."""

MAX_PAGE_SIZE: Final = 200
"""Upper bound on the generations of one page of a list."""

MAX_EXAMINED: Final = 10_000
"""Upper bound on the generations that one call of a list examines."""

MAX_OUTPUTS: Final = 16
"""Upper bound on the outputs of one request."""

MAX_LABELS: Final = 16
"""Upper bound on the labels of a generation."""

LABEL_KEY_PATTERN: Final = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
"""Regular expression of the key of a label: 1 to 63 characters."""

MAX_LABEL_BYTES: Final = 256
"""Upper bound on the value of a label, in bytes of UTF-8."""

MAX_PROMPT_FILTER_BYTES: Final = 256
"""Upper bound on the text by which prompts are searched, in bytes of UTF-8."""

MAX_REPORT_COMMENT_BYTES: Final = 1_000
"""Upper bound on the comment of a report about a video, in bytes of UTF-8."""

MAX_WEBHOOK_URL_CHARACTERS: Final = 2_048
"""Upper bound on the URL of a webhook, in characters."""

SHA256_PATTERN: Final = r"[0-9a-f]{64}"
"""Regular expression of a SHA-256 digest: 64 lower-case hex digits."""

TENANT_PATTERN: Final = r"[a-z0-9][a-z0-9-]{0,62}"
"""Regular expression of a tenant: 1 to 63 characters."""

MAX_API_KEYS: Final = 10_000
"""Upper bound on the records of a file of API keys."""

MAX_API_KEY_NAME: Final = 128
"""Upper bound on the name of an API key, in characters."""
