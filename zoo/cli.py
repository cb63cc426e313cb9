"""The command line: `zoo list`, `zoo info`, ... (`zoo --help`), also `python -m zoo.cli`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
PARSER_NOISE = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value",
    "Problem with",
)
BENCHMARKS = ("families", "kernels", "layers", "loading", "recall", "resolution", "vision")
BYTES = 256  # vocabulary of a byte-level model
DOCUMENT_START = 0  # the byte that precedes every document in training (zoo.train.data.text)


class UsageError(Exception):
    """What the user asked for cannot be done as asked; its message is the one line they read."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 for a wrong argument, 1 where training had to stop."""
    parser = build_parser()
    known, rest = parser.parse_known_args(arguments)
    if rest and not known.overridable:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    known.overrides = rest
    try:
        return known.run(known)
    except UsageError as error:
        return _fail(f"zoo {known.command}: error: {_one_line(error)}", 2)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zoo", description="A zoo of efficient sequence and vision models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="names of models")
    listing.add_argument("pattern", nargs="?", default="*", help="wildcards * ? [..], quoted (default: all)")
    listing.add_argument(
        "--task",
        help="only this task: language, text-classification, image-classification, image-generation, segmentation, "
        "multi-task",
    )
    listing.add_argument("--family", help="only this family")
    listing.add_argument("--params", action="store_true", help="also count parameters")
    listing.set_defaults(run=_list, overridable=False)

    info = commands.add_parser("info", help="what is known of a model")
    info.add_argument("name")
    info.set_defaults(run=_info, overridable=False)

    overrides = (
        "Any value of the recipe can be overridden: --model.lr 1e-3 --data.batch_size 32 --trainer.max_epochs 3 "
        "--trainer.strategy ddp --ema.decay 0.999. --print_config shows all of them. Recipes: "
        + ", ".join(recipe_names())
    )
    train = commands.add_parser("train", help="train a model by a recipe", epilog=overrides, allow_abbrev=False)
    train.add_argument("recipe", help="a built-in recipe's name, or a YAML file")
    train.add_argument("--output", type=Path, metavar="DIR", help="run folder (default: runs/RECIPE)")
    train.add_argument("--resume", action="store_true", help="continue the run in the run folder, if there is one")
    train.set_defaults(run=_train, overridable=True)

    evaluation = commands.add_parser(
        "eval", help="evaluate by a recipe, or on a folder of images", epilog=overrides, allow_abbrev=False
    )
    evaluation.add_argument(
        "recipe", help="a built-in recipe's name, or a YAML file; with --images a model's name, or a folder with one"
    )
    evaluation.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="checkpoint, run folder or exported model",
    )
    evaluation.add_argument(
        "--images", type=Path, metavar="DIR", help="score a classifier on DIR/<split>/<class>/<image>, or DIR/<class>/"
    )
    evaluation.add_argument("--split", choices=("val", "test"), default="val", help="held-out data (default: val)")
    evaluation.set_defaults(run=_eval, overridable=True)

    prediction = commands.add_parser("predict", help="the likeliest classes of images")
    prediction.add_argument("model", help="a folder written by zoo.save_model, or a model's name")
    prediction.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    prediction.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights of a named model")
    prediction.add_argument("--labels", type=Path, metavar="FILE", help="names of the classes: one a line, or JSON")
    prediction.add_argument("--top-k", type=int, default=5, metavar="K", help="classes an image (default: 5)")
    prediction.set_defaults(run=_predict, overridable=False)

    exporting = commands.add_parser("export", help="write a vision model as an ONNX file")
    exporting.add_argument("model", help="a folder written by zoo.save_model, or a model's name")
    exporting.add_argument("path", type=Path, metavar="FILE", help="ONNX file to write")
    exporting.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights of a named model")
    exporting.add_argument("--fuse", action="store_true", help="fold batch norms first")
    exporting.add_argument("--batch", type=int, metavar="N", help="fixed batch size (default: any)")
    exporting.set_defaults(run=_export, overridable=False)

    generation = commands.add_parser("generate", help="continue a text with a byte-level language model")
    generation.add_argument("model", help="a folder written by zoo.save_model, or a model name with weights")
    generation.add_argument("--prompt", default="", help="text to continue")
    generation.add_argument("--max-new-tokens", type=int, default=200, metavar="N")
    generation.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token")
    generation.add_argument("--top-k", type=int, help="draw from the k likeliest tokens")
    generation.add_argument("--top-p", type=float, help="draw from the likeliest tokens of this joint probability")
    generation.add_argument("--seed", type=int, default=0)
    generation.set_defaults(run=_generate, overridable=False)

    conversion = commands.add_parser("convert", help="write a checkpoint in another layout")
    conversion.add_argument("source", type=Path, help="folder with a config.json, or with --name weights alone")
    conversion.add_argument("target", type=Path, help="folder to write")
    conversion.add_argument(
        "--to", choices=("zoo", "transformers", "timm"), default="zoo", help="layout (default: zoo)"
    )
    conversion.add_argument("--name", help="model whose weights the source holds, where no config.json says so")
    conversion.add_argument("--ema", action="store_true", help="take the averaged copy in a PyTorch file")
    conversion.set_defaults(run=_convert, overridable=False)

    download = commands.add_parser("download", help="fetch published weights before they are needed")
    download.add_argument("names", nargs="+", metavar="NAME", help="a model, model.tag or hf-hub:owner/repo[@revision]")
    download.set_defaults(run=_download, overridable=False)

    cache = commands.add_parser("cache", help="downloaded weights: list them, verify their hashes, or remove some")
    cache.add_argument("action", choices=("list", "verify", "prune"))
    cache.add_argument("names", nargs="*", metavar="NAME", help="prune these (default: what verify finds damaged)")
    cache.set_defaults(run=_cache, overridable=False)

    push = commands.add_parser("push", help="publish a folder of zoo.save_model on the Hub")
    push.add_argument("folder", type=Path)
    push.add_argument("repo", help="owner/name")
    push.add_argument("--private", action="store_true", help="where the repository is made anew")
    push.set_defaults(run=_push, overridable=False)

    bench = commands.add_parser("bench", help="measure this machine beside the peers", add_help=False)
    bench.add_argument("subject", choices=BENCHMARKS)
    bench.set_defaults(run=_bench, overridable=True)
    return parser


