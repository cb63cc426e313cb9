"""Score a language model: bits a byte of a text, and a task of lm-eval.

    python examples/score.py [MODEL] [FILE]      # a name with weights or a folder; a text in UTF-8

The task is made here, of the text's own sentences: which of four comes next?
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import zoo

name = sys.argv[1] if len(sys.argv) > 1 else "mamba2_nano"
text = Path(sys.argv[2]).read_text(encoding="utf-8") if len(sys.argv) > 2 else topics["assert"]
place = f"local-dir:{name}" if Path(name).is_dir() else name
model = zoo.create_model(place, pretrained=":" not in place)
tokenizer = zoo.load_tokenizer(place)

for what, options in (("all of the text before it", {}), ("128 tokens or more", {"window": 256, "stride": 128})):
    score = zoo.score_text(model, tokenizer, text, **options)  # type: ignore[arg-type]
    print(f"{score.bits_per_byte:.4f} bits a byte, each of {score.tokens} tokens given {what}")

try:
    from zoo.integrations.lm_eval import ZooLM, evaluate
except ModuleNotFoundError:
    sys.exit("for tasks: pip install 'efficient-zoo[eval]'")

sentences = [sentence.strip() for sentence in text.replace("\n", " ").split(". ") if len(sentence) > 20][:40]
with tempfile.TemporaryDirectory() as folder:
    rows = [
        {"now": a, "next": [f" {sentences[(i + k) % len(sentences)]}" for k in (1, 3, 7, 11)]}
        for i, a in enumerate(sentences)
    ]
    Path(folder, "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = {
        "task": "which_is_next",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(Path(folder, "rows.jsonl"))}, "cache_dir": folder},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{now}}.",
        "doc_to_choice": "{{next}}",
        "doc_to_target": 0,
    }
    Path(folder, "task.yaml").write_text(json.dumps(task), encoding="utf-8")
    wrapped = ZooLM(model=model, tokenizer=tokenizer, batch_size=16)
    print(evaluate(wrapped, ["which_is_next"], include_path=folder))
