"""Random plans that a denoiser accepts, for property tests."""

from __future__ import annotations

from chorus.common.v1 import plan_pb2
from hypothesis import strategies as st

STEPS = 4
SOURCES = [plan_pb2.REGION_SOURCE_PROBE, plan_pb2.REGION_SOURCE_FULL_STEP, plan_pb2.REGION_SOURCE_ATTENTION]

FORMS = [
    plan_pb2.AMPLIFICATION_FORM_CONTRAST,
    plan_pb2.AMPLIFICATION_FORM_BIAS,
    plan_pb2.AMPLIFICATION_FORM_VALUE_GAIN,
]


@st.composite
def plans(draw: st.DrawFn) -> plan_pb2.Plan:
    """Draws valid plans that reuse steps: every stage, source of a region, and form of amplification."""
    reuse_steps = draw(st.integers(1, STEPS - 1))
    plan = plan_pb2.Plan(total_steps=STEPS, reuse_steps=reuse_steps)
    plan.donor.entry_id = "0" * 64
    plan.renoised = draw(st.booleans())
    if not plan.renoised and draw(st.booleans()):
        plan.draft_step = draw(st.integers(reuse_steps, STEPS - 1))
    elif not plan.renoised and draw(st.booleans()):
        plan.region_end = draw(st.integers(reuse_steps + 1, STEPS))
        plan.region.CopyFrom(
            plan_pb2.RegionPlan(
                source=draw(st.sampled_from(SOURCES)),
                threshold=draw(st.sampled_from([0.0, 0.5, 1.0])),
                budget=draw(st.sampled_from([0.0, 0.5, 1.0])),
                context=draw(
                    st.sampled_from([plan_pb2.REGION_CONTEXT_NONE, plan_pb2.REGION_CONTEXT_STRIDED])
                ),
            )
        )
    if draw(st.booleans()):
        plan.amplification.form = draw(st.sampled_from(FORMS))
        plan.amplification.strength = 0.5
    plan.gained.add(index=1, weight=1.0)
    plan.lost.add(index=2, weight=1.0)
    return plan
