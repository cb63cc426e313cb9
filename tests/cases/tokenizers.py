"""Small tokenizers as they are published, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CORPUS = [
    "The import statement binds a name. ",
    "Naïve café, 北京 and 🙂 👩‍🚀: fünf\n\n\tfor i in range(10):",
    "Hello, hello world's",
]
CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{{ message['content'] | trim + '<|im_end|>\n' }}{%- endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level(vocab_size: int = 320) -> Any:
    """Byte-level BPE that begins a text by <s>, as Llama 3's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )  # pyright: ignore[reportCallIssue]
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


def byte_fallback() -> Any:
    """BPE with a mark for spaces and tokens for unknown bytes, as Llama 2's and Mistral's."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    words = ["▁", *"abcdefghijklmnopqrstuvwxyzT.,'", "▁a", "▁t", "in", "he"]
    names = [*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocab = {name: index for index, name in enumerate(names)}
    merges = [("▁", "a"), ("▁", "t"), ("i", "n"), ("h", "e")]
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


KINDS = {"byte_level": byte_level, "byte_fallback": byte_fallback}


def write_tokenizer(folder: Path, made: Any = None, **config: Any) -> Path:
    """A folder with a tokenizer.json and the tokenizer_config.json of a chat model."""
    folder.mkdir(parents=True, exist_ok=True)
    (made or byte_level()).save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "<|im_end|>", "chat_template": CHATML, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
