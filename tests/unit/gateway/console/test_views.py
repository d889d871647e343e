"""Verifies what the pages of the console show: sentences, badges, masks, bars, families and figures."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from chorus.scheduler.v1 import scheduler_pb2
from chorus_client import Generation, Model, Plan, Timings
from chorus_client.report import Step
from chorus_client.words import mark_words
from chorus_rpc.errors import Violation
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.console.views.cards import build_card, describe_plan, describe_result, find_badge
from services.gateway.console.views.comparison import find_full_computation, make_prompt_filter
from services.gateway.console.views.family import build_family
from services.gateway.console.views.masks import build_masks
from services.gateway.console.views.numbers import format_bytes, format_money, format_seconds
from services.gateway.console.views.request_form import fill_from, map_violations, parse_request_form
from services.gateway.console.views.statistics import build_figures, build_today
from services.gateway.console.views.waterfall import build_waterfall, compare_savings

_NUMBERS = itertools.count(1)


def make_message(state: str = "SUCCEEDED", *, reused: int = 0, donor: str = "", **fields: Any) -> Any:
    message = scheduler_pb2.Generation(
        generation_id=fields.pop("id", f"gen-{next(_NUMBERS)}"),
        state=scheduler_pb2.GenerationState.Value(f"GENERATION_STATE_{state}"),
        **fields,
    )
    message.plan.total_steps, message.plan.reuse_steps = 8, reused
    message.spec.prompt = "a blue circle"
    if donor or reused:
        message.donor.generation_id = message.plan.donor.generation_id = donor
        message.plan.donor.prompt, message.plan.donor.score = "a red circle", 0.93
    return message


def make(state: str = "SUCCEEDED", **fields: Any) -> Generation:
    return Generation.from_proto(make_message(state, **fields))


def make_model(name: str = "small") -> Model:
    message = scheduler_pb2.Model(model_id=name)
    message.default_shape.frames, message.default_shape.height, message.default_shape.width = 16, 64, 96
    message.default_schedule.sigmas.extend((1.0, 0.5, 0.0))
    return Model.from_proto(message)


@pytest.mark.parametrize(
    ("generation", "badge"),
    [
        (make(), "miss"),
        (make(reused=3), "hit"),
        (make(reused=8), "exact"),
        (make("FAILED", reused=3), "failed"),
        (make("QUEUED"), "queued"),
        (make("UNSPECIFIED"), "waiting"),
    ],
)
def test_badge_says_how_a_video_was_made(generation: Generation, badge: str) -> None:
    assert find_badge(generation) == badge


def test_card_of_a_miss_claims_no_saving() -> None:
    assert build_card(make(seconds_saved=2.5)).saved == 0
    assert build_card(make(reused=3, seconds_saved=2.5)).saved == 2.5


def describe(done: bool, **fields: Any) -> str:
    message = make_message(reused=fields.pop("reused", 0)).plan
    for name, value in fields.items():
        setattr(message, name, value)
    return describe_plan(Plan.from_proto(message), done=done)


def test_plan_is_one_sentence() -> None:
    assert describe(True) == "Nothing was reused: all 8 steps were computed."
    assert describe(False) == "Nothing to reuse: all 8 steps will be computed."
    assert describe(True, reused=8) == "Exact repeat of “a red circle”: no step was computed."
    assert describe(True, reused=3, edit="colour", region_end=6) == (
        "Took 3 of 8 steps from “a red circle” (similarity 0.93, edit: colour);"
        " steps 4 to 6 computed only the region that differs."
    )
    assert "step 4 compute only" in describe(False, reused=3, region_end=4)
    assert "with new noise" in describe(False, reused=3, renoised=True)


def test_result_names_the_saving_and_the_failure() -> None:
    assert describe_result(make(reused=3, seconds_saved=1.74)).endswith("It saved 1.74 s.")
    failed = make_message("FAILED")
    failed.error.message = "the model produced NaN"
    assert describe_result(Generation.from_proto(failed)) == "Failed: the model produced NaN"
    assert describe_result(make("QUEUED", queue_position=4)) == "In the queue, position 4."


def test_words_that_changed_are_marked_in_both_prompts() -> None:
    assert mark_words("a Blue circle.", "a red circle") == (("a", False), ("Blue", True), ("circle", False))
    assert mark_words("a red circle", "a Blue circle.")[1] == ("red", True)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.data())
def test_outlines_cover_the_computed_cells(times: int, rows: int, columns: int, data: st.DataObject) -> None:
    count = times * rows * columns
    bits = data.draw(st.integers(1, (1 << count) - 1))
    step = Step(4, "region", active=bits.to_bytes((count + 7) // 8, "little"), grid=(times, rows, columns))
    [mask], left_out = build_masks([step])
    assert left_out == 0
    found = set()
    for time, outline in enumerate(mask.outlines):
        for part in filter(None, outline.split("M")):
            place, _, rest = part.partition("h")
            column, row = map(int, place.split())
            found |= {(time, row, column + each) for each in range(int(rest.partition("v")[0]))}
    size = rows * columns
    assert found == {
        (bit // size, bit % size // columns, bit % columns) for bit in range(count) if bits >> bit & 1
    }
    assert mask.share == pytest.approx(len(found) / count)


def test_equal_masks_are_drawn_once_and_damaged_ones_are_counted() -> None:
    steps = [
        Step(3, "region", active=b"\x07", grid=(1, 2, 4)),
        Step(4, "region", active=b"\x07", grid=(1, 2, 4)),
        Step(5, "region", active=b"\x07", grid=(1, 9, 9)),
        Step(6, "full"),
    ]
    [mask], left_out = build_masks(steps)
    assert (mask.steps, left_out) == ((3, 4), 1)


def test_mask_of_hostile_size_is_left_out() -> None:
    count = 1 << 20
    step = Step(3, "region", active=b"\x01" * (count // 8), grid=(1, 1, count))
    assert build_masks([step]) == ((), 1)


def test_waterfall_fills_its_axis() -> None:
    bars = build_waterfall(Timings(1.0, 0.5, 0.5, 0, 6.0, 2.0, 9.0))
    assert [bar.name for bar in bars] == ["queued", "embed", "lookup", "fetch", "denoise", "decode"]
    assert [bar.begin for bar in bars] == [0, 100, 150, 200, 200, 800]
    assert bars[-1].begin + bars[-1].width == 1000
    assert build_waterfall(Timings(0, 0, 0, 0, 0, 0, 0)) == ()


def test_savings_are_compared_on_one_scale() -> None:
    assert compare_savings(2.0, 1.0) == (1000, 500)
    assert compare_savings(1.0, -1.0) == (1000, 0)
    assert compare_savings(0.0, 0.0) == (0, 0)


def test_family_grows_from_the_oldest_donor() -> None:
    first = make(id="first")
    second, third = make(id="second", reused=2, donor="first"), make(id="third", reused=2, donor="second")
    stranger = make(id="stranger")
    tree = build_family([first], [third, second, stranger], second)
    assert (tree.card.id, tree.chosen) == ("first", False)
    [child] = tree.children
    assert (child.card.id, child.chosen) == ("second", True)
    assert [each.card.id for each in child.children] == ["third"]


def test_family_that_claims_to_be_its_own_donor_ends() -> None:
    one, two = make(id="one", reused=1, donor="two"), make(id="two", reused=1, donor="one")
    tree = build_family([two], [one, two], one)
    assert tree.card.id == "two"
    assert [each.card.id for each in tree.children] == ["one"]
    assert tree.children[0].children == ()


def test_long_line_of_descendants_is_cut() -> None:
    line = [make(id="g0"), *(make(id=f"g{n}", reused=1, donor=f"g{n - 1}") for n in range(1, 100))]
    member, length = build_family([], line, line[0]), 1
    while member.children:
        [member] = member.children
        length += 1
    assert length == 30


def timed(seconds: float, **fields: Any) -> Generation:
    message = make_message(**fields)
    message.timings.total_seconds = seconds
    return Generation.from_proto(message)


def test_figures_count_what_succeeded() -> None:
    figures = build_figures(
        [
            timed(2, reused=3, seconds_saved=3.0),
            timed(4, reused=3, seconds_saved=1.0),
            timed(9),
            make("FAILED"),
        ]
    )
    assert (figures.total, figures.succeeded, figures.failed) == (4, 3, 1)
    assert figures.reused == pytest.approx(2 / 3)
    assert (figures.saved, figures.computed) == (4.0, 15.0)
    assert [(group.badge, group.count, group.median) for group in figures.groups] == [
        ("hit", 2, 3.0),
        ("miss", 1, 9.0),
    ]
    assert figures.points == "0.0,100.0 500.0,75.0 1000.0,0.0"
    assert build_figures([]).points == ""


def test_money_has_its_currency_and_small_amounts_more_digits() -> None:
    assert format_money(1234.5, "USD") == "1,234.50 USD"
    assert format_money(0.0044, "EUR") == "0.0044 EUR"
    assert format_money(2, "") == "2.00"


def test_bars_of_decisions_are_on_one_scale() -> None:
    figures = build_figures([timed(3, reused=3), timed(12), timed(8)])
    assert [(group.badge, group.width) for group in figures.groups] == [("hit", 300.0), ("miss", 1000.0)]
    assert [group.width for group in build_figures([timed(0)]).groups] == [0.0]


def test_today_begins_at_midnight_and_says_what_it_does_not_know() -> None:
    now = datetime(2026, 3, 1, 0, 30, tzinfo=UTC)

    def at(minutes: int, saved: float, state: str = "SUCCEEDED") -> Generation:
        message = make_message(state, seconds_saved=saved)
        message.create_time.FromDatetime(now + timedelta(minutes=minutes))
        return Generation.from_proto(message)

    found = [at(-1, 60.0), at(-20, 30.0, "FAILED"), at(-25, -4.0), at(-30, 30.0), at(-31, 900.0)]
    today = build_today(found, now, 100)
    assert (today.total, today.complete, today.saved) == (4, True, 90.0)
    assert today.price_saved(4.0) == pytest.approx(0.1)
    assert not build_today(found[:4], now, 4).complete
    assert build_today(found, now, 5).complete


def test_form_fills_a_shape_from_the_model_and_refuses_text_for_numbers() -> None:
    models = [make_model()]
    parsed = parse_request_form({"prompt": " a circle ", "width": "128", "labels": "a=b, c = d"}, models)
    assert parsed.faults == {}
    assert parsed.prompt == "a circle"
    assert (parsed.options["frames"], parsed.options["height"], parsed.options["width"]) == (16, 64, 128)
    assert parsed.options["labels"] == {"a": "b", "c": "d"}
    faulty = parse_request_form({"prompt": "", "seed": "-1", "steps": "four", "labels": "novalue"}, models)
    assert set(faulty.faults) == {"prompt", "seed", "steps", "labels"}


def test_violations_reach_the_field_of_the_form() -> None:
    assert map_violations(
        [Violation("spec.shape.frames", "must be 8 to 64"), Violation("spec.model_id", "unknown")]
    ) == {"frames": "must be 8 to 64", "model": "unknown"}
    assert map_violations([Violation("spec.retention.time", "bad")]) == {"": "spec.retention.time: bad"}


def test_request_like_an_earlier_one_keeps_what_the_change_needs() -> None:
    message = make_message(id="gen-a")
    message.spec.seed = 7
    generation = Generation.from_proto(message)
    assert fill_from(generation, "edit", [])["donor"] == "gen-a"
    assert "seed" not in fill_from(generation, "vary", [])
    full = fill_from(generation, "full", [])
    assert (full["reuse"], full["seed"]) == ("off", "7")


@pytest.mark.parametrize(("sigmas", "steps"), [((1.0, 0.5, 0.0), ""), ((1.0, 0.9, 0.5, 0.0), "3")])
def test_request_like_an_earlier_one_has_its_number_of_steps(sigmas: tuple[float, ...], steps: str) -> None:
    message = make_message()
    message.spec.model_id = "small"
    message.spec.schedule.sigmas.extend(sigmas)
    assert fill_from(Generation.from_proto(message), "full", [make_model()]).get("steps", "") == steps


def make_comparable(**fields: Any) -> Generation:
    message = make_message(**fields)
    message.video.size_bytes = 1
    message.spec.seed, message.spec.model_id = 7, "small"
    message.spec.schedule.sigmas.extend((1.0, 0.5, 0.0))
    message.spec.shape.frames, message.spec.shape.height, message.spec.shape.width = 16, 64, 64
    return Generation.from_proto(message)


def change_message(generation: Generation, change: Callable[[Any], None]) -> Generation:
    message = scheduler_pb2.Generation()
    message.CopyFrom(generation.proto)
    change(message)
    return Generation.from_proto(message)


def test_full_computation_of_the_same_request_is_found() -> None:
    hit, other, full = make_comparable(reused=3, donor="d"), make_comparable(reused=2), make_comparable()
    assert find_full_computation(hit, [hit, other, full, make_comparable()]) == full
    assert find_full_computation(hit, [hit, other]) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda each: setattr(each.spec, "prompt", "A blue circle"),
        lambda each: setattr(each.spec, "seed", 8),
        lambda each: setattr(each.spec, "model_id", "large"),
        lambda each: each.spec.schedule.sigmas.insert(1, 0.9),
        lambda each: setattr(each.spec.shape, "width", 96),
        lambda each: setattr(each, "state", scheduler_pb2.GENERATION_STATE_FAILED),
        lambda each: each.ClearField("video"),
        lambda each: setattr(each, "generation_id", "d"),
        lambda each: setattr(each.donor, "generation_id", "another"),
    ],
    ids=["prompt", "seed", "model", "schedule", "shape", "failed", "no-video", "donor", "hit"],
)
def test_another_request_is_no_full_computation(change: Callable[[Any], None]) -> None:
    hit, full = make_comparable(reused=3, donor="d"), make_comparable()
    assert find_full_computation(hit, [full]) is not None
    assert find_full_computation(hit, [change_message(full, change)]) is None


@given(st.text(max_size=400))
def test_filter_by_a_prompt_fits_and_is_its_beginning(prompt: str) -> None:
    text = make_prompt_filter(prompt)
    assert prompt.startswith(text)
    size = len(text.encode())
    assert size == len(prompt.encode()) if len(prompt.encode()) <= 256 else 253 <= size <= 256


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.035, "35 ms"), (0.42, "0.42 s"), (12.2, "12 s"), (185, "3 min 5 s")],
)
def test_seconds_are_short(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (3_400_000, "3.4 MB"), (2**50, "1,125.9 TB")]
)
def test_sizes_are_short(count: int, text: str) -> None:
    assert format_bytes(count) == text
