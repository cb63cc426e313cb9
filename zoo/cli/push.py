"""`zoo push`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from zoo.cli.errors import checked
from zoo.cli.output import say

HELP = "publish a folder of zoo.save_model on the Hub"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path)
    parser.add_argument("repo", help="owner/name")
    parser.add_argument("--private", action="store_true", help="where the repository is made anew")


def run(known: Namespace) -> int:
    from zoo.checkpoints.publish import push

    say(f"published: {checked(push, known.folder, known.repo, private=known.private)}")
    return 0
