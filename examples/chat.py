"""A conversation in a few lines: `python examples/chat.py`, or with the NAME of a model that has a chat template.

The bundled model only continues text, so that it is asked without a template. No token is read twice.
"""

from __future__ import annotations

import sys

import zoo


def main(name: str = "mamba2_nano", turns: tuple[str, ...] = ("The import statement", " A class")) -> zoo.Chat:
    """Ask a model turn after turn, and show the answers as they come."""
    model = zoo.create_model(name, pretrained=":" not in name)
    tokenizer = zoo.load_tokenizer(name)
    chat = zoo.Chat(model, tokenizer, plain=not tokenizer.templates)  # pyright: ignore[reportArgumentType]
    for turn in turns:
        print(f"> {turn}")
        for piece in chat.ask(turn, 80, temperature=0.7, top_p=0.95):
            print(piece, end="", flush=True)
        print()
    print(f"({len(chat.ids)} tokens, each read once)")
    return chat


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mamba2_nano")
