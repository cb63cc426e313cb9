"""Loading takes the memory of the weights and no more, and what it gives is a model like any other."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo.limits import each_parameter
from zoo.loading import release

MEASURE = """
import re, sys
import zoo

def kilobytes(name):
    return int(re.search(rf"^{name}:\\s+(\\d+)", open("/proc/self/status").read(), re.M)[1])

small, large = sys.argv[1:]
zoo.create_model(f"local-dir:{small}")  # brings in what is imported on first use
before = kilobytes("VmRSS")
model = zoo.create_model(f"local-dir:{large}")
built = kilobytes("VmHWM")
for parameter in model.parameters():
    parameter.sum()
weights = sum(parameter.nbytes for parameter in model.parameters()) / 1024
print((built - before) / weights, (kilobytes("VmHWM") - before) / weights, weights / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_peak_memory(tmp_path):
    options: dict[str, Any] = {"dim": 768, "depth": 4, "vocab_size": 16_000}
    folders = [zoo.save_model(zoo.create_model("mamba2_nano"), tmp_path / "small")]
    folders.append(zoo.save_model(zoo.create_model("mamba2_nano", **options), tmp_path / "large"))
    command = [sys.executable, "-c", MEASURE, *map(str, folders)]
    measured = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    built, used, megabytes = map(float, measured.split())
    assert megabytes > 80
    assert built < 0.1, "building read the weights, or made copies of them"
    assert used < 1.1, "the weights are in memory more than once"


@pytest.mark.parametrize("name", zoo.list_models("*_nano"))
def test_a_loaded_model_is_the_saved_one(name, tmp_path):
    """Buffers that no file holds included."""
    saved = zoo.create_model(name).eval()
    loaded = zoo.create_model(f"local-dir:{zoo.save_model(saved, tmp_path)}").eval()
    for tensors in (nn.Module.named_parameters, nn.Module.named_buffers):
        ours, theirs = (dict(tensors(model, remove_duplicate=False)) for model in (saved, loaded))
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            assert torch.equal(tensor, theirs[key]) and tensor.dtype == theirs[key].dtype, key
            assert tensor.requires_grad == theirs[key].requires_grad and theirs[key].is_contiguous(), key
    assert len(list(saved.parameters())) == len(list(loaded.parameters()))  # what is tied stays so


def test_training_a_loaded_model_leaves_the_file_alone(tmp_path):
    path = zoo.save_model(zoo.create_model("mamba2_nano"), tmp_path) / "model.safetensors"
    content = path.read_bytes()
    model: Any = zoo.create_model(f"local-dir:{tmp_path}")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.randint(0, 256, (2, 16))
    before = model(tokens, labels=tokens)
    before.backward()
    optimizer.step()
    assert model(tokens, labels=tokens) < before
    assert path.read_bytes() == content
    zoo.save_model(model, tmp_path)  # over the file it still reads from
    again: Any = zoo.create_model(f"local-dir:{tmp_path}")
    assert torch.equal(again(tokens), model(tokens))


def test_dtype_is_the_models_not_the_files(tmp_path):
    zoo.save_model(zoo.create_model("mamba2_nano", dtype=torch.bfloat16), tmp_path)
    plain, low = (zoo.create_model(f"local-dir:{tmp_path}", dtype=dtype) for dtype in (None, torch.float16))
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert {p.dtype for name, p in low.named_parameters() if name.endswith(("A_log", "dt_bias"))} == {torch.float32}
    assert next(low.parameters()).dtype == torch.float16
    assert all(p.is_meta for p in zoo.create_model(f"local-dir:{tmp_path}", device="meta").parameters())


def test_tensors_shared_in_the_file_alone_are_taken_apart(tmp_path):
    tied = zoo.create_model("transformer_nano")
    torch.save(tied.state_dict(), tmp_path / "tied.pt")
    model: Any = zoo.create_model("transformer_nano", tie_embeddings=False, checkpoint_path=tmp_path / "tied.pt")
    assert torch.equal(model.head.weight, model.embedding.weight)
    assert model.head.weight.data_ptr() != model.embedding.weight.data_ptr()


def test_other_threads_build_as_ever():
    built: list[nn.Module] = []
    with each_parameter(release):
        thread = threading.Thread(target=lambda: built.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        assert nn.Linear(2, 2).weight.is_meta
    assert not built[0].weight.is_meta and not nn.Linear(2, 2).weight.is_meta
