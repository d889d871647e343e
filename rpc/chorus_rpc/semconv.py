"""Names of spans, attributes and metadata keys that leave the process.

GenAI semantic conventions where they fit, `chorus.*` for the rest.
"""

from typing import Final

# Spans
SPAN_CLIENT_GENERATE: Final = "generate_content {model}"
SPAN_GENERATION: Final = "chorus.generation"
SPAN_COMPARE: Final = "chorus.compare"
SPAN_FORECAST: Final = "chorus.forecast"
SPAN_PLAN: Final = "chorus.plan"
SPAN_DISPATCH: Final = "chorus.dispatch"
SPAN_EMBED: Final = "embeddings {model}"
SPAN_QUEUE: Final = "chorus.denoiser.queue"
SPAN_FETCH_DONOR: Final = "chorus.denoiser.fetch_donor"
SPAN_DENOISE: Final = "chorus.denoiser.denoise"
SPAN_STEP: Final = "chorus.denoiser.step"
SPAN_DECODE: Final = "chorus.denoiser.decode"
SPAN_ADMIT: Final = "chorus.denoiser.admit"
SPAN_INDEX_SEARCH: Final = "chorus.cache.index.search"
SPAN_INDEX_GET: Final = "chorus.cache.index.get"
SPAN_INDEX_UPSERT: Final = "chorus.cache.index.upsert"
SPAN_INDEX_DELETE: Final = "chorus.cache.index.delete"
SPAN_BLOB_GET: Final = "chorus.cache.blob.get"
SPAN_BLOB_PUT: Final = "chorus.cache.blob.put"

# Attributes
GEN_AI_OPERATION: Final = "gen_ai.operation.name"
GEN_AI_MODEL: Final = "gen_ai.request.model"
GENERATION_ID: Final = "chorus.generation.id"
REQUEST_ID: Final = "chorus.request.id"
GENERATION_STATE: Final = "chorus.generation.state"
ATTEMPT: Final = "chorus.attempt"
CACHE_DECISION: Final = "chorus.cache.decision"  # "hit" or "miss"
REUSE_STEPS: Final = "chorus.plan.reuse_steps"
REGION_STEPS: Final = "chorus.plan.region_steps"
DRAFT_STEP: Final = "chorus.plan.draft_step"
EDIT: Final = "chorus.plan.edit"
TOTAL_STEPS: Final = "chorus.plan.total_steps"
PLAN_REASON: Final = "chorus.plan.reason"
ENTRY_ID: Final = "chorus.cache.entry.id"
DONOR_SCORE: Final = "chorus.donor.score"
DONOR_COUNT: Final = "chorus.cache.donors"
STEP_INDEX: Final = "chorus.step.index"
STEP_SIGMA: Final = "chorus.step.sigma"
BACKEND: Final = "chorus.step.backend"
FALLBACK: Final = "chorus.step.fallback"  # reason why the configured backend did not run the step
HOST_ADAPTER: Final = "chorus.host_adapter"  # id of the adapter that computed the steps after the donor
COMPUTED_SHARE: Final = "chorus.step.computed_share"
BYTES: Final = "chorus.bytes"
TOKENS: Final = "chorus.tokens"

# Metrics, by their names in Prometheus without the suffix `_total` of a counter.
METRIC_RPC: Final = "chorus_rpc_seconds"
METRIC_CACHE_LOOKUPS: Final = "chorus_cache_lookups"
METRIC_CACHE_FETCHES: Final = "chorus_cache_fetches"
METRIC_CACHE_FETCH_BYTES: Final = "chorus_cache_fetch_bytes"
METRIC_CACHE_ADMISSIONS: Final = "chorus_cache_admissions"
METRIC_CACHE_EVICTIONS: Final = "chorus_cache_evictions"
METRIC_CACHE_CORRUPT: Final = "chorus_cache_corrupt"
METRIC_CACHE_HOT_HITS: Final = "chorus_cache_hot_hits"
METRIC_CACHE_HOT_MISSES: Final = "chorus_cache_hot_misses"
METRIC_CACHE_ENTRIES: Final = "chorus_cache_entries"
METRIC_CACHE_BYTES: Final = "chorus_cache_bytes"
METRIC_CACHE_CAPACITY: Final = "chorus_cache_capacity_bytes"
METRIC_CACHE_SECONDS_SAVED: Final = "chorus_cache_seconds_saved"
METRIC_CACHE_FAILED_SWEEPS: Final = "chorus_cache_failed_sweeps"
METRIC_CACHE_LOOKUP: Final = "chorus_cache_lookup_seconds"
METRIC_CACHE_FETCH: Final = "chorus_cache_fetch_seconds"
METRIC_CACHE_ADMIT: Final = "chorus_cache_admit_seconds"
METRIC_GENERATIONS: Final = "chorus_generations"
METRIC_GENERATION: Final = "chorus_generation_seconds"
METRIC_QUEUE_DEPTH: Final = "chorus_queue_depth"
METRIC_QUEUE_WORK: Final = "chorus_queue_work_seconds"
METRIC_QUEUE_OLDEST: Final = "chorus_queue_oldest_seconds"
METRIC_RUNNING: Final = "chorus_running"
METRIC_STEPS: Final = "chorus_steps"
METRIC_STEP: Final = "chorus_step_seconds"

# Attributes of metrics, which are labels in Prometheus
METHOD: Final = "method"
CODE: Final = "code"
MODEL: Final = "model"
TENANT: Final = "tenant"
OUTCOME: Final = "outcome"
REASON: Final = "reason"
STATE: Final = "state"
DECISION: Final = "decision"
KIND: Final = "kind"
STEP_BACKEND: Final = "backend"

# gRPC metadata
TENANT_KEY: Final = "chorus-tenant"
INSTANCE_KEY: Final = "chorus-instance"  # of the responses of Health.Check

ERROR_DOMAIN: Final = "chorus"
