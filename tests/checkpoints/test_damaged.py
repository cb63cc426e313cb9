"""Damaged and hostile files: one error that names file, reason and way out; nothing loaded, nothing run."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zoo
from zoo.checkpoints import read_state_dict

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def header(content: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(content)) + content + body


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small model of the zoo."""
    return zoo.save_model(zoo.create_model("mamba2_nano", dim=32, depth=1), tmp_path / "model")


DAMAGED = {
    "empty": b"",
    "no header": b"\x01\x02\x03",
    "header past the end": struct.pack("<Q", 10_000) + b"{}",
    "oversized header": struct.pack("<Q", 2**60) + b"{}",
    "header that is no JSON": header(b"not json"),
    "header that is no object": header(b"[1, 2]"),
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "offsets outside": header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', b"\0" * 4),
    "offsets backwards": header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}', b"\0" * 8),
    "shape against offsets": header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"\0" * 4),
    "huge shape": header(
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "unknown dtype": header(b'{"a":{"dtype":"Q7","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "bytes behind": header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 9),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_safetensors(case, folder):
    (folder / "model.safetensors").write_bytes(DAMAGED[case])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete.*nothing was loaded, fetch it again"):
        zoo.create_model(f"local-dir:{folder}")


def test_truncated_body(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=rf"not a complete safetensors file \({path.stat().st_size:,} bytes\)"):
        zoo.create_model(f"local-dir:{folder}")


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "x.bin", "", "."]
)
def test_a_shard_outside_the_folder(shard, folder):
    good = folder / "model.safetensors"
    good.rename(folder.parent / "x.safetensors")  # there, and still not read
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"norm.weight": shard}}))
    with pytest.raises(ValueError, match=r"index\.json names .*not a \.safetensors file in its own folder"):
        zoo.create_model(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ("[]", "must hold a JSON object, got list"),
        ("{}", "must hold a weight_map"),
        ('{"weight_map": []}', "must hold a weight_map"),
        ('{"weight_map": {"a": 3}}', "must hold a weight_map"),
        ('{"weight_map": {"a": "model.safetensors"}}', "promises tensors that are in none of its files: a"),
    ],
)
def test_malformed_index(content, message, folder):
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=rf"index\.json.*{message}"):
        zoo.create_model(f"local-dir:{folder}")


def test_missing_shard(folder):
    index = {"weight_map": {"norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"names model-00002-of-00002\.safetensors, which is not"):
        zoo.create_model(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 10**9}, r"depth is 1000000000, the checkpoint holds only \d+ tensors"),
        ({"depth": 3}, r"missing \(\d+\): blocks\.1"),
        ({"dim": 64}, r"mismatched \(\d+\): embedding\.weight: checkpoint \(256, 32\), model \(256, 64\)"),
        ({"dim": 10**30}, "no model can be built"),
        ({"dim": "32"}, r"config\.json describes no model of the zoo: .*dim must be int, got '32'"),
        ({"dim": 32.0}, "dim must be int, got 32.0"),
        ({"tie_embeddings": 1}, "tie_embeddings must be bool, got 1"),
        ({"dt_limit": [0.0]}, r"dt_limit must be tuple\[float, float\], got \(0.0,\)"),
        ({"head_dim": 0}, "head_dim must be a positive integer, got 0"),
        ({"vocab_size": -1}, "vocab_size must be a positive integer"),
        ({"d_stat": 1}, "has no option 'd_stat', did you mean 'd_state'"),
    ],
)
def test_a_configuration_that_does_not_fit(change, message, folder):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"config": content["config"] | change}))
    with pytest.raises(ValueError, match=message) as error:
        zoo.create_model(f"local-dir:{folder}")
    assert str(folder) in str(error.value)


def test_pickles_with_code_are_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for name, content in (("pytorch_model.bin", {"state_dict": Payload()}), ("pytorch_model.bin", Payload())):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=r"pytorch_model\.bin is not a checkpoint of tensors alone.*trust it"):
            read_state_dict(tmp_path)
    assert not (tmp_path / "ran").exists()


def mutated(content: bytes, changes: list[tuple[float, int]], cut: float | None) -> bytes:
    """Some bytes replaced, at positions that are fractions of the length, and the end cut off."""
    damaged = bytearray(content)
    for place, value in changes:
        damaged[int(place * (len(damaged) - 1))] = value
    return bytes(damaged if cut is None else damaged[: int(cut * len(damaged))])


places = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4)
cuts = st.none() | st.floats(0, 1)


def loads_or_raises_ours(folder: Path) -> None:
    try:
        zoo.create_model(f"local-dir:{folder}")
    except (ValueError, TypeError, FileNotFoundError) as error:
        assert str(folder) in str(error), f"the message does not name the file: {error!r}"