def recipe_names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(Path(entry.name).stem for entry in _recipes().iterdir() if entry.name.endswith(".yaml"))


def recipe_path(recipe: str) -> Path:
    """The file of a recipe, given by name or path.

    Raises:
        UsageError: there is neither.
    """
    for path in (Path(recipe), Path(str(_recipes() / f"{recipe}.yaml"))):
        if path.is_file():
            return path
    raise UsageError(f"no recipe {recipe!r}: give a YAML file, or one of {', '.join(recipe_names())}")


def _recipes() -> Any:
    return files("zoo") / "train" / "recipes"


def _list(known: argparse.Namespace) -> int:
    from rich.table import Table

    import zoo
    from zoo.registry import lookup

    names = _checked(zoo.list_models, known.pattern, task=known.task, family=known.family)
    if not names:
        raise UsageError(f"no model fits {known.pattern!r} with these filters; `zoo list` shows all")
    table = Table("model", "family", "task")
    if known.params:
        table.add_column("parameters", justify="right")
    for name in names:
        count = [f"{zoo.model_info(name).num_parameters:,}"] if known.params else []
        table.add_row(name, lookup(name).family, lookup(name).task, *count)
    _console().print(table)
    return 0


def _info(known: argparse.Namespace) -> int:
    from rich.table import Table

    import zoo

    info = _checked(zoo.model_info, known.name)
    table = Table(show_header=False, title=info.name)
    table.add_row("task", info.task)
    table.add_row("family", info.family)
    table.add_row("paper", f"{info.paper.title} (arXiv:{info.paper.arxiv}, {info.paper.year})")
    table.add_row("parameters", f"{info.num_parameters:,}")
    table.add_row("weights", ", ".join(info.tags) or "none")
    table.add_section()
    for field, value in info.config.items():
        table.add_row(field, str(value))
    _console().print(table)
    return 0


def _train(known: argparse.Namespace) -> int:
    recipe = recipe_path(known.recipe)
    output = known.output or Path("runs") / recipe.stem
    from zoo.train.callbacks import NonFiniteError
    from zoo.train.command import TrainingRun

    run = _checked(TrainingRun, recipe, known.overrides, output, resume=known.resume)
    _checked(run.datamodule.setup)  # data that is not there is the user's to mend; later errors are bugs
    try:
        run.fit()
    except NonFiniteError as error:
        return _fail(f"zoo train: {error}", 1)
    if run.trainer.is_global_zero:
        _say(f"run folder {output}, model {output / 'model'}")
    return 0


def _eval(known: argparse.Namespace) -> int:
    if known.images is not None:
        return _eval_images(known)
    recipe = recipe_path(known.recipe)
    if known.checkpoint is None:
        raise UsageError("a recipe needs --checkpoint: a checkpoint, run folder or exported model")
    from zoo.train.command import EvaluationRun

    run = _checked(EvaluationRun, recipe, known.overrides, known.checkpoint)
    _print_metrics(_checked(run.evaluate, known.split), run.trainer.is_global_zero)
    return 0


def _eval_images(known: argparse.Namespace) -> int:
    if known.overrides:
        raise UsageError(f"with --images there is no recipe whose values {known.overrides} could override")
    from zoo.train.command import evaluate_images

    model = _checked(_model_with_weights, known.recipe, known.checkpoint)
    _print_metrics(_checked(evaluate_images, model, known.images, known.split))
    return 0


