"""A whole run against a real server: `transformers serve` with a tiny model of random weights.

Its answers are gibberish; what is looked at is the protocol: models, tokens, reasons, streaming.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

NEEDED = ("torch", "accelerate", "fastapi", "uvicorn")
LACKING = [name for name in NEEDED if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        bool(LACKING),
        reason=f"no {', '.join(LACKING)}: pip install -c constraints.txt -e '.[serve]'",
    ),
]

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "nemo_sdg" / "text" / "bundled"
ARTICLES = ROOT / "examples" / "data" / "articles-en.jsonl"
MODEL = "acceptance/tiny"
SHORT, LONG = 2, 96

# Every eighth token ends an answer, so that some end by themselves and some at their limit.
MAKE_MODEL = """
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

bundled, folder = sys.argv[1:]
tokenizer = PreTrainedTokenizerFast.from_pretrained(bundled)
tokenizer.save_pretrained(folder)
torch.manual_seed(0)
marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, **marks,
)
model = LlamaForCausalLM(config)
model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(300, len(tokenizer), 8)]
model.generation_config.pad_token_id = tokenizer.eos_token_id
model.save_pretrained(folder)
"""

PROMPT = "Say in one sentence what this text is about.\n\n{document}"


@dataclass(frozen=True)
class Served:
    url: str
    folder: Path


def _environment(home: Path) -> dict[str, str]:
    return os.environ | {"HOME": str(home), "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Start the server on a free port, its model in a cache of its own."""
    home = tmp_path_factory.mktemp("hub")
    revision = "0" * 40
    cached = home / "hub" / "models--acceptance--tiny"
    folder = cached / "snapshots" / revision
    for part in (folder, cached / "refs", cached / "blobs"):
        part.mkdir(parents=True)
    (cached / "refs" / "main").write_text(revision)
    environment = _environment(home)
    command = [sys.executable, "-c", MAKE_MODEL, str(BUNDLED), str(folder)]
    made = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert made.returncode == 0, made.stderr[-3000:]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = shutil.which("transformers", path=str(Path(sys.executable).parent))
    assert program is not None
    where = ["--host", "127.0.0.1", "--port", str(port)]
    log = home / "serve.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [program, "serve", MODEL, *where, "--device", "cpu", "--dtype", "float32"],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield Served(url=f"http://127.0.0.1:{port}/v1", folder=folder)
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(20)


def _wait(server: subprocess.Popen[bytes], health: str, log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    pytest.fail(f"the server did not come up: {log.read_text()[-3000:]}")


def _command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nemo_sdg", *arguments],
        cwd=folder,
        env=_environment(folder),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _run(
    served: Served, folder: Path, max_output_tokens: int, *more: str
) -> subprocess.CompletedProcess[str]:
    recipe = {
        "tasks": [
            {
                "name": "summary",
                "output": "summary",
                "prompt": PROMPT,
                "parse": "plain_text",
                "budget": {"max_input_tokens": 600, "max_output_tokens": max_output_tokens},
                "sampling": {"temperature": 1.0},
            }
        ],
        "input": str(ARTICLES),
        "max_failures": 1.0,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    options = {
        "--output": "out",
        "--endpoint": served.url,
        "--model": MODEL,
        "--tokenizer": str(served.folder),
        "--limit": "5",
        "--workers": "1",
        "--concurrency": "4",
    }
    flat = [word for pair in options.items() for word in pair]
    return _command(folder, "run", "recipe.yaml", *flat, *more)


def _table(folder: Path) -> Any:
    from nemo_sdg.data.dataset import DocumentDataset

    return DocumentDataset.read(str(folder)).to_pandas()


def test_check_tells_what_the_server_offers(served: Served, tmp_path: Path) -> None:
    done = _command(tmp_path, "check", "--endpoint", served.url)
    assert done.returncode == 0, done.stderr
    told = dict(re.findall(r"^([^:]+): +(.*)$", done.stdout, re.MULTILINE))
    assert told["models"] == told["asked"] == MODEL
    assert told["streaming"] == "yes"
    assert told["seed"] == "yes"
    assert told["log-probabilities"] == "ignored"


def test_a_model_that_is_not_listed_ends_before_the_first_request(
    served: Served, tmp_path: Path
) -> None:
    done = _run(served, tmp_path, LONG, "--model", "acceptance/tinny")
    assert done.returncode == 2
    assert f"does not serve the model 'acceptance/tinny'; it serves {MODEL}" in done.stderr
    assert not list((tmp_path / "out").rglob("part-*"))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streaming"])
def test_a_run_adds_up(
    served: Served, tmp_path: Path, stream: bool, bundled_tokenizer: Any
) -> None:
    done = _run(served, tmp_path, LONG, *(["--stream"] if stream else []))
    assert done.returncode in {0, 4}, done.stderr
    out = tmp_path / "out"
    report = json.loads((out / "run.json").read_text())
    counts = report["counts"]["summary"]
    ends = [f"documents.{end}" for end in ("filtered", "complete", "partial", "empty")]
    assert sum(counts.get(end, 0) for end in ends) == 5
    dead = {name: n for name, n in counts.items() if name.startswith("dead.")}
    assert set(dead) <= {"dead.length", "dead.empty"}
    assert counts["segments"] == counts["kept"] + sum(dead.values())
    assert counts["kept"] >= 0.8 * counts["segments"] > 4
    assert done.returncode == (4 if sum(dead.values()) > 0.05 * counts["segments"] else 0)

    rows, calls = _table(out / "data"), _table(out / "provenance")
    assert len(rows) == counts["kept"]
    assert rows["summary"].str.strip().str.len().gt(0).all()
    assert report["tokens"]["input_tokens"] == calls["input_tokens"].sum()
    assert report["tokens"]["output_tokens"] == calls["output_tokens"].sum()
    assert calls["output_tokens"].between(1, LONG).all()
    assert set(calls["finish_reason"]) <= {"stop", "length"}
    assert calls["model_served"].str.startswith(MODEL).all()

    # The server counts a prompt with the same tokenizer and chat template: to the token.
    used = rows.merge(calls, left_on="summary_call", right_on="call")
    assert len(used) == len(rows)
    for text, told in zip(used["text"], used["input_tokens"], strict=True):
        content = PROMPT.replace("{document}", text)
        assert bundled_tokenizer.chat_tokens([{"role": "user", "content": content}]) == told

    again = _run(served, tmp_path, LONG, *(["--stream"] if stream else []))
    assert again.returncode == done.returncode
    assert "everything was done before, nothing was asked" in again.stdout


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streaming"])
def test_answers_that_are_cut_are_reasons_and_no_texts(
    served: Served, tmp_path: Path, stream: bool
) -> None:
    done = _run(served, tmp_path, SHORT, *(["--stream"] if stream else []))
    assert done.returncode == 4, done.stderr
    counts = json.loads((tmp_path / "out" / "run.json").read_text())["counts"]["summary"]
    dead = _table(tmp_path / "out" / "dead_letters")
    assert counts["dead.length"] == (dead["reason"] == "length").sum() > 0.3 * counts["segments"]
    assert counts["segments"] == counts["kept"] + len(dead)
    assert dead.loc[dead["reason"] == "length", "attempts"].eq(2).all()
