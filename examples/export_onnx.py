"""A language model as ONNX: a whole sequence, and one step with its state, by which onnxruntime writes a text.

python examples/export_onnx.py [MODEL]       # a name with weights, bytes as tokens
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import zoo

name = sys.argv[1] if len(sys.argv) > 1 else "mamba2_nano"
model: Any = zoo.create_model(name, pretrained=True).eval()
tokenizer = zoo.load_tokenizer(name)
prompt = tokenizer.encode("The import statement")

with tempfile.TemporaryDirectory() as folder:
    whole = onnxruntime.InferenceSession(zoo.export_onnx(model, Path(folder, "whole.onnx")))
    step = onnxruntime.InferenceSession(zoo.export_onnx(model, Path(folder, "step.onnx"), step=True))

found: Any = whole.run(["logits"], {"tokens": np.array([prompt])})
with torch.no_grad():
    print(f"whole sequence: within {np.abs(found[0] - model(torch.tensor([prompt])).numpy()).max():.1e} of the model's")

# the first dimension is the batch; another open one is the past, empty at first
tokens, state = (
    list(prompt),
    {
        given.name: np.zeros([1, *(size if isinstance(size, int) else 0 for size in given.shape[1:])], np.float32)
        for given in step.get_inputs()
        if given.name != "tokens"
    },
)
for position in range(len(prompt) + 59):
    logits: Any
    logits, *held = step.run(None, {"tokens": np.array([[tokens[position]]]), **state})
    state = dict(zip(state, held, strict=True))
    if position + 1 == len(tokens):
        tokens.append(int(logits[0, -1].argmax()))
expected = zoo.generate(model, torch.tensor([prompt]), 60, temperature=0)[0].tolist()
print(tokenizer.decode(tokens), f"\nthe same as zoo.generate: {tokens == expected}")
