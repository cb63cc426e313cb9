"""The public API: signatures, listing, errors. What is frozen here may only grow."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

import zoo


def parameters(function) -> list[str]:
    return [
        ("*" if p.kind is p.KEYWORD_ONLY else "**" if p.kind is p.VAR_KEYWORD else "") + name
        for name, p in inspect.signature(function).parameters.items()
    ]


def test_signatures():
    assert parameters(zoo.create_model) == [
        "name", "pretrained", "*checkpoint_path", "*device", "*dtype", "*deploy", "*features_only", "*out_indices",
        "*changes", "*quantize", "*adapter", "**config_overrides",
    ]  # fmt: skip
    assert parameters(zoo.list_models) == ["pattern", "*task", "*family", "*pretrained"]
    assert parameters(zoo.model_info) == ["name"]
    assert parameters(zoo.save_model) == ["model", "folder", "*notes", "*max_shard_size"]
    assert parameters(zoo.prefetch) == ["name"]
    assert parameters(zoo.predict) == ["model", "images", "*top_k", "*exif_orientation", "*skip_bad_images"]
    assert parameters(zoo.export_onnx) == ["model", "path", "*step", "*fixed_batch"]
    assert parameters(zoo.register_with_timm) == []
    assert parameters(zoo.convert) == ["source", "target", "to", "*name", "*ema", "*max_shard_size", "*form"]
    assert parameters(zoo.auxiliary_losses) == ["model"]
    assert parameters(zoo.generate)[:3] == ["model", "tokens", "max_new_tokens"]
    assert {field.name for field in dataclasses.fields(zoo.ModelInfo)} >= {
        "name", "task", "family", "paper", "config", "num_parameters", "tags",
    }  # fmt: skip


def test_names_of_the_foundation():
    families = ["mamba", "mamba2", "transformer", "vim", "vit"]
    assert set(families) <= set(zoo.list_families())
    assert {"llama3_2_1b", "qwen3_0_6b"} <= set(zoo.list_models(family="transformer"))
    patterns = {family: f"{family}*" for family in families}  # of the transformers, this library's own sizes
    assert {name for family in families for name in zoo.list_models(patterns[family], family=family)} == {
        *(f"mamba_{size}" for size in ("130m", "370m", "790m", "1_4b", "2_8b", "nano")),
        *(f"mamba2_{size}" for size in ("130m", "370m", "780m", "1_3b", "2_7b", "nano")),
        "mamba2attn_2_7b",
        *(f"transformer_{size}" for size in ("130m", "350m", "1_3b", "nano")),
        *(f"vim_{size}" for size in ("tiny", "small", "base", "nano")),
        *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")),
        "vit_nano",
    }


def test_public_names_are_there_when_asked_for():
    modules = {name for name in zoo.__all__ if inspect.ismodule(getattr(zoo, name))}
    assert modules == {"cache", "decoding", "steering"} and set(zoo.__all__) <= set(dir(zoo))
    assert {n for n in set(zoo.__all__) - modules if find_spec(f"zoo.{n}") is not None} == zoo.NAMESAKES
    with pytest.raises(AttributeError, match="module 'zoo' has no attribute 'creat_model'"):
        getattr(zoo, "creat_model")  # noqa: B009


@pytest.mark.parametrize("first", ["zoo.cli", "zoo.quantize.files", "zoo.api", "zoo.kernels"])
def test_functions_stay_whatever_is_imported_first(first):
    """The import of a module sets its name in the package, which is the function's."""
    code = f"""
import importlib, inspect, sys, zoo
assert "torch" not in sys.modules
importlib.import_module({first!r})
for name in zoo.NAMESAKES:
    module = importlib.import_module(f"zoo.{{name}}")
    assert inspect.ismodule(module) and inspect.isfunction(getattr(zoo, name)), name
assert zoo.quantize is importlib.import_module("zoo.quantize").quantize
assert inspect.ismodule(zoo.layers) and len(zoo.list_models()) > 100
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_listing_filters_and_sorts():
    assert zoo.list_models("mamba_*m") == ["mamba_130m", "mamba_370m", "mamba_790m"]
    assert {"vim_nano", "vit_nano"} <= set(zoo.list_models("*_nano", task="image-classification"))
    assert zoo.list_models(family="transformer", pattern="*_1_3b") == ["transformer_1_3b"]
    assert zoo.list_models("nothing*") == []
    assert zoo.list_models("mamba2_*", pretrained=True)[:2] == ["mamba2_1_3b", "mamba2_2_7b"]
    with_weights, without = zoo.list_models(pretrained=True), zoo.list_models(pretrained=False)
    assert "transformer_130m" in without and sorted(with_weights + without) == sorted(zoo.list_models())
    with pytest.raises(ValueError, match="unknown task 'langauge', did you mean 'language'"):
        zoo.list_models(task="langauge")
    with pytest.raises(ValueError, match=r"unknown family 'mamba3', did you mean 'mamba' or .*'mamba2'"):
        zoo.list_models(family="mamba3")


def test_registering_a_model():
    paper = zoo.Paper("A paper", "0000.00000", 2020)

    def mine_tiny():
        return zoo.create_model("vit_nano").config

    zoo.register_model(lambda config: torch.nn.Linear(1, 1), task="language", family="mine", paper=paper)(mine_tiny)
    try:
        assert zoo.list_models(family="mine") == ["mine_tiny"] and zoo.model_info("mine_tiny").num_parameters == 2
        with pytest.raises(ValueError, match="'mine_tiny' is already registered"):
            zoo.register_model(torch.nn.Linear, task="language", family="mine", paper=paper)(mine_tiny)
        with pytest.raises(ValueError, match="task must be one of"):
            zoo.register_model(torch.nn.Linear, task="cooking", family="mine", paper=paper)(lambda: None)
    finally:
        from zoo import registry

        del registry._entries["mine_tiny"]


def test_unknown_names_and_tags():
    with pytest.raises(ValueError, match="unknown model 'mamba2_130', did you mean 'mamba2_130m'"):
        zoo.create_model("mamba2_130")
    with pytest.raises(ValueError, match="unknown model"):
        zoo.model_info("resnet50")
    with pytest.raises(ValueError, match="mamba_nano has no weights 'pile'"):
        zoo.create_model("mamba_nano.pile")
    with pytest.raises(ValueError, match="no published weights of transformer_130m"):
        zoo.create_model("transformer_130m", pretrained=True)


def test_unknown_option_names_the_nearest_and_all():
    with pytest.raises(
        TypeError, match=r"mamba2_nano has no option 'd_stat', did you mean 'd_state'.*vocab_size.*d_conv"
    ):
        zoo.create_model("mamba2_nano", d_stat=16)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mamba2_nano", {"head_dim": 7}, "head_dim must divide"),
        ("mamba_nano", {"dim": 0}, "dim must be a positive integer, got 0"),
        ("mamba_nano", {"depth": 2.5}, "depth must be a positive integer, got 2.5"),
        ("transformer_nano", {"num_heads": 3}, "num_heads must divide dim"),
        ("vit_nano", {"num_heads": 7}, "num_heads must divide dim"),
        ("vim_tiny", {"img_size": 225}, "must cover the image exactly"),
        ("shvit_s1", {"img_size": 0}, "img_size must be a positive integer, or a height and a width, got 0"),
        ("vovnet_nano", {"img_size": (32, 0)}, r"img_size must be a positive integer.*got \(32, 0\)"),
        ("vim_nano", {"num_classes": -1}, "num_classes must be"),
        ("vim_nano", {"drop_path_rate": 1.0}, "drop path rate must be in"),
        ("vim_nano", {"dtype": torch.int64}, "dtype must be a floating dtype"),
    ],
)
def test_sizes_that_do_not_fit(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model(name, **options)


def test_bad_tokens():
    model = zoo.create_model("mamba_nano")
    tokens = torch.zeros(2, 5, dtype=torch.long)
    for bad, message in [
        (torch.zeros(2, 5), "tokens must be an int64 tensor"),
        (tokens[0], r"tokens must have shape \(batch, length >= 1\), got \(5,\)"),
        (tokens[:, :0], r"got \(2, 0\)"),
        (tokens + 256, r"tokens must be in \[0, 256\), got 256"),
        (tokens[:, :1] + 256, r"tokens must be in \[0, 256\), got 256"),
        (tokens - 1, "got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(bad)
    with pytest.raises(ValueError, match="labels must have the shape of tokens"):
        model(tokens, labels=tokens[:, 1:])
    with pytest.raises(ValueError, match=r"labels must be in \[0, 256\) or -100, got -1"):
        model(tokens, labels=tokens - 1)
    with pytest.raises(ValueError, match="seq_idx must be an integer tensor"):
        model(tokens, seq_idx=tokens.float())
    with pytest.raises(ValueError, match="the state is for a batch of 3, the tokens are a batch of 2"):
        model(tokens, model.init_state(3))
    with pytest.raises(ValueError, match="the state has 1 blocks, the model 4"):
        model(tokens, zoo.create_model("mamba_nano", depth=1).init_state(2))
    with pytest.raises(ValueError, match="logits_to_keep must be in"):
        model(tokens, logits_to_keep=6)


def test_bad_images():
    model = zoo.create_model("vim_nano")
    for bad, message in [
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "images must be floating point, got torch.uint8"),
        (torch.zeros(1, 8, 8), r"images must have shape \(batch, 1, 8, 8\), got \(1, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8), r"got \(2, 3, 8, 8\)"),
        (torch.zeros(2, 1, 9, 9), "create the model with img_size"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(bad)


def test_bad_generation():
    model, tokens = zoo.create_model("mamba_nano"), torch.zeros(2, 5, dtype=torch.long)
    for options, message in [
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": math.nan}, "temperature must be at least 0 and finite, got nan"),
        ({"temperature": math.inf}, "temperature must be at least 0 and finite, got inf"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_k": 2.5}, "top_k must be an integer, got 2.5"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_p": math.nan}, r"top_p must be in \(0, 1\], got nan"),
        ({"eos_token": 256}, r"eos_token must be in \[0, vocab_size = 256\), got 256"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 0]] * 2)}, "pad prompts on the left"),
        ({"attention_mask": torch.ones(2, 4)}, "attention_mask must have the shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            zoo.generate(model, tokens, 3, **options)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        zoo.generate(model, tokens, 0)
    with pytest.raises(ValueError, match="generate takes a language model, got Vim"):
        zoo.generate(zoo.create_model("vim_nano"), tokens, 3)  # pyright: ignore[reportArgumentType]


def test_sampling_options():
    model, prompt = zoo.create_model("mamba_nano"), torch.zeros(4, 3, dtype=torch.long)

    def sample(**options):
        return zoo.generate(model, prompt, 20, generator=torch.Generator().manual_seed(0), **options)

    assert torch.equal(sample(), sample())
    greedy = zoo.generate(model, prompt, 20, temperature=0)
    assert torch.equal(sample(top_k=1), greedy) and torch.equal(sample(top_p=1e-6), greedy)
    assert torch.equal(sample(temperature=1e-40), greedy) and torch.equal(sample(temperature=5e-324), greedy)
    assert torch.equal(sample(top_k=10**9, top_p=1.0), sample())
    assert not torch.equal(sample(), greedy)
    stop = greedy[0, 3].item()
    ended = zoo.generate(model, prompt, 20, temperature=0, eos_token=stop)
    assert ended.shape == (4, 4) and (ended[:, 3] == stop).all()


def test_checkpoint_that_does_not_fit_lists_everything_and_changes_nothing(tmp_path):
    model = zoo.create_model("transformer_nano")
    tensors = dict(model.state_dict())
    tensors["extra"] = torch.zeros(1)
    tensors["norm.weight"] = torch.zeros(5)
    del tensors["blocks.0.mixer.q_proj.weight"]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        zoo.load_weights(model, tensors)
    text = str(error.value)
    assert "missing (1): blocks.0.mixer.q_proj.weight" in text and "unexpected (1): extra" in text
    assert "mismatched (1): norm.weight: checkpoint (5,), model (128,)" in text
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="tied in the model but differ"):
        zoo.load_weights(model, before | {"head.weight": torch.zeros(256, 128)})


def test_unreadable_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        zoo.create_model("mamba_nano", checkpoint_path=tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match="no weights in"):
        zoo.create_model("mamba_nano", checkpoint_path=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        zoo.create_model("mamba_nano", checkpoint_path=tmp_path)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="neither a safetensors nor a PyTorch file"):
        zoo.create_model("mamba_nano", checkpoint_path=tmp_path / "text.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match="not a checkpoint of tensors"):
        zoo.create_model("mamba_nano", checkpoint_path=tmp_path / "cut.pt")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        zoo.create_model(f"local-dir:{tmp_path}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        zoo.create_model(f"local-dir:{tmp_path}")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="not a checkpoint of tensors alone"):
        zoo.create_model("mamba_nano", checkpoint_path=tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_shards_and_lightning_checkpoints_load(tmp_path):
    from safetensors.torch import save_file

    model = zoo.create_model("vit_nano").eval()
    tensors, x = model.state_dict(), torch.randn(2, 1, 8, 8)
    names = list(tensors)
    index = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for shard in set(index.values()):
        save_file({name: tensors[name] for name in names if index[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(zoo.create_model("vit_nano", checkpoint_path=tmp_path).eval()(x), model(x))
    wrapped = {"pytorch-lightning_version": "2.6", "state_dict": {f"model.{k}": v for k, v in tensors.items()}}
    torch.save(wrapped, tmp_path / "last.ckpt")
    assert torch.equal(zoo.create_model("vit_nano", checkpoint_path=tmp_path / "last.ckpt").eval()(x), model(x))


def test_saved_folder_is_self_describing(tmp_path):
    model = zoo.create_model("mamba2_nano", depth=2, dt_limit=(0.0, 1.0), dtype=torch.bfloat16)
    zoo.save_model(model, tmp_path / "a" / "b")
    rebuilt = zoo.create_model(f"local-dir:{tmp_path / 'a' / 'b'}", dtype=torch.bfloat16)
    assert rebuilt.config == model.config and rebuilt.config_name == "mamba2_nano"
    assert "2405.21060" in (tmp_path / "a" / "b" / "README.md").read_text()
    assert next(zoo.create_model(f"local-dir:{tmp_path / 'a' / 'b'}", device="meta").parameters()).is_meta
    with pytest.raises(ValueError, match="is a file; give a folder"):
        zoo.save_model(model, tmp_path / "a" / "b" / "README.md")
    with pytest.raises(ValueError, match="takes a model built by create_model, got Linear"):
        zoo.save_model(torch.nn.Linear(1, 1), tmp_path)


def test_auxiliary_losses_are_summed_over_layers():
    assert zoo.auxiliary_losses(zoo.create_model("mamba_nano")) == {}
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    for value, layer in enumerate(model, start=1):
        layer.auxiliary_losses = {"balance": torch.tensor(float(value))}  # pyright: ignore[reportArgumentType]
    assert zoo.auxiliary_losses(model) == {"balance": torch.tensor(3.0)}


def test_works_with_triton_blocked():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, zoo\n"
        "for name in ('mamba2_nano', 'based_nano', 'deepseek_nano', 'routing_nano'):\n"
        "    tokens = torch.zeros(1, 40, dtype=torch.long)\n"
        "    zoo.create_model(name)(tokens, labels=tokens).backward()\n"
        "print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr


def test_a_folder_is_not_taken_for_a_name():
    for place in ("./mine", "runs/mine", "../mine"):
        with pytest.raises(ValueError, match="write local-dir:FOLDER for a folder"):
            zoo.create_model(place)
