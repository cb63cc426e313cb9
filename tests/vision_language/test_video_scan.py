"""VideoScan: what stays of a video, and that it answers as under its mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from zoo.layers.cache.pruning import governed_parts
from zoo.vision_language import VideoScan

N = 37  # features of a frame


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    made: Any = zoo.create_model("llava_nano", dtype=torch.float64).eval()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def frames(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_answers_are_those_under_a_mask(model):
    """All frames at once, where features are seen by their own frame alone."""
    video, prompt, question = frames(3), [0, 65], [66, 67, 68]
    scan = VideoScan(model, prompt=prompt)
    for frame in video:
        scan.add(frame)
    step = next(scan.ask(question, 1, temperature=0.0))
    language, seen = model.language, model.see(video)
    carriers = seen.mean(1, keepdim=True)
    whole = [language.enter(torch.tensor([prompt])), torch.cat([seen, carriers], 1).flatten(0, 1)[None]]
    x = torch.cat([*whole, language.enter(torch.tensor([question]))], 1)
    length = x.shape[1]
    frame = torch.full((length,), -1)
    for index in range(3):
        start = 2 + index * (N + 1)
        frame[start : start + N] = index  # its features; the carrier is seen by all
    own = torch.full((length,), -2)
    for index in range(3):
        own[2 + index * (N + 1) : 2 + (index + 1) * (N + 1)] = index
    mask = torch.ones(length, length, dtype=torch.bool).tril() & ((frame == -1) | (frame == own[:, None]))
    for block in language.blocks:
        a, h = block.mixer, block.norm(x)
        q, k, v = (p(h).unflatten(-1, (-1, 24)) for p in (a.q_proj, a.k_proj, a.v_proj))
        q, k = a.rotated(torch.arange(length), q, k)
        y = a.attend(*(t.transpose(1, 2) for t in (q, k, v)), mask)
        x = x + a.out_proj(y.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.mlp_norm(x))
    logits = language.read_out(x)[0, -1]
    torch.testing.assert_close(step.log_probs[0], logits.log_softmax(-1).max())
    assert int(step.tokens) == int(logits.argmax())


def test_memory_does_not_grow_and_what_repeats_goes_first(model):
    video = frames(4)
    scan = VideoScan(model, memory=3, prompt=[0, 65])
    seen = []
    for frame in (video[0], video[1], video[1], video[2], video[3]):
        scan.add(frame)
        seen.append((scan.frames, scan.held))
        assert {part.filled for part in governed_parts(scan.state)} == {scan.held}
    assert seen == [(1, 3), (2, 4), (3, 5), (4, 5), (5, 5)]
    repeated = 2 + 2 * (N + 1) - 1  # the carrier of the second frame, of which the third is a copy
    assert repeated not in scan.positions
    before = scan.held
    first, second = ([int(step.tokens) for step in scan.ask([66, 67], 4, temperature=0.0)] for _ in range(2))
    assert first == second and scan.held == before


def test_what_is_no_video(model):
    with pytest.raises(ValueError, match="memory"):
        VideoScan(model, memory=0)
    with pytest.raises(ValueError, match="leave out images"):
        VideoScan(model, prompt=[0, 255])
    for question in ([], [65, 255]):
        with pytest.raises(ValueError, match="a question about a video is a text, of a token or more and no image"):
            VideoScan(model, prompt=[0]).ask(question, 1)
    linear: Any = zoo.create_model("llava_nano", language="mamba2_nano", language_options={"depth": 1})
    with pytest.raises(ValueError, match="governs attention"):
        VideoScan(linear)
