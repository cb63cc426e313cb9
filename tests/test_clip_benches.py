"""`zoo bench clips` and `cmd`: what they count, their distances, and a run of each."""

from __future__ import annotations

import pytest
import torch

from cases.benches import published
from zoo.benchmarks import clips, cmd


def test_clips_in_fewer_steps(monkeypatch, tmp_path):
    monkeypatch.setattr(clips, "SLICES", (1, 2))
    record, _, size = published(monkeypatch, tmp_path, clips, "--steps", "6", "--clips", "3")
    ways = {way["way"]: way for way in record["ways"]}
    plain, merged = ways["all steps"], ways["merged, first half"]
    assert plain["psnr"] == 100.0 and plain["passes"] == 6 and ways["half the steps"]["passes"] == 3
    assert merged["tokens"] == 0.75 * plain["tokens"] and merged["flops"] < plain["flops"]
    assert ways["leap at half"]["passes"] == 3 and ways["rehash, every 3rd"]["flops"] < plain["flops"]
    whole, grouped, each = record["slices"]
    assert grouped["bytes"] < each["bytes"] < whole["bytes"] and whole["apart"] == 0 and each["apart"] < 1e-4
    assert size == (2 * 8 * 49 - 1, len(clips.WAYS) * 49 - 1)


def test_distances_and_jerks_of_clips():
    torch.manual_seed(0)
    a, b = torch.rand(40, 1, 4, 6, 6), torch.rand(40, 1, 4, 6, 6)
    assert abs(clips.distance(a, b)) < 0.01 < clips.distance(a, 0.5 * b)
    line = torch.zeros(1, 1, 4, 8, 8)
    for frame in range(4):
        line[0, 0, frame, frame, 2 * frame] = 1.0  # one pixel down, two to the right
    assert clips.jerk(line) == pytest.approx(0.0, abs=1e-5)
    line[0, 0, 3] = line[0, 0, 2]  # it stops: a second difference of sqrt(5), another of 0
    assert clips.jerk(line) == pytest.approx(5**0.5 / 2, abs=1e-5)


def test_clips_as_frames_and_motions(monkeypatch, tmp_path):
    record, verdicts, size = published(monkeypatch, tmp_path, cmd, "--updates", "1", "--clips", "3", "--steps", "2")
    assert record["numbers"]["CMD"] == record["numbers"]["a vector a patch"] == record["clip"] // 4
    assert set(record["psnr"]) == {"CMD, bundled", "CMD", "a mean as the frame", "a vector a patch"}
    found = record["samples"]
    assert found["CMD, drawn motions"]["tokens"] == 32 and found["video_dit_nano"]["tokens"] == 128
    assert 0 < found["CMD, drawn motions"]["flops"] < found["video_dit_nano"]["flops"]
    assert found["the content frame, still"]["jerk"] < 1e-4 < found["test clips"]["jerk"]
    assert next(iter(verdicts.values())) == "missed" and record["psnr"]["CMD, bundled"] > record["psnr"]["CMD"]
    assert size == (3 * 8 * 49 - 1, 5 * 49 - 1)
