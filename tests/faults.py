"""Kinds of faults that public bug reports showed; tests marked `fault(KIND)` keep them away."""

from __future__ import annotations

from collections.abc import Mapping

# The right behaviour, keyed by kind.
FAULTS: Mapping[str, str] = {
    # Serving
    "logging": "logging never raises; the end of an essential task ends the process; a full disk is named",
    "store-ownership": "a cache sweeps only a store that its own index has claimed",
    "reconnect": "a distant server has as much time to connect as gRPC gives it by default",
    "proxy": "no proxy between services or for loopback addresses",
    "silent-dependency": "a dependency that never answers is found out once, not by each request",
    "scheduler-resources": "a passing lack of a resource delays a job and does not end it",
    "fork": "a client in a forked process is refused with a clear error",
    "named-limit": "an exceeded limit is named with its setting",
    "readiness": "a process is ready when it answers, not when its address answers",
    "permanent-faults": "a fault that no wait can cure ends the start at once and names the setting",
    "tracing": "tracing neither delays a command nor fills the log, and its settings are honoured",
    "deadlines-keepalive": "time limits hold across clocks that differ; usual pings are permitted",
    "helm": "values keep their type and reach every workload",
    "swallowed-errors": "what is not stored is counted and reported with the generation",
    # Models
    "adapter-scaling": "an adapter's scale is read wherever tools write it, and enters the identity",
    "seed-reuse": "a seed that reuse overrides is reported in a warning",
    "text-encoder-weights": "the text encoder's tensors are checked as the transformer's are",
    "identity": "every field that changes the latents changes the identity",
    "mp4-colours": "a player shows the colours that were decoded",
    "partial-model": "a part of a model is not served as the whole",
    "bounds": "bounds that a codec or patch size cannot serve are refused at start",
    "diverging-model": "values that are not finite are found at load, or named as the cause",
    "sampler": "a model states its sampler",
    "adapter-spellings": "the usual spellings of adapters are read; a refusal states its reason",
    "number-promises": "each stated bound holds",
    "misleading-refusals": "a refusal names what the file is and what to do",
}
