"""Train the tokenizer that is shipped with the package on the example documents.

    python examples/train_tokenizer.py            # writes nemo_sdg/text/bundled/
    python examples/train_tokenizer.py --check    # exit 1 when a fresh training differs from it

The same documents give the same bytes. Takes about a second.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "data"
BUNDLED = ROOT / "nemo_sdg" / "text" / "bundled"

VOCABULARY_SIZE = 4000
BEGIN, ROLE, END_ROLE, END = "<|begin|>", "<|role|>", "<|end_role|>", "<|end|>"

# Llama 3's: contractions, words with one leading sign, digits in threes, signs, newlines, blanks.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    f"{{{{- '{BEGIN}' -}}}}"
    "{%- for message in messages -%}"
    f"{{{{- '{ROLE}' + message['role'] + '{END_ROLE}\\n' + message['content'] + '{END}' -}}}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    f"{{{{- '{ROLE}assistant{END_ROLE}\\n' -}}}}"
    "{%- endif -%}"
)


def read_texts(folder: Path) -> list[str]:
    """Return the texts of all JSONL files in `folder`, in the order of file names and lines."""
    texts = []
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8", newline="\n") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    return texts


def train(texts: Sequence[str]) -> Tokenizer:
    """Train a byte-level BPE of `VOCABULARY_SIZE` entries; it can encode every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(mark, special=True) for mark in (BEGIN, ROLE, END_ROLE, END)],
        # The alphabet comes out of a set; sorted, so that the ids do not depend on hashing.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def build(texts: Sequence[str]) -> dict[str, bytes]:
    """Return the files of the bundled tokenizer: name to content."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "additional_special_tokens": [ROLE, END_ROLE],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    return {
        "tokenizer.json": (train(texts).to_str(pretty=True) + "\n").encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }


def differing(files: dict[str, bytes], folder: Path) -> list[str]:
    """Return the names of those `files` that are absent from `folder` or differ there."""
    return [
        name
        for name, content in files.items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != content
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and write, or check; return the exit code."""
    parser = argparse.ArgumentParser(description="Train the tokenizer shipped with the package.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on a change")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of JSONL files")
    parser.add_argument("--output", type=Path, default=BUNDLED, help="folder of the tokenizer")
    options = parser.parse_args(arguments)

    files = build(read_texts(options.data))
    stale = differing(files, options.output)
    if options.check:
        for name in stale:
            print(f"{options.output / name} is not what a fresh training gives", file=sys.stderr)
        return 1 if stale else 0
    options.output.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (options.output / name).write_bytes(files[name])
    print(f"{options.output}: wrote {', '.join(stale) or 'nothing, all is up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
