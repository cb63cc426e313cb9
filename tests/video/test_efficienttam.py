"""EfficientTAM: windows and pooled memories written out, the memory bank, prompts, occlusion, the authors' files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.checkpoints.convert import efficienttam
from zoo.layers.attention.cross import MapAttention
from zoo.layers.positions import planar_tables
from zoo.video import EfficientTAM, EfficientTAMConfig, Prompt, Tracked, TrackState
from zoo.video.efficienttam import MISSING
from zoo.video.trunk import Trunk, WindowBlock

POINT = Prompt(torch.tensor([[[5.0, 20.0]], [[17.0, 3.0]]]), torch.ones(2, 1, dtype=torch.long))


def config(**options: Any) -> EfficientTAMConfig:
    small = {"img_size": 32, "patch_size": 8, "dim": 12, "depth": 2, "num_heads": 3, "window": 3, "global_blocks": (1,)}
    memory = {"hidden_dim": 16, "memory_dim": 8, "memory_depth": 1, "memory_frames": 3, "pointers": 5}
    return EfficientTAMConfig(**{**small, **memory, "decoder_heads": 2, "mlp_dim": 24, "position_grid": 3, **options})


def built(**options: Any) -> EfficientTAM:
    torch.manual_seed(0)
    return EfficientTAM(config(**options)).double().eval()


@pytest.fixture
def model() -> EfficientTAM:
    return built()


def clip(frames: int = 6) -> Tensor:
    return torch.randn(2, frames, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def same(found: Tracked, wanted: Tracked) -> None:
    for a, b in zip(found, wanted, strict=True):
        close(a, b)


def occluded_at(model: EfficientTAM, frames: Tensor) -> EfficientTAM:
    """The decoder's sense of the object moved so that it sees it in some of the frames."""
    scores = torch.stack([tracked.score for tracked in model.track(frames, POINT)])
    with torch.no_grad():
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.sub_(scores[1:].mean())  # pyright: ignore
    return model


def attention(pool: int) -> tuple[MapAttention, MapAttention, dict[str, Any]]:
    torch.manual_seed(0)
    layer, full = MapAttention(8, 2, pool=pool, kv_dim=5).double(), MapAttention(8, 2, kv_dim=5).double()
    full.load_state_dict(layer.state_dict())
    ys, xs = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    tables = planar_tables(torch.stack([xs, ys], -1).flatten(0, 1), 4, dtype=torch.double)
    return layer, full, {"tables": tables, "grid": (4, 6), "maps": 3}


def test_places_are_turns_by_column_and_row() -> None:
    """A score depends on how far two places are apart, in columns and in rows."""
    tables = planar_tables(torch.tensor([[0, 0], [2, 3], [5, 1], [7, 4]]), 8, dtype=torch.double)
    from zoo.kernels.rope import rope

    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.double).expand(2, 1, 4, 1, 8)
    a, b = (rope(x, *tables, interleaved=True)[0, :, 0] for x in (q, k))
    close(a[1] @ b[0], a[3] @ b[2])
    assert (a[1] @ b[0] - a[2] @ b[0]).abs() > 1e-3
    turned = torch.view_as_complex(q[0, 1, 0].unflatten(0, (4, 2)).contiguous())
    angles = torch.tensor([2 * 1.0, 2 * 1e-2, 3 * 1.0, 3 * 1e-2], dtype=torch.double)
    close(a[1], torch.view_as_real(turned * torch.polar(torch.ones_like(angles), angles)).flatten())


def test_pooled_memories_are_exact_where_keys_are_constant() -> None:
    """In each cell of a map after its rotation, whatever the values; further tokens are exact in any case."""
    layer, _, given = attention(2)
    q, v = torch.randn(2, 24, 2, 4, dtype=torch.double), torch.randn(2, 76, 2, 4, dtype=torch.double)
    cells = torch.randn(2, 3, 2, 1, 3, 1, 2, 4, dtype=torch.double).expand(-1, -1, -1, 2, -1, 2, -1, -1)
    keys = torch.cat([cells.flatten(1, 5), torch.randn(2, 4, 2, 4, dtype=torch.double)], 1)
    layer.q_proj = layer.k_proj = layer.v_proj = layer.out_proj = torch.nn.Identity()  # pyright: ignore
    scores = torch.einsum("bnhd,bmhd->bhnm", q, keys) / 2
    wanted = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2)
    still = {**given, "tables": tuple(torch.full_like(part, part is given["tables"][0]) for part in given["tables"])}
    close(layer(*(x.flatten(2) for x in (q, keys, v)), **still), wanted)


