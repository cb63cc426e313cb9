"""Models of the zoo through transformers' own doors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoTokenizer

import zoo
import zoo.integrations.transformers
from cases.names import by_kind
from zoo.integrations.transformers import AfterStep, StateCache, wrap

LANGUAGE = zoo.list_models("*_nano", task="language")
VISION = zoo.list_models("*_nano", task="image-classification")


def built(name: str, **options: Any) -> Any:
    """A model in which nothing is zero."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def text(*shape: int) -> Tensor:
    return torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(1))


def same_tensors(a: torch.nn.Module, b: torch.nn.Module) -> None:
    """Parameters and buffers, those that are not saved among them, and what is tied."""
    for part in ("named_parameters", "named_buffers"):
        found, expected = dict(getattr(a, part)()), dict(getattr(b, part)())
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            assert tensor.dtype == expected[key].dtype, key
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0, equal_nan=True)


def byte_tokenizer(folder: Path) -> None:
    """Bytes as tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("name", LANGUAGE)
@torch.no_grad()
def test_folders_of_both_libraries_load_in_both(name, tmp_path):
    model, tokens = built(name), text(2, 9)
    zoo.save_model(model, tmp_path / "ours")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    same_tensors(loaded.model, model)
    assert not loaded.training
    torch.testing.assert_close(loaded(tokens).logits, model(tokens))
    loaded.save_pretrained(tmp_path / "theirs")
    same_tensors(AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").model, model)
    same_tensors(zoo.create_model(f"local-dir:{tmp_path / 'theirs'}"), model)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", VISION)
@torch.no_grad()
def test_image_classifiers(name, tmp_path):
    model = built(name)
    images = torch.randn(2, model.config.in_chans, *model.config.image_shape)
    zoo.save_model(model, tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    same_tensors(loaded.model, model)
    found = loaded(images, labels=torch.tensor([1, 0]))
    torch.testing.assert_close(found.logits, model(images))
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(model(images), torch.tensor([1, 0])))


def test_a_classifier_of_other_classes_is_a_new_one(tmp_path):
    model: Any = built("shvit_nano", num_classes=3, label_names=("a", "b", "c"))
    zoo.save_model(model, tmp_path / "three")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "three")
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"} and loaded.config.label2id["b"] == 1
    more = {"num_labels": 5, "ignore_mismatched_sizes": True}
    other = AutoModelForImageClassification.from_pretrained(tmp_path / "three", **more)
    other.save_pretrained(tmp_path / "five")
    again: Any = zoo.create_model(f"local-dir:{tmp_path / 'five'}")
    assert again.num_classes == other.config.num_labels == 5 and again.config.label_names == ()
    head = {key for key in model.state_dict() if key.startswith("head.")}
    assert head and all(torch.isfinite(again.state_dict()[key]).all() for key in head)
    for key, tensor in model.state_dict().items():
        assert key in head or torch.equal(again.state_dict()[key], tensor)


def test_a_folder_of_an_earlier_version_loads_and_says_so(tmp_path, monkeypatch):
    model, said = built("mamba2_nano", depth=1), []
    zoo.save_model(model, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    monkeypatch.setattr(zoo.integrations.transformers.logger, "warning", said.append)
    same_tensors(AutoModelForCausalLM.from_pretrained(tmp_path).model, model)
    assert any(f"{tmp_path} was saved by an earlier version of the zoo" in line for line in said)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="model_type"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_dtype_is_that_of_the_folder_or_as_asked(dtype, tmp_path):
    model = built("mamba2_nano", dtype=torch.bfloat16)
    zoo.save_model(model, tmp_path)
    options = {} if dtype == torch.bfloat16 else {"dtype": dtype}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, **options)
    same_tensors(loaded.model, zoo.create_model(f"local-dir:{tmp_path}", dtype=dtype))  # type: ignore[arg-type]
    assert loaded.model.blocks[0].mixer.A_log.dtype == torch.float32


@pytest.mark.parametrize("name", by_kind(LANGUAGE))
def test_generates_what_the_zoo_does(name):
    """Greedy, from prompts of one length, of several with padding, and by beams, whose states are reordered."""
    model, tokens = built(name), text(2, 7)
    wrapped = wrap(model)
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    expected = zoo.generate(model, tokens, 6, temperature=0)
    assert torch.equal(wrapped.generate(tokens, **options), expected)
    padded, mask = tokens.clone(), torch.ones_like(tokens)
    padded[1, :3], mask[1, :3] = 0, 0
    found = wrapped.generate(padded, attention_mask=mask, **options)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1, 3:], zoo.generate(model, tokens[1:, 3:], 6, temperature=0)[0])
    beams = {**options, "num_beams": 3, "num_return_sequences": 2}
    assert torch.equal(wrapped.generate(tokens, **beams), wrapped.generate(tokens, use_cache=False, **beams))


def test_generation_goes_on_from_a_state():
    model, tokens = built("falcon_h1_nano"), text(2, 9)
    state = model.init_state(2)
    with torch.no_grad():
        model(tokens[:, :5], state)
    options = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0, "attention_mask": torch.ones_like(tokens)}
    found = wrap(model).generate(tokens, past_key_values=StateCache(state), **options)
    assert torch.equal(found, zoo.generate(model, tokens, 4, temperature=0))
    assert state[0].seen == 12


def test_drafts_where_the_state_can_forget():
    tokens = text(1, 6).repeat(1, 3)  # what a look-up in the prompt finds again
    options = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": 0, "prompt_lookup_num_tokens": 4}
    model = built("transformer_nano")
    assert torch.equal(wrap(model).generate(tokens, **options), zoo.generate(model, tokens, 9, temperature=0))
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        wrap(built("mamba_nano")).generate(tokens, **options)


def test_pipeline(tmp_path):
    model = built("mamba2_nano")
    zoo.save_model(model, tmp_path)
    byte_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    pipe = transformers.pipeline("text-generation", model=str(tmp_path), device="cpu")
    prompt = "The import"
    found = pipe(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)[0]["generated_text"]
    tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
    assert found == tokenizer.decode(zoo.generate(model, tokens, 5, temperature=0)[0])


def trained(model: Any, data: list[dict[str, Tensor]], folder: Path, steps: int, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        str(folder), optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0, max_steps=steps,
        per_device_train_batch_size=2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        logging_steps=1, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(wrap(model), arguments, train_dataset=data, callbacks=[AfterStep()])  # type: ignore[arg-type]
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", ["mamba2_nano", "transformer_nano"])
def test_trainer_minimises_our_loss_over_accumulated_batches(name, tmp_path):
    """Unequal parts of a batch weigh as their tokens do, as in one batch of all rows."""
    tokens = text(4, 8)
    labels = tokens.masked_fill(torch.rand(4, 8) < torch.tensor([0.8, 0.1, 0.5, 0.0])[:, None], -100)
    data = [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels, strict=True)]
    ours, theirs = (built(name, dtype=torch.float64).train() for _ in range(2))
    trainer = trained(theirs, data, tmp_path, 2, gradient_accumulation_steps=2)
    losses = []
    for _ in range(2):
        loss = ours(tokens, labels=labels)
        ours.zero_grad()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter -= 0.1 * parameter.grad
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, abs=1e-4)
    assert trainer.evaluate(data)["eval_loss"] > 0


def test_trainer_adds_side_losses_and_tells_of_steps(tmp_path):
    model, tokens = built("deepseek_nano").train(), text(2, 8)
    before = [module.selection_bias.clone() for module in model.modules() if hasattr(module, "load")]
    expected = model(tokens, labels=tokens) + sum(zoo.auxiliary_losses(model).values())
    trainer = trained(model, [{"input_ids": row, "labels": row} for row in tokens], tmp_path, 1)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), abs=1e-3)
    after = [module.selection_bias for module in model.modules() if hasattr(module, "load")]
    assert before and any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("name", ["mamba2_nano", "moe_nano", "deepseek_nano"])
def test_padding_is_not_scored(name):
    """The loss of training, and that of evaluation with its logits, is that of the rows without their padding."""
    model, tokens = built(name, dtype=torch.float64), text(2, 8)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0]])
    wrapped = wrap(model)
    rows = torch.cat([tokens[0, 3:], tokens[1, :5]]).view(2, 5)
    expected = model(rows, labels=rows)
    found = wrapped(tokens, attention_mask=mask, labels=tokens)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.logits[0, 3:], model(rows)[0])
    if name == "mamba2_nano":  # routing may differ in training
        torch.testing.assert_close(wrapped.train()(tokens, attention_mask=mask, labels=tokens).loss, expected)


def test_vocabulary_grows(tmp_path):
    wrapped = wrap(built("mamba2_nano"))
    wrapped.resize_token_embeddings(300, pad_to_multiple_of=64)
    wrapped.save_pretrained(tmp_path)
    assert wrapped.config.vocab_size == 320 and zoo.create_model(f"local-dir:{tmp_path}").config.vocab_size == 320


def test_errors(tmp_path):
    wrapped, tokens = wrap(built("mamba2_nano")), text(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with pytest.raises(ValueError, match="pad prompts on the left"):
        wrapped.generate(tokens, attention_mask=mask, max_new_tokens=2, pad_token_id=0)
    with pytest.raises(ValueError, match="have no inputs_embeds here"):
        wrapped(tokens, inputs_embeds=torch.randn(2, 5, 64))
    with pytest.raises(ValueError, match="keeps its own state, got cache_implementation='static'"):
        wrapped.generate(tokens, cache_implementation="static", max_new_tokens=2, pad_token_id=0)
    with pytest.raises(ValueError, match="attention_mask must have a column for each of the 5 tokens"):
        wrapped(tokens, attention_mask=mask[:, :3])
    zoo.save_model(built("shvit_nano"), tmp_path)
    with pytest.raises(
        ValueError, match="takes a model of the task 'language', shvit_nano is of 'image-classification'"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"wrap takes a model built by .*, got Linear"):
        wrap(torch.nn.Linear(2, 2))