def _predict(known: argparse.Namespace) -> int:
    from rich.table import Table

    import zoo

    model = _checked(_model_with_weights, known.model, known.checkpoint)
    found = _checked(zoo.predict, model, known.images, top_k=known.top_k)
    labels = None if known.labels is None else _checked(zoo.read_labels, known.labels, model.num_classes)
    for path, classes in zip(known.images, found, strict=True):
        table = Table("class", "label", "probability", title=str(path), title_justify="left")
        for index, probability in classes:
            table.add_row(str(index), labels[index] if labels else "", f"{probability:.4f}")
        _console().print(table)
    return 0


def _export(known: argparse.Namespace) -> int:
    import zoo

    model = _checked(_model_with_weights, known.model, known.checkpoint)
    if known.fuse and hasattr(model, "fuse"):  # what is no vision model is refused below
        model = model.fuse()
    try:
        path = _checked(zoo.export_onnx, model, known.path, fixed_batch=known.batch)
    except ImportError as error:
        raise UsageError(str(error)) from error
    _say(f"written: {path}")
    return 0


def _model_with_weights(model: str, checkpoint: Path | None) -> Any:
    """A folder's model, or a named one with the weights of a file or the published ones."""
    import zoo

    if Path(model).is_dir():
        return zoo.create_model(f"local-dir:{model}")
    return zoo.create_model(model, pretrained=checkpoint is None, checkpoint_path=checkpoint)


def _print_metrics(metrics: dict[str, float], is_first_process: bool = True) -> None:
    from rich.table import Table

    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.6g}")
    if is_first_process:
        _console().print(table)


def _generate(known: argparse.Namespace) -> int:
    import torch

    import zoo

    model = _checked(_model_with_weights, known.model, None)
    vocab_size = getattr(model.config, "vocab_size", None)
    if vocab_size != BYTES:
        raise UsageError(f"generating text needs a byte-level language model (vocab_size {BYTES}), got {vocab_size}")
    prompt = torch.tensor([[DOCUMENT_START, *known.prompt.encode()]])
    tokens = _checked(
        zoo.generate,
        model,
        prompt,
        known.max_new_tokens,
        temperature=known.temperature,
        top_k=known.top_k,
        top_p=known.top_p,
        generator=torch.Generator().manual_seed(known.seed),
        eos_token=DOCUMENT_START,
    )
    text = bytes(tokens[0, 1:].tolist()).split(bytes([DOCUMENT_START]))[0]
    _say(text.decode("utf-8", errors="replace"))
    return 0


def _convert(known: argparse.Namespace) -> int:
    import zoo

    _checked(zoo.convert, known.source, known.target, known.to, name=known.name, ema=known.ema)
    _say(f"{known.target}: model.safetensors and config.json for {known.to}")
    return 0


def _download(known: argparse.Namespace) -> int:
    import zoo

    for name in known.names:
        _say(f"{name}: {_checked(zoo.prefetch, name)}")
    return 0


def _cache(known: argparse.Namespace) -> int:
    from rich.table import Table

    from zoo.checkpoints import download

    record = _checked(download.record)
    if known.action == "list":
        table = Table("weights", "bytes", "sha256", "file")
        for entry in record.values():
            table.add_row(entry["name"], f"{entry['size']:,}", entry["sha256"][:12], entry["path"])
        _console().print(table)
        return 0
    damaged = [] if known.names else download.damaged()
    if known.action == "verify":
        for origin in damaged:
            _say(f"damaged or gone: {record[origin]['name']}, {record[origin]['path']}")
        _say(f"{len(record) - len(damaged)} of {len(record)} files are as they were recorded")
        return 1 if damaged else 0
    unknown = sorted(set(known.names) - {entry["name"] for entry in record.values()})
    if unknown:
        raise UsageError(f"nothing is recorded of {', '.join(unknown)}; `zoo cache list` shows what is")
    for origin in [o for o, entry in record.items() if o in damaged or entry["name"] in known.names]:
        _checked(download.forget, origin)
        _say(f"removed: {record[origin]['path']}")
    return 0


def _push(known: argparse.Namespace) -> int:
    from zoo.checkpoints.publish import push

    _say(f"published: {_checked(push, known.folder, known.repo, private=known.private)}")
    return 0


def _bench(known: argparse.Namespace) -> int:
    from importlib import import_module

    import_module(f"zoo.benchmarks.{known.subject}").main(known.overrides)
    return 0


def _checked(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call what checks the user's arguments; its errors are theirs to read in a line, without a traceback."""
    try:
        return function(*args, **kwargs)
    except (argparse.ArgumentError, ValueError, TypeError, OSError) as error:
        raise UsageError(str(error)) from error


def _one_line(error: UsageError) -> str:
    """The message without the lines in which jsonargparse lists the types it has tried."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return " ".join(line for line in lines if not line.startswith(PARSER_NOISE))


def _say(text: str) -> None:
    _console().print(text, soft_wrap=True, highlight=False, markup=False)


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _fail(message: str, code: int) -> int:
    _console(stderr=True).print(message, soft_wrap=True, highlight=False, markup=False)
    return code


if __name__ == "__main__":
    sys.exit(main())
