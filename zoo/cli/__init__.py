"""The command line: `zoo list`, `zoo info`, ... (`zoo --help`), also `python -m zoo`; one file a command."""

from zoo.cli.parser import build_parser, main
from zoo.cli.recipes import recipe_names, recipe_path

__all__ = ["build_parser", "main", "recipe_names", "recipe_path"]
