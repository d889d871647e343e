"""Names of spans, attributes and metadata keys that leave the process.

GenAI semantic conventions where they fit, `chorus.*` for the rest.
"""

from typing import Final

# Spans
SPAN_CLIENT_GENERATE: Final = "generate_content {model}"
SPAN_GENERATION: Final = "chorus.generation"
SPAN_COMPARE: Final = "chorus.compare"
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

# gRPC metadata
TENANT_KEY: Final = "chorus-tenant"
INSTANCE_KEY: Final = "chorus-instance"  # of the responses of Health.Check

ERROR_DOMAIN: Final = "chorus"
