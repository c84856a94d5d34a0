"""A byte-level BPE trained in the test, with a chat template that marks roles."""

from __future__ import annotations

import json
import pydoc_data.topics
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|role|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|role|>assistant\n{% endif %}"
)


def write_tokenizer(
    folder: Path, *, vocab_size: int = 700, template: str | None = TEMPLATE
) -> Path:
    """Train on a few of Python's help topics and write the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        [text for _, text in sorted(pydoc_data.topics.topics.items())][:6],
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<|bos|>", "<|role|>", "<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # As some published files do: neither setting may reach a count.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"__type": "AddedToken", "content": "<|bos|>"}, "eos_token": "<|end|>"}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
