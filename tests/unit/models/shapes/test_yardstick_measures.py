"""Tests of the measures: artefacts, donor's share, sharpness, layout kept, diversity, distance."""

import dataclasses
import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.shapes.layout import draw_layout
from models.shapes.render import render
from models.shapes.world import Scene, Thing, scene_table
from models.shapes.yardstick import classifier, diversity
from models.shapes.yardstick.classifier import (
    FEATURES,
    OBJECT_SIZES,
    SCENE_SIZES,
    Classifier,
    frechet_distance,
    label_videos,
)
from models.shapes.yardstick.corrupt import (
    GHOSTS,
    Ghost,
    blur,
    pass_codec,
    paste_ghost,
    replace_texture,
    shift_colours,
)
from models.shapes.yardstick.kept import compare_layouts, match_scenes
from models.shapes.yardstick.reader import Reading, read
from models.shapes.yardstick.residue import compute_residue, donor_share, measure_artefacts
from models.shapes.yardstick.sharpness import measure_sharpness
from models.shapes.yardstick.validate import load_videos, soften
from services.denoiser.codec.mp4 import encode_mp4, to_frames

RED = Thing("square", "red", "right", "large")
GREEN = Thing("circle", "green", "still", "large", "lower left")
STRIPES = Scene("white", "striped", (RED,))


def draw(scene: Scene, seed: int = 0, layout_of: Scene | None = None) -> Tensor:
    """Renders a scene with the layout that a seed gives to it, or to another scene."""
    layout = draw_layout(scene_table([layout_of or scene]), torch.Generator().manual_seed(seed))
    return render(scene_table([scene]), layout)[0]


@pytest.fixture(scope="module")
def stripes() -> Reading:
    return read(draw(STRIPES))


@pytest.mark.parametrize("texture", ["plain", "striped", "checkered", "dotted"])
def test_artefacts_are_not_found_in_clean_videos(texture: str) -> None:
    video = draw(Scene("orange", texture, (RED, GREEN)), 1)
    for clean in (video, pass_codec(video), soften(video, random.Random(0))):
        found = measure_artefacts(read(clean))
        assert not found.found
        assert found.share == 0


@pytest.mark.parametrize("kind", GHOSTS)
def test_artefacts_include_faint_ghosts(kind: Ghost, stripes: Reading) -> None:
    pasted = paste_ghost(stripes.video, kind, 0.25, random.Random(3))
    assert pasted is not None
    reading = read(pass_codec(pasted[0]))
    found = measure_artefacts(reading, 1)
    assert found.found
    assert found.share > 10 / 64**2


def test_artefacts_include_a_wrong_texture(stripes: Reading) -> None:
    assert measure_artefacts(read(replace_texture(stripes, random.Random(1)))).found


def test_artefacts_include_surplus_objects() -> None:
    reading = read(draw(Scene("white", "plain", (RED, GREEN))))
    assert not measure_artefacts(reading, 2).found
    assert measure_artefacts(reading, 1).found


def test_artefacts_ignore_inexact_colours_but_the_distance_does_not(stripes: Reading) -> None:
    moved = measure_artefacts(read(shift_colours(stripes, 0.04, random.Random(0))))
    assert not moved.found
    assert moved.distance > 5 * measure_artefacts(stripes).distance


def test_ghost_that_nobody_can_see_is_not_pasted(stripes: Reading) -> None:
    assert paste_ghost(stripes.video, "fixed", 0.01, random.Random(0)) is None


def test_donor_share_tells_the_donor_from_others(stripes: Reading) -> None:
    pasted = paste_ghost(stripes.video, "fixed", 0.3, random.Random(3))
    other = paste_ghost(stripes.video, "fixed", 0.3, random.Random(4))
    assert pasted is not None
    assert other is not None
    reading = read(pasted[0])
    residue = compute_residue(reading)
    assert donor_share(residue, pasted[1], reading.best_fit) > 0.6
    assert donor_share(residue, other[1], reading.best_fit) < 0.2
    assert donor_share(-residue, pasted[1], reading.best_fit) == 0
    assert donor_share(torch.zeros_like(residue), pasted[1], reading.best_fit) == 0


def test_sharpness_falls_with_blur(stripes: Reading) -> None:
    values = [measure_sharpness(stripes)] + [
        measure_sharpness(read(blur(stripes.video, s))) for s in (0.6, 1.5)
    ]
    for field in ("rims", "texture"):
        sharp, soft, blurred = (v[field] for v in values)
        assert 0.95 < sharp < 1.05
        assert 0.5 < soft < 0.85
        assert blurred < 0.45
    assert math.isnan(measure_sharpness(read(draw(Scene("white", "plain", ()))))["rims"])


def test_layout_is_kept_if_only_a_colour_changes(stripes: Reading) -> None:
    target = dataclasses.replace(STRIPES, things=(dataclasses.replace(RED, colour="blue"),))
    same = compare_layouts(stripes, read(draw(target)), STRIPES, target)
    assert same["all"]
    other = compare_layouts(stripes, read(draw(target, 1)), STRIPES, target)
    assert not other["place"]
    assert not other["texture"]
    assert not other["all"]


