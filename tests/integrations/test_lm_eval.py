"""Language models of the zoo under lm-eval: the same numbers as its own class for transformers' models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import zoo
from zoo.cli import main

lm_eval = pytest.importorskip("lm_eval")  # the extra "eval"

from lm_eval.models.huggingface import HFLM  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from zoo.integrations.lm_eval import ZooLM, evaluate  # noqa: E402
from zoo.integrations.transformers import wrap  # noqa: E402

DOCUMENTS = [
    {"question": "A short one:", "answers": [" yes", " no", " perhaps not"], "label": 1},
    {"question": "One that is longer than the others by some:", "answers": [" a", " b"], "label": 0},
    {"question": "Q", "answers": [" the same", " the same but longer", " x"], "label": 2},
]
TASKS = {
    "choice": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{answers}}",
        "doc_to_target": "{{label}}",
    },
    "given": {"output_type": "loglikelihood", "doc_to_text": "{{question}}", "doc_to_target": "{{answers[0]}}"},
    "rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}"},
    "generated": {
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answers[0]}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 12, "do_sample": False},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks over a file of documents."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, DOCUMENTS)))
    data = {
        "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(folder / "documents.jsonl")}, "cache_dir": str(folder / "cache")},
    }  # fmt: skip
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **data, **task}))
    return folder


def saved(folder: Path, name: str, **options: Any) -> Path:
    """A model of bytes and two special tokens, with its tokenizer."""
    torch.manual_seed(0)
    zoo.save_model(zoo.create_model(name, vocab_size=258, initializer_range=0.2, **options), folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"})
    )
    return folder


@pytest.mark.parametrize("name", ["mamba2_nano", "transformer_nano", "moe_nano"])
def test_answers_are_those_of_the_class_for_transformers(name, tasks, tmp_path):
    folder = saved(tmp_path, name)
    theirs = HFLM(
        wrap(zoo.create_model(f"local-dir:{folder}").eval()),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        max_length=24,
    )  # type: ignore[arg-type]
    ours = ZooLM(str(folder), batch_size=3, max_length=24)  # shorter than some of the documents
    manager = lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False)
    found, expected = (
        lm_eval.simple_evaluate(model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0)
        for model in (ours, theirs)
    )
    for task in TASKS:
        scores = [results["results"][task] for results in (found, expected)]
        for metric, value in scores[1].items():
            if metric.startswith(
                ("acc", "exact_match", "bits_per_byte")
            ):  # others are powers of what is compared below
                assert scores[0][metric] == pytest.approx(value, abs=1e-4)
        for a, b in zip(found["samples"][task], expected["samples"][task], strict=True):
            assert answers(a) == (answers(b) if task == "generated" else pytest.approx(answers(b), abs=1e-4))


def answers(sample: dict[str, Any]) -> list[Any]:
    """Numbers, or texts, of a logged sample."""
    flat = [sample["filtered_resps"]]
    while any(isinstance(item, (list, tuple)) for item in flat):
        flat = [inner for item in flat for inner in (item if isinstance(item, (list, tuple)) else [item])]
    return [item if isinstance(item, str) else float(item) for item in flat]


def test_a_run_goes_on_where_it_ended(tasks, tmp_path, monkeypatch):
    model, cache = ZooLM(str(saved(tmp_path, "mamba2_nano")), batch_size=1), tmp_path / "answers"
    compute, calls = model._logits, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(*arguments)

    monkeypatch.setattr(model, "_logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, ["given"], include_path=tasks, cache=cache)
    scores = evaluate(model, ["given"], include_path=tasks, cache=cache)
    assert len(calls) == 4  # the two answers before the interruption were kept
    monkeypatch.undo()
    assert scores == evaluate(model, ["given"], include_path=tasks)


def test_what_is_scored_after_the_same_tokens_is_computed_once(tasks, tmp_path, monkeypatch):
    model = ZooLM(str(saved(tmp_path, "mamba2_nano")), batch_size=2)
    compute, lengths = model._logits, []
    monkeypatch.setattr(model, "_logits", lambda rows, keep: lengths.extend(map(len, rows)) or compute(rows, keep))
    requests = [(None, [1, 2, 3], [4]), (None, [1, 2, 3], [5]), (None, [1, 2], [3, 6]), (None, [7], [8])]
    found = model._loglikelihood_tokens(requests)
    assert lengths == [3, 1]
    for request, answer in zip(requests, found, strict=True):
        assert model._loglikelihood_tokens([request])[0] == pytest.approx(answer, abs=1e-5)


def test_command(tasks, tmp_path, capsys, monkeypatch):
    own = lm_eval.tasks.TaskManager  # without the harness's thousands of files, which take half a minute to list
    monkeypatch.setattr(
        "zoo.integrations.lm_eval.TaskManager",
        lambda include_path, **_: own(include_path=include_path, include_defaults=False),
    )
    monkeypatch.setattr("zoo.integrations.lm_eval.HARNESS", tmp_path / "none")
    folder = str(saved(tmp_path, "mamba2_nano"))
    command = ["eval", folder, "--tasks", "choice,roll*", "--tasks-path", str(tasks), "--json", "--limit", "2"]
    assert main(command) == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {"choice", "rolling"} and 0 <= scores["choice"]["acc"] <= 1
    assert main(["eval", folder, "--tasks", "choise", "--tasks-path", str(tasks)]) == 2
    assert "unknown task 'choise', did you mean 'choice'" in capsys.readouterr().err


def test_unknown_tasks_are_told_before_the_harness_parses_its_files(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.yaml").write_text("include: _template_yaml\ntask: hellaswag\n")
    monkeypatch.setattr("zoo.integrations.lm_eval.HARNESS", tmp_path)
    monkeypatch.setattr("zoo.integrations.lm_eval.TaskManager", None)
    model = ZooLM(model=zoo.create_model("mamba2_nano", depth=1), tokenizer=zoo.load_tokenizer("mamba2_nano"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown task 'helaswag', 'no_\*_such', did you mean 'hellaswag'"):
        evaluate(model, ["helaswag", "hellaswag", "no_*_such"])


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="give a model's name, or the model itself"):
        ZooLM()
    with pytest.raises(ValueError, match="batch_size and max_length must be integers of at least 1, got 'auto'"):
        ZooLM("mamba2_nano", batch_size="auto")
    with pytest.raises(ValueError, match="a model in memory needs its tokenizer"):
        ZooLM(model=zoo.create_model("mamba2_nano"))
