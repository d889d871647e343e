"""Tests of what tokens show, against renders, and of the head that reads it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.shapes.contents import Contents, ContentsHead, describe_tokens
from models.shapes.layout import Layout, draw_layout
from models.shapes.network import encode, to_tokens
from models.shapes.render import cover_objects, render
from models.shapes.world import draw_scenes, objects_of, scene_table

TABLE = scene_table(draw_scenes("train", 40, 5))
LAYOUT = draw_layout(TABLE, torch.Generator().manual_seed(6))
TWO = objects_of(TABLE)[:, 1, 0] >= 0


@pytest.mark.parametrize(("side", "tokens"), [(16, 64), (32, 256), (64, 1024)])
def test_every_token_has_its_shares(side: int, tokens: int) -> None:
    contents = describe_tokens(TABLE, LAYOUT, side)
    assert contents.cover.shape == (40, tokens, 2)
    assert contents.values.shape == (40, tokens, 4)
    assert float(contents.cover.min()) >= 0
    assert float(contents.cover.sum(2).max()) <= 1 + 1e-5
    assert not contents.cover[~TWO][..., 1].any()


def test_uncovered_tokens_show_the_background() -> None:
    alone = replace(LAYOUT, speck=torch.zeros_like(LAYOUT.speck))
    with_objects, contents = render(TABLE, alone), describe_tokens(TABLE, alone, 64)
    nothing = TABLE.clone()
    nothing[:, 2:] = -1
    changed = patches(with_objects - render(nothing, alone)).abs().amax(2)
    empty = contents.cover.sum(2) == 0
    assert not changed[empty].any()
    assert (changed[contents.cover.amax(2) > 0.5] > 0.1).all()


def test_the_object_behind_is_hidden_where_the_other_one_is() -> None:
    table, layout = overlapping()
    contents, alone = describe_tokens(table, layout, 64), cover_objects(table, layout)
    front, behind = (contents.cover[..., i].sum() for i in (0, 1))
    assert float(front) == pytest.approx(float(alone[:, 0].sum()) / 64, rel=1e-4)  # 4 frames x 4 x 4 pixels
    assert float(behind) < 0.7 * float(alone[:, 1].sum()) / 64


def test_values_are_those_of_the_object_that_is_seen_most() -> None:
    contents = describe_tokens(TABLE, LAYOUT, 32)
    shown = contents.cover.argmax(2)
    wanted = objects_of(TABLE)[torch.arange(40)[:, None], shown, :4]
    seen = contents.cover.amax(2) > 0
    assert torch.equal(contents.values[seen], wanted[seen])


def test_selected_tokens_keep_their_contents() -> None:
    contents = describe_tokens(TABLE, LAYOUT, 16)
    index = torch.tensor([[3, 60]]).expand(40, -1)
    some = contents.select(index)
    assert torch.equal(some.cover, contents.cover[:, [3, 60]])
    assert torch.equal(some.values, contents.values[:, [3, 60]])


def test_head_learns_to_read_hidden_states_that_say_it() -> None:
    contents = describe_tokens(TABLE, LAYOUT, 16)
    colours = torch.nn.functional.one_hot(contents.values[..., 1].clamp_min(0), 13).float()
    hidden = torch.cat([contents.cover, colours, torch.ones(40, 64, 1)], 2)
    torch.manual_seed(0)
    head = ContentsHead(hidden.shape[2])
    optimiser = torch.optim.Adam(head.parameters(), 0.05)
    losses = [step(head, hidden, contents, optimiser) for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]


def step(head: ContentsHead, hidden: Tensor, contents: Contents, optimiser: torch.optim.Adam) -> float:
    value = head(hidden, contents)
    optimiser.zero_grad()
    torch.autograd.backward(value)
    optimiser.step()
    return float(value.detach())


def overlapping() -> tuple[Tensor, Layout]:
    """Returns a scene of two objects that do not move and overlap by half, the first one in front."""
    table = TABLE[TWO][:1].clone()
    table[0, [2, 7]] = 0  # circles
    layout = LAYOUT.select(TWO.nonzero()[:1, 0])
    return table, replace(
        layout,
        middle=torch.tensor([[[30.0, 32.0], [36.0, 32.0]]]),
        travel=torch.zeros(1, 2, 2),
        radius=torch.full((1, 2), 9.0),
        front=torch.zeros(1, dtype=torch.int64),
    )


def patches(videos: Tensor) -> Tensor:
    """Divides videos [B, 3, T, 64, 64] into the tokens of the network, [B, N, values]."""
    return to_tokens(encode(videos))