@pytest.mark.parametrize("change", [{"motion": "up"}, {"size": "small"}, {"shape": "triangle"}])
def test_layout_is_kept_where_the_world_itself_moves_an_edited_object(
    change: dict[str, str], stripes: Reading
) -> None:
    target = dataclasses.replace(STRIPES, things=(dataclasses.replace(RED, **change),))
    assert compare_layouts(stripes, read(draw(target)), STRIPES, target)["all"]
    assert not compare_layouts(stripes, read(draw(target, 3)), STRIPES, target)["place"]


def test_layout_kept_reports_a_missing_object(stripes: Reading) -> None:
    kept = compare_layouts(stripes, read(draw(Scene("white", "striped", ()), 0)), STRIPES, STRIPES)
    assert not kept["objects"]
    assert kept["texture"]


def test_layout_kept_ignores_what_the_prompt_changes(stripes: Reading) -> None:
    target = dataclasses.replace(STRIPES, texture="dotted")
    assert compare_layouts(stripes, read(draw(target)), STRIPES, target)["all"]
    moved = dataclasses.replace(STRIPES, things=(dataclasses.replace(RED, place="lower right"),))
    elsewhere = read(draw(moved, 0))
    assert compare_layouts(stripes, elsewhere, STRIPES, moved)["place"]


def test_scenes_are_matched_by_their_attributes() -> None:
    two, swapped = Scene("white", "plain", (RED, GREEN)), Scene("white", "plain", (GREEN, RED))
    assert match_scenes(two, swapped) == [1, 0]
    assert match_scenes(two, Scene("white", "plain", (GREEN,))) == [1]
    assert match_scenes(Scene("white", "plain", (GREEN,)), two) == [None, 0]


def test_diversity_of_equal_videos_is_zero_and_that_of_renders_one() -> None:
    rendered = [diversity.render_readings(STRIPES, 6, seed) for seed in (1, 2)]
    first, second = (diversity.measure_variances(r, STRIPES) for r in rendered)
    same = diversity.measure_variances([rendered[0][0]] * 6, STRIPES)
    assert all(v == pytest.approx(0, abs=1e-6) for v in same.values())
    ratios = diversity.diversity_ratios([first], [second])
    assert all(0.4 < r < 2.5 for r in ratios.values())
    assert diversity.diversity_ratios([same], [first])["mean"] == pytest.approx(0, abs=1e-2)


def test_diversity_skips_what_a_scene_does_not_have() -> None:
    scene = Scene("white", "plain", (GREEN,))
    variances = diversity.measure_variances(diversity.render_readings(scene, 3, 0), scene)
    assert math.isnan(variances["heading"])
    assert math.isnan(variances["texture"])
    assert not math.isnan(diversity.diversity_ratios([variances], [variances])["mean"])


def test_labels_count_the_values_of_objects() -> None:
    scene = Scene("white", "dotted", (RED, GREEN))
    table = scene_table([scene, STRIPES])
    labels = label_videos(table, draw_layout(table, torch.Generator().manual_seed(0)))
    assert labels["count"].tolist() == [1, 0]
    assert labels["shape"].tolist() == [[1, 1, 0], [0, 1, 0]]
    assert labels["size"].tolist() == [[0, 2], [0, 1]]
    assert int(labels["place"][0, 2]) >= 1  # lower left
    assert labels["place"].sum(1).tolist() == [2, 1]


def test_classifier_predicts_every_attribute() -> None:
    network = Classifier()
    assert sum(p.numel() for p in network.parameters()) <= 300_000
    logits = network(torch.zeros(2, 3, 16, 64, 64))
    assert {k: v.shape[1] for k, v in logits.items()} == SCENE_SIZES | OBJECT_SIZES
    assert network.embed(torch.zeros(2, 3, 16, 64, 64)).shape == (2, FEATURES)


def test_frechet_distance_grows_with_shift_and_spread() -> None:
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 500, 8, generator=g)
    near = frechet_distance(first, second)
    assert 0 <= near < 0.1
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(first, second + 0.5) == pytest.approx(0.25, abs=0.1)
    assert frechet_distance(first, 0.5 * second) == pytest.approx(0.25, abs=0.1)
    assert frechet_distance(10 * first, 10 * second) == pytest.approx(near, rel=1e-3)


def test_shipped_classifier_tells_blurred_videos_from_rendered_ones() -> None:
    table = scene_table([STRIPES, Scene("pink", "dotted", (RED, GREEN))] * 50)
    videos = [render(table, draw_layout(table, torch.Generator().manual_seed(s))) for s in (1, 2)]
    first, second = (classifier.embed_videos(v) for v in videos)
    blurred = classifier.embed_videos([blur(v, 2.0) for v in videos[1]])
    assert frechet_distance(first, blurred) > 1.5 * frechet_distance(first, second)


def test_changed_classifier_weights_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_bytes(b"other")
    monkeypatch.setattr(classifier, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(ValueError, match="restore the file"):
        classifier.load_classifier.__wrapped__()


def test_videos_of_a_folder_are_averaged_to_the_worlds_size(tmp_path: Path, stripes: Reading) -> None:
    (tmp_path / "a.mp4").write_bytes(encode_mp4(to_frames(stripes.video, 2), 8.0))
    [video] = load_videos(tmp_path)
    assert video.shape == stripes.video.shape
    assert float((video - stripes.video).abs().mean()) < 0.05