@FUZZ
@given(changes=places, cut=cuts, in_header=st.booleans())
def test_fuzzed_safetensors(folder, changes, cut, in_header):
    path = folder / "model.safetensors"
    whole = original(path)
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    damaged = mutated(whole[:start], changes, cut) + whole[start:] if in_header else mutated(whole, changes, cut)
    path.write_bytes(damaged)
    loads_or_raises_ours(folder)


@FUZZ
@given(changes=places, cut=cuts)
def test_fuzzed_bytes_of_a_configuration(folder, changes, cut):
    path = folder / "config.json"
    path.write_bytes(mutated(original(path), changes, cut))
    loads_or_raises_ours(folder)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
FOREIGN = {
    "zoo": {"architecture": "mamba2_nano", "config": {}},
    "mamba": {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1, "expand": 2, "state_size": 8},
    "mamba2": {"model_type": "mamba2", "hidden_size": 32, "num_heads": 2, "head_dim": 32, "time_step_limit": [0, 1]},
    "falcon_h1": {"model_type": "falcon_h1", "hidden_size": 32, "num_attention_heads": 2, "mamba_n_heads": 2},
    "deepseek": {"model_type": "deepseek_v3", "hidden_size": 32, "rope_scaling": {"type": "yarn", "factor": 2}},
    "llama": {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 250,
              "num_attention_heads": 2, "intermediate_size": 8, "rope_scaling": {"type": "llama3", "factor": 2}},
    "gemma3": {"model_type": "gemma3_text", "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 250,
               "num_attention_heads": 4, "intermediate_size": 8, "layer_types": ["full_attention"],
               "rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
    "mixtral": {"model_type": "mixtral", "hidden_size": 32, "rope_parameters": {"rope_theta": 1e4}},
    "gpt_oss": {"model_type": "gpt_oss", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 8, "rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": False}},
    "delta_net": {"model_type": "delta_net", "hidden_size": 32, "num_heads": 2, "expand_k": 0.5, "hidden_ratio": 2},
    "kimi_linear": {"model_type": "kimi_linear", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                    "vocab_size": 250, "intermediate_size": 8, "num_experts": 2, "first_k_dense_replace": 1,
                    "linear_attn_config": {"full_attn_layers": [], "kda_layers": [1], "num_heads": 2, "head_dim": 8}},
    "jamba": {"model_type": "jamba", "hidden_size": 32, "num_hidden_layers": 2, "attn_layer_period": 2},
    "granite": {"model_type": "granitemoehybrid", "hidden_size": 32, "num_hidden_layers": 1, "layer_types": ["mamba"]},
    "nemotron_h": {"model_type": "nemotron_h", "hidden_size": 32, "hybrid_override_pattern": "M-*"},
    "zamba2": {"model_type": "zamba2", "hidden_size": 32, "num_hidden_layers": 1, "layers_block_type": ["hybrid"]},
    "xlstm": {"model_type": "xlstm", "embedding_dim": 32, "num_blocks": 1, "num_heads": 2, "weight_mode": "single"},
    "gla": {"model_type": "gla", "hidden_size": 32, "num_heads": 2, "expand_v": 1.0, "num_hidden_layers": 1},
    "mamba_ssm": {"d_model": 32, "n_layer": 1, "vocab_size": 250, "ssm_cfg": {"layer": "Mamba2"}},
    "based": {"n_embd": 32, "n_layer": 4, "n_inner": 32, "alt_mixer_layers": [1], "alt_mixer_2_layers": [2],
              "alt_mixer": {"num_heads": 2, "feature_dim": 8}, "alt_mixer_2": {"num_heads": 2, "window_size": 8}},
    "vit": {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 1}, "pretrained_cfg": {"crop_pct": 0.9}},
    "efficientvit": {"architecture": "efficientvit_m0", "model_args": {"window_size": [7, 7, 7], "down_ops": []}},
    "vovnet": {"architecture": "ese_vovnet39b", "model_args": {"stem_chs": [8, 8, 8], "attn": "ese"}},
}  # fmt: skip


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize("layout", FOREIGN)
def test_fuzzed_values_of_a_configuration(layout, folder, data):
    content = dict(FOREIGN[layout])
    keys = data.draw(st.lists(st.sampled_from([*content, "num_classes", "input_size", "vocab_size"]), max_size=2))
    for key in keys:
        inner = content.get(key)
        if isinstance(inner, dict) and inner and data.draw(st.booleans()):
            content[key] = inner | {data.draw(st.sampled_from(list(inner))): data.draw(values)}
        else:
            content[key] = data.draw(values)
    (folder / "config.json").write_text(json.dumps(content))
    loads_or_raises_ours(folder)


_originals: dict[Path, bytes] = {}


def original(path: Path) -> bytes:
    """The file as it was when first seen: examples share the folder."""
    return _originals.setdefault(path, path.read_bytes())
