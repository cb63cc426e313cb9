"""Language models of the zoo under EleutherAI's lm-evaluation-harness, as its model `zoo`.

    python -m zoo.integrations.lm_eval run --model zoo --model_args name=mamba2_130m --tasks lambada_openai

is the harness's own command, which knows of no plugins, with this model registered; ``evaluate`` is its Python form.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
import torch
from lm_eval import evaluator
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn

import zoo
from zoo.generate import evaluating
from zoo.registry import nearest
from zoo.text import Tokenizer

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names that tasks use, first wins
DEFAULT_LENGTH = 256
HARNESS = Path(lm_eval.tasks.__file__).parent  # its tasks, as YAML
_WORD = re.compile(r"[^\s\"'\[\]{},#:]+")
_NAME = re.compile(r"(?:^|[\s{,\"'])(?:task|group|tag)[\"']?\s*:\s*[\"']?([\w.+/-]+)")


class ZooLM(TemplateLM):
    """A language model and its tokenizer, scored in batches, longest first.

    What conditions on the same tokens is computed once, whatever is scored after them. Rows are padded on the left,
    which changes nothing, so that the head sees the scored positions alone.

    Args:
        name: of a model with weights, "local-dir:FOLDER", "hf-hub:owner/repo", or a folder.
        checkpoint: weights of a named model.
        tokenizer: a name or folder that ``zoo.load_tokenizer`` takes; None for the model's own.
        model: a model in memory, in place of ``name``; then ``tokenizer`` is a ``Tokenizer``.
        batch_size: rows at a time.
        max_length: tokens that condition at most; earlier ones are cut off. Longer documents are scored in windows.
        device, dtype: of the model, see ``zoo.create_model``. The harness asks for "cuda" unless told otherwise: where
            there is none the CPU is taken, as by its own class.
        max_batch_size: of the harness's "auto", which there is none of here.

    Raises:
        ValueError: for what names no language model, a tokenizer of another one, or sizes below 1.
    """

    def __init__(
        self,
        name: str | None = None,
        checkpoint: str | None = None,
        tokenizer: str | Tokenizer | None = None,
        model: nn.Module | None = None,
        batch_size: int | str = 1,
        max_length: int = 2048,
        device: str | None = None,
        dtype: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1 or int(max_length) < 1:
            raise ValueError(
                f"batch_size and max_length must be integers of at least 1, got {batch_size!r} and {max_length!r}"
            )
        self.batch_size, self.max_length = int(batch_size), int(max_length)
        if (name is None) == (model is None):
            raise ValueError("give a model's name, or the model itself: --model_args name=mamba2_130m")
        if name is not None:
            place = f"local-dir:{name}" if Path(name).is_dir() else name
            wanted: Any = dtype if dtype in (None, "auto") else getattr(torch, dtype)
            placed = ":" in place
            if str(device).startswith("cuda") and not torch.cuda.is_available():
                device = None
            model = zoo.create_model(
                place, not placed and checkpoint is None, checkpoint_path=checkpoint, device=device, dtype=wanted
            )
            tokenizer = place if tokenizer is None else tokenizer
        if tokenizer is None:
            raise ValueError("a model in memory needs its tokenizer: zoo.load_tokenizer(NAME or FOLDER)")
        self.tokenizer: Any = tokenizer if isinstance(tokenizer, Tokenizer) else zoo.load_tokenizer(tokenizer)
        self.model: Any = model
        self.tokenizer.check(self.model)
        self._device = next(self.model.parameters()).device

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        if not self.tokenizer.eos_ids:
            raise ValueError(f"{self.tokenizer.source} says no token that ends a text")
        return self.tokenizer.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The token before a text's first."""
        return self.eot_token_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """What the harness tells its caches of requests apart by."""
        return self.tokenizer.source.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text, with those that the tokenizer begins a text with unless it begins so already."""
        begins = self.tokenizer.special_tokens.get("bos_token")
        begun = begins is not None and string.startswith(begins)
        return self.tokenizer.encode(
            string, add_special_tokens=not begun if add_special_tokens is None else add_special_tokens
        )

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation."""
        return self.tokenizer.render(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template, for the harness's records."""
        name = chat_template if isinstance(chat_template, str) else "default"
        return self.tokenizer.templates[name].text if chat_template and name in self.tokenizer.templates else ""

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts in nats, in windows that overlap by one token."""
        windows: list[tuple[int, tuple[None, list[int], list[int]]]] = []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((index, (None, *make_disjoint_window(pair))))
        totals = [0.0] * len(requests)
        for (index, _), (score, _) in zip(windows, self._loglikelihood_tokens([w for _, w in windows]), strict=True):
            totals[index] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """Of each (texts, context, continuation): its log-likelihood in nats, and whether it is the likeliest."""
        by_input: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                raise ValueError(
                    f"a continuation has {len(continuation)} tokens, more than max_length {self.max_length}"
                )
            by_input.setdefault(tuple((context + continuation)[-self.max_length - 1 : -1]), []).append(index)
        answers: list[Any] = [None] * len(requests)
        for inputs in self._batches(by_input):
            keep = max(len(requests[index][2]) for given in inputs for index in by_input[given])
            for given, logits in zip(inputs, self._logits(inputs, keep), strict=True):
                for index in by_input[given]:
                    texts, _, continuation = requests[index]
                    scored = logits[-len(continuation) :].float()
                    target = torch.tensor(continuation, device=scored.device)
                    chosen = scored.gather(1, target[:, None])[:, 0] - scored.logsumexp(1)
                    answers[index] = chosen.sum().item(), bool((scored.argmax(1) == target).all())
                    if texts is not None:
                        self.cache_hook.add_partial("loglikelihood", texts, answers[index])
        return answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each text, up to the first of its stop strings."""
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        answers = [""] * len(requests)
        for indices in alike.values():
            length, stops, options = _generation(requests[indices[0]].args[1], self.model)
            if length >= self.max_length:
                raise ValueError(f"{length} new tokens leave no room for a prompt in max_length {self.max_length}")
            prompts = {index: self.tok_encode(requests[index].args[0])[length - self.max_length :] for index in indices}
            options |= {"tokenizer": self.tokenizer, "stop": stops, "eos_token": self.eot_token_id}
            for batch in self._batches(indices, key=lambda index: len(prompts[index])):
                found = zoo.generate(self.model, [prompts[index] for index in batch], length, **options)
                for index, row in zip(batch, found, strict=True):
                    ids = row[len(prompts[index]) :].tolist()
                    text = self.tokenizer.decode(ids[:-1] if ids[-1] == self.eot_token_id else ids)
                    answers[index] = min((text.split(stop)[0] for stop in stops), key=len, default=text)
                    self.cache_hook.add_partial("generate_until", requests[index].args, answers[index])
        return answers

    @torch.no_grad()
    def _logits(self, inputs: Sequence[Sequence[int]], keep: int) -> Tensor:
        """(B, keep, vocab_size) at the last positions of each row."""
        tokens, mask = self._padded(inputs)
        with evaluating(self.model):
            seq_idx = None if bool(mask.all()) else mask - 1
            return self.model(tokens, logits_to_keep=min(keep, tokens.shape[1]), seq_idx=seq_idx)

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(B, T), padded on the left, and a mask that is 0 there."""
        length = max(map(len, rows))
        tokens = torch.tensor([[*[0] * (length - len(row)), *row] for row in rows], device=self._device)
        counts = torch.tensor([[len(row)] for row in rows], device=self._device)
        return tokens, (torch.arange(length, device=self._device) >= length - counts).long()

    def _batches(self, items: Iterable[Any], key: Any = len) -> Iterator[list[Any]]:
        ordered = sorted(items, key=key, reverse=True)
        return (ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size))


register_model("zoo")(ZooLM)


def evaluate(
    model: ZooLM,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    cache: str | Path | None = None,
    **options: Any,
) -> dict[str, dict[str, float]]:
    """Scores of a model on tasks of the harness: task -> metric -> value.

    Args:
        model: the wrapped model.
        tasks: names of tasks or groups; wildcards are allowed.
        include_path: a folder with further tasks as YAML.
        num_fewshot: examples in each prompt, in place of the task's own number.
        limit: documents of each task, to try something out.
        cache: a file that remembers each answer as it comes; a run that ended early goes on from there.
        options: of ``lm_eval.simple_evaluate``.

    Raises:
        ValueError: for a task that is not known, with the nearest names.
    """
    folder, manager, found = None if include_path is None else str(include_path), None, {}
    for defaults in (False, True):  # the harness's own are many thousand files, read where they are wanted
        if not defaults and folder is None:
            continue
        if defaults:
            _refuse_unmentioned([task for task in tasks if not found.get(task)], include_path)
        manager = TaskManager(include_path=folder, include_defaults=defaults)
        found = {task: manager.match_tasks([task]) for task in tasks}
        if all(found.values()):
            break
    if unknown := [task for task, matches in found.items() if not matches]:
        raise _unknown(unknown, manager.all_tasks)
    results: Any = evaluator.simple_evaluate(
        model, tasks=[name for names in found.values() for name in names], task_manager=manager,
        num_fewshot=num_fewshot, limit=limit, use_cache=None if cache is None else str(cache), **options,
    )  # fmt: skip
    return {
        task: {
            metric.removesuffix(",none"): value for metric, value in scores.items() if isinstance(value, (int, float))
        }
        for task, scores in results["results"].items()
    }


def _refuse_unmentioned(tasks: Sequence[str], include_path: str | Path | None) -> None:
    """Raise a ValueError for names that no YAML file mentions: that takes seconds, parsing them half a minute."""
    folders = [HARNESS] if include_path is None else [HARNESS, Path(include_path)]
    files = (path for folder in folders for path in folder.rglob("*yaml*") if path.is_file())
    texts = [path.read_text("utf-8", "ignore") for path in files]
    words = {word for text in texts for word in _WORD.findall(text)}
    if unknown := [task for task in tasks if task not in words and not fnmatch.filter(words, task)]:
        raise _unknown(unknown, {name for text in texts for name in _NAME.findall(text)})


def _unknown(tasks: Sequence[str], known: Iterable[str]) -> ValueError:
    return ValueError(
        f"unknown task {', '.join(map(repr, tasks))}{nearest(tasks[0], known)}; `lm_eval ls tasks` lists all, and a "
        "folder of your own YAML files is given by --tasks-path"
    )


def _generation(given: Mapping[str, Any], model: Any) -> tuple[int, list[str], dict[str, Any]]:
    """Of a task's generation_kwargs: how many tokens, the stop strings, and options of ``zoo.generate``."""
    kwargs = dict(given)
    lengths = [kwargs.pop(name) for name in LENGTHS if kwargs.get(name) is not None]
    until = kwargs.pop("until", None) or []
    stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    sampled = kwargs.pop("do_sample", None)
    temperature = kwargs.pop("temperature", None)
    options = {name: kwargs.pop(name) for name in ("top_k", "top_p") if kwargs.get(name) is not None}
    if unknown := [name for name, value in kwargs.items() if value is not None and name not in LENGTHS]:
        raise ValueError(f"the task generates with {', '.join(unknown)}, which zoo.generate has not")
    greedy = sampled is False or (sampled is None and not temperature)
    options["temperature"] = 0.0 if greedy else 1.0 if temperature is None else float(temperature)
    return int(lengths[0]) if lengths else DEFAULT_LENGTH, stops, options


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
