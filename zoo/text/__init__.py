"""Text to token ids and back: tokenizers, chat templates, and text as it comes."""

from zoo.text.loading import load_tokenizer
from zoo.text.stream import TextStream
from zoo.text.template import ChatTemplate
from zoo.text.tokenizer import ByteTokenizer, Tokenizer

__all__ = ["ByteTokenizer", "ChatTemplate", "TextStream", "Tokenizer", "load_tokenizer"]