def test_pooled_memories_written_out() -> None:
    """The mean key of a cell, turned before it is pooled, scores ln 4 more, and stands for the mean value."""
    layer, full, given = attention(2)
    q, memory = torch.randn(2, 24, 8, dtype=torch.double), torch.randn(2, 76, 5, dtype=torch.double)
    found = layer(q, memory, memory, **given)
    heads = [full.heads(q, memory, memory)]
    (q_, k, v), turn = heads[0], lambda x: _turned(x, given["tables"])
    cells = [[turn(k[:, i : i + 24]), v[:, i : i + 24]] for i in (0, 24, 48)]
    pooled = [
        [F.avg_pool2d(x.permute(0, 2, 3, 1).reshape(2, 8, 4, 6), 2).reshape(2, 2, 4, 6) for x in c] for c in cells
    ]
    keys, values = (torch.cat([c[i] for c in pooled], -1) for i in range(2))  # (B, H, d, 18)
    rest = [x[:, 72:].permute(0, 2, 3, 1) for x in (k, v)]
    bias = torch.tensor([4.0] * 18 + [1.0] * 4, dtype=torch.double).log()
    weights = (turn(q_).transpose(1, 2) @ torch.cat([keys, rest[0]], -1) / 2 + bias).softmax(-1)
    close(found, full.out_proj((weights @ torch.cat([values, rest[1]], -1).mT).transpose(1, 2).flatten(2)))
    assert (found - full(q, memory, memory, **given)).norm() > 1e-2 * found.norm()
    one = {**given, "maps": 1}
    close(layer(q, memory[:, :28], memory[:, :28], **one), full(q, memory[:, :28], memory[:, :28], **one))


def _turned(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.complex(*tables)[:, None]).flatten(-2)


def test_windows_end_in_zeros_that_are_attended_to() -> None:
    block, x = WindowBlock(6, 2, 12, 3).double(), torch.randn(2, 5, 4, 6, dtype=torch.double)
    padded = F.pad(block.norm1(x), (0, 0, 0, 2, 0, 1))
    y = torch.zeros_like(padded)
    for row in (0, 3):
        for column in (0, 3):
            part = padded[:, row : row + 3, column : column + 3]
            y[:, row : row + 3, column : column + 3] = block.attn(part.reshape(2, 9, 6)).view(2, 3, 3, 6)
    y = x + y[:, :5, :4]
    close(block(x), y + block.mlp(block.norm2(y)))


def test_positions_are_resized_as_published() -> None:
    trunk = Trunk(config())
    table = trunk.pos_embed[0, 1:].T.reshape(1, 12, 3, 3)
    wanted = F.interpolate(table, (4, 4), mode="bicubic", align_corners=False)
    torch.testing.assert_close(trunk.positions(), wanted.permute(0, 2, 3, 1))
    exact = Trunk(config(position_grid=4))
    torch.testing.assert_close(exact.positions().flatten(1, 2), exact.pos_embed[:, 1:])


def test_what_is_remembered() -> None:
    """Of 30 frames of which the first and the tenth had prompts: both, two maps, four pointers; no more memory."""
    state, sizes = TrackState(frames=3, pointers=5), []
    for time in range(30):
        state.add(torch.full((1, 4, 8), float(time)), torch.full((1, 16), float(time)), time in (0, 9))
        sizes.append(state.nbytes)
    maps, pointers = state.read()
    assert [(distance, int(tokens[0, 0, 0])) for distance, tokens in maps] == [(0, 0), (0, 9), (2, 28), (1, 29)]
    assert [int(pointer[0, 0]) for pointer in pointers] == [0, 9, 29, 28, 27, 26]
    assert sizes[15:] == [sizes[15]] * 15


@pytest.mark.parametrize("pool", [1, 2])
def test_frame_by_frame_is_the_whole_clip(pool: int) -> None:
    model, frames = built(pool=pool), clip()
    occluded_at(model, frames)
    whole, state = model.track(frames, POINT), model.init_state()
    for t, wanted in enumerate(whole):
        same(model.step(frames[:, t], state, None if t else POINT), wanted)
    seen = torch.stack([tracked.score for tracked in whole]) > 0
    assert seen.any() and not seen.all()
    close(model(frames, POINT), torch.stack([tracked.mask for tracked in whole], 1))
    for tracked, visible in zip(whole, seen, strict=True):
        assert torch.equal((tracked.mask != MISSING).flatten(1).any(1), visible)


def test_a_frame_depends_on_what_was_before_it(model: EfficientTAM) -> None:
    """On the prompt, the first frame and a recent one; a prompted frame is read by itself."""
    frames = clip()
    wanted = model(frames, POINT)
    moved = model(frames, POINT._replace(points=POINT.points.flip(0)))  # pyright: ignore
    assert (moved - wanted).abs().amax((0, 2, 3)).min() > 1e-6
    changed = frames.clone()
    changed[:, 2] = 0
    assert torch.equal(model(changed, POINT)[:, :2], wanted[:, :2])
    assert (model(changed, POINT) - wanted)[:, 3:].abs().amax((0, 2, 3)).min() > 1e-9
    state = model.init_state()
    for t in range(3):
        model.step(frames[:, t], state, POINT if t == 0 else None)
    same(model.step(frames[:, 3], state, POINT), model.step(frames[:, 3], model.init_state(), POINT))


