"""Adapt a language model by LoRA: peft on a model of the zoo, a loop of one's own, the adapter saved and merged.

python examples/finetune_lora.py [MODEL]     # a name with weights, bytes as tokens
"""

from __future__ import annotations

import sys
import tempfile
from pydoc_data.topics import topics
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import zoo

STEPS, BATCH, LENGTH = 30, 8, 128

torch.manual_seed(0)
name = sys.argv[1] if len(sys.argv) > 1 else "mamba2_nano"
tokenizer = zoo.load_tokenizer(name)
text = torch.tensor(tokenizer.encode("\n".join(topics.values()).upper()))  # what the model has not seen: capitals
model: Any = get_peft_model(
    zoo.create_model(name, pretrained=True),  # type: ignore[arg-type]
    LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
)
model.print_trainable_parameters()

optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
for step in range(STEPS):
    starts = torch.randint(0, len(text) - LENGTH, (BATCH, 1))
    tokens = text[starts + torch.arange(LENGTH)]
    loss = model(tokens, labels=tokens) + sum(zoo.auxiliary_losses(model).values())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    zoo.after_step(model)
    if step % 10 == 0 or step == STEPS - 1:
        print(f"step {step:3}: {loss.item() / torch.tensor(2.0).log().item():.3f} bits a byte")

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)  # the adapter alone
    again: Any = PeftModel.from_pretrained(zoo.create_model(name, pretrained=True), folder)  # type: ignore[arg-type]
merged = again.merge_and_unload()  # a plain model of the zoo: zoo.save_model writes it
prompt = torch.tensor([tokenizer.encode("THE IMPORT STATEMENT")])
print(tokenizer.decode(zoo.generate(merged, prompt, 80, temperature=0)[0]))