def test_a_point_has_several_meanings_and_a_box_one(model: EfficientTAM) -> None:
    frames, box = clip(2), Prompt(boxes=torch.tensor([[2.0, 3, 20, 31], [0, 0, 9, 9]]))
    of_point, of_box = (model.track(frames, prompt)[0] for prompt in (POINT, box))
    assert of_point.masks.shape == (2, 3, 16, 16) and of_box.masks.shape == (2, 1, 16, 16)
    best = of_point.ious.argmax(1)
    close(of_point.iou, of_point.ious.amax(1))
    low = of_point.masks[torch.arange(2), best][:, None]
    close(of_point.mask, F.interpolate(low, scale_factor=2.0, mode="bilinear")[:, 0])
    corners = Prompt(box.boxes.unflatten(1, (2, 2)), torch.tensor([[2, 3]] * 2))  # pyright: ignore
    same(model.track(frames, corners)[0], of_box)
    none = Prompt(torch.zeros(2, 1, 2), torch.full((2, 1), -1))
    same(model.track(frames, none)[1], model.track(frames)[1])


def test_a_given_mask_is_taken_and_an_empty_one_is_of_nothing(model: EfficientTAM) -> None:
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[0, 4:20, 8:28] = True
    first, state = model.track(clip(3), Prompt(mask=mask))[0], model.init_state()
    assert torch.equal(first.mask > 0, mask) and first.score.tolist() == [10.0, -10.0]
    model.step(clip()[:, 0], state, Prompt(mask=mask))
    pointer = state.prompted[0].pointer
    assert torch.equal(pointer[1], model.no_obj_ptr[0]) and not torch.equal(pointer[0], model.no_obj_ptr[0])


def their_names(model: EfficientTAM) -> dict[str, Tensor]:
    """The state under the names of the authors' file, with the vector that is never read."""
    pairs = (
        (".neck.", ".neck.convs.0."),
        ("mask_downsampler.", "mask_downsampler.encoder."),
        ("fuser.", "fuser.layers."),
    )
    theirs = {"no_mem_pos_enc": torch.zeros(1, 1, model.config.hidden_dim)}
    for key, tensor in model.state_dict().items():
        for ours, name in (*pairs, (".mlp.fc1.", ".mlp.layers.0."), (".mlp.fc2.", ".mlp.layers.1.")):
            key = key.replace(ours, name)
        theirs[key] = tensor[:, None, None] if key == "maskmem_tpos_enc" else tensor
    return theirs


def test_the_authors_files(model: EfficientTAM, tmp_path: Any) -> None:
    """A dict under "model", as they and SAM 2 save it."""
    theirs = their_names(model)
    assert efficienttam.recognises(theirs) and not efficienttam.recognises(model.state_dict())
    wanted = zoo.create_model("efficienttam_nano")
    torch.save({"model": their_names(wanted)}, tmp_path / "efficienttam.pt")  # pyright: ignore
    found = zoo.create_model("efficienttam_nano", checkpoint_path=tmp_path / "efficienttam.pt")
    for key, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[key], tensor), key


@pytest.mark.parametrize("x", [torch.zeros(2, 3, 32, 32), torch.zeros(2, 0, 3, 32, 32), torch.zeros(1, 2, 3, 32, 24)])
def test_wrong_clips(model: EfficientTAM, x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"clips must be \(batch, frames, 3, 32, 32\) floats with a frame or more"):
        model(x)


ONE = torch.ones(1, 1, dtype=torch.long)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(torch.tensor([[[5.0, 32.0]]]), ONE), r"points must be in the picture, in \[0, 32\)"),
        (Prompt(torch.tensor([[[-1.0, 3.0]]]), ONE), r"points must be in the picture"),
        (Prompt(torch.tensor([[[5.0, float("nan")]]]), ONE), r"points must be in the picture"),
        (Prompt(boxes=torch.tensor([[3.0, 4, 40, 20]])), r"boxes must be in the picture"),
        (Prompt(boxes=torch.tensor([[9.0, 4, 9, 20]])), r"right > left and bottom > top"),
        (Prompt(torch.zeros(1, 1, 2)), "points need labels"),
        (Prompt(torch.zeros(1, 1, 2), 4 * ONE), "labels must be -1"),
        (Prompt(torch.zeros(1, 2, 2), ONE), r"labels must have shape \(1, 2\), got \(1, 1\)"),
        (Prompt(torch.zeros(2, 1, 2), ONE), r"points must have shape \(1, 1, 2\), got \(2, 1, 2\)"),
        (Prompt(mask=torch.zeros(1, 8, 8)), r"mask must have shape \(1, 32, 32\), got \(1, 8, 8\)"),
        (Prompt(torch.zeros(1, 1, 2), ONE, mask=torch.zeros(1, 32, 32)), "a prompt is a mask or points and boxes"),
    ],
)
def test_wrong_prompts(model: EfficientTAM, prompt: Prompt, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(clip(1)[:1], prompt)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 6}, "patch_size must be a power of 2"),
        ({"img_size": 36}, "patch_size must be a power of 2, 4 or more, that divides img_size"),
        ({"pool": 3}, "pool must divide the 4 patches"),
        ({"memory_dim": 6}, "hidden_dim must be a multiple"),
        ({"global_blocks": (2,)}, r"global_blocks must be in \[0, depth 2\)"),
        ({"in_chans": 1}, "mean and std must have in_chans 1 numbers"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)
