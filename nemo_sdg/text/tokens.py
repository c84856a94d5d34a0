"""Count tokens and cut texts where the model's tokenizer cuts.

    tokenizer = load_tokenizer("path/to/tokenizer.json")
    tokenizer.count(["one text", None])              # array([2, 0])
    tokenizer.chat_tokens([{"role": "user", "content": "Hi"}])
    tokenizer.cut(long_line, max_tokens=512)         # pieces; joined they are the line again

Counts are of the text alone: no begin or end mark, no special tokens added. Special tokens that
stand in the text count as the one token that servers make of them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nemo_sdg.data.backend import from_arrow, is_cudf, to_arrow
from nemo_sdg.errors import DataError, TokenizerError
from nemo_sdg.text.chat import ChatTemplate, Messages, plain_chat, read_chat_template
from nemo_sdg.text.cut import cut_once
from nemo_sdg.text.engines import (
    CountingEngine,
    Counts,
    CountTexts,
    Engine,
    ExactEngine,
    Texts,
)
from nemo_sdg.text.fast import open_fast
from nemo_sdg.text.gpu.engine import GpuEngine
from nemo_sdg.text.lines import LineTokens
from nemo_sdg.text.spans import Spans

BUNDLED = "bundled"
_BUNDLED_FOLDER = Path(__file__).parent / "bundled"

_HUB_FILES = [
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*",
    "merges.txt", "*.tiktoken", "*.model", "tekken.json", "config.json",
]  # fmt: skip


class Tokenizer:
    """Counts tokens, renders chats and cuts texts for one model; made by `load_tokenizer`.

    It is safe to share between threads, and pickles by its source: the other process loads the
    same files (once) and checks that they are the same.

    Attributes:
        name: the source as it was given, or `bundled`.
        fingerprint: sha256 (hex) of what decides counts and rendering.
        estimated: it stands in for the tokenizer of another model; keep 10 % more room.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        name: str,
        fingerprint: str,
        chat: ChatTemplate | None,
        estimated: bool,
        origin: tuple[str, Any],
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.estimated = estimated
        self._engine = engine
        self._chat = chat
        self._origin = origin

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, {self.fingerprint[:12]}, estimated={self.estimated})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._origin, self.name, self.fingerprint, self.estimated)

    @property
    def has_chat_template(self) -> bool:
        """Whether chats are rendered by the model's template; else plainly (`plain_chat`)."""
        return self._chat is not None

    @property
    def engine(self) -> str:
        """What counts: `gigatoken`, `tokenizers`, `transformers` or `tokenize route`.

        Once a column was counted on a GPU, `, GPU kernels` is added.
        """
        return self._engine.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the engine, such as why the fast one is not used."""
        return self._engine.notes

    def count(self, texts: Texts) -> Counts:
        """Count the tokens of every text.

        Args:
            texts: a list, or an Arrow array of strings (the fast engine reads its buffers and
                makes no Python strings); null counts 0.

        Returns:
            int64 array, one count per text. `gigatoken` takes 16 MB of text at a time, and a longer
            text whole. The other engines take about 1 M characters; a longer text is counted in
            overlapping windows that are stitched where both agree, which is exact unless the text
            is one endless word (then within a token per window).

        Raises:
            DataError: one of them is no text; the message tells which.
        """
        try:
            return self._engine.count(texts)
        except TypeError:
            raise _no_text(texts) from None

    def count_lines(self, lines: Spans) -> tuple[Counts, LineTokens | None]:
        r"""Count the lines of texts; where split rules allow, from one tokenization of the texts.

        Args:
            lines: pieces of texts between "\n", all of them.

        Returns:
            The tokens of each, and what was found out about runs of them.
        """
        return self._engine.count_lines(lines)

    def count_column(self, series: Any) -> Any:
        """Count the tokens of a text column: int64 column of the same library and index.

        A cuDF column is counted on the GPU, where it lies, as far as the kernels of `text/gpu` know
        the tokenizer; `counted.counting` tells what they left to the processor.
        """
        if is_cudf(series) and isinstance(self._engine, GpuEngine):
            return self._engine.count_column(series)
        return from_arrow(pa.array(self.count(to_arrow(series))), like=series)

    def render(self, messages: Messages) -> str:
        """Render a chat up to and with the header of the answer.

        Raises:
            TokenizerError: the chat template refuses these messages.
        """
        return plain_chat(messages) if self._chat is None else self._chat.render(messages)

    def chat_tokens(self, messages: Messages) -> int:
        """Count the tokens of a whole prompt: role marks and the header of the answer included.

        The rendered text carries its begin mark itself, so none is added a second time.

        Raises:
            TokenizerError: the chat template refuses these messages.
        """
        return int(self.count([self.render(messages)])[0])

    def overhead(self, messages: Messages, text: str = "") -> int:
        """Count what a prompt costs beside its text.

        Args:
            messages: the prompt with `text` in its place.
            text: the text; empty gives the figure for planning, before any text is known (a token
                or two off where a text merges with what stands beside it).

        Returns:
            Tokens of the rendered chat less the tokens of the text.

        Raises:
            ValueError: the text stands in none of the messages (a placeholder was not filled).
            TokenizerError: the chat template refuses these messages.
        """
        if not any(text in str(message["content"]) for message in messages):
            raise ValueError("the text stands in none of the messages")
        return self.chat_tokens(messages) - int(self.count([text])[0])

    def cut(self, text: str, max_tokens: int) -> list[str]:
        """Cut a text into pieces of at most `max_tokens` each; joined they are the text again.

        A piece ends after a sentence where one ends in the last three quarters of its room, else
        after a word there, else between two tokens, never inside a character. Every piece is
        counted as it stands. Only a single character that has more tokens than `max_tokens` stays
        over it. Time grows linearly with the text.

        Raises:
            ValueError: `max_tokens` is below 1.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}, it must be at least 1")
        pieces, counts, limit = [text], self.count([text]), max_tokens
        while True:
            over = [len(p) > 1 and n > max_tokens for p, n in zip(pieces, counts, strict=True)]
            if not any(over):
                return pieces
            parts = [
                cut_once(piece, self._engine.starts(piece), limit) if cut else [piece]
                for piece, cut in zip(pieces, over, strict=True)
            ]
            fresh = np.repeat(over, [len(part) for part in parts])
            kept = np.asarray(counts)[~np.asarray(over)]
            pieces = [piece for part in parts for piece in part]
            counts = np.empty(len(pieces), dtype=np.int64)
            counts[~fresh] = kept
            counts[fresh] = self.count([p for p, new in zip(pieces, fresh, strict=True) if new])
            # A piece starts afresh, so its tokens may differ from those in the middle of the text.
            limit = max(1, limit * 7 // 8)


def load_tokenizer(
    source: str | Path | None = None,
    *,
    model: str | None = None,
    remote: CountTexts | None = None,
) -> Tokenizer:
    """Find the tokenizer: the named one, the model's, the server's, else the bundled one.

    Args:
        source: a folder, a `tokenizer.json`, the name `bundled`, or a name on the hub. Only a name
            given here may be looked up over the network.
        model: the model's name or folder; used when its tokenizer lies on this machine.
        remote: counts texts on the server (its tokenize route). It must pickle. There a chat is
            counted in its plain rendering.

    Returns:
        A tokenizer, opened once per process. The bundled one is marked `estimated` unless it was
        asked for by name.

    Raises:
        TokenizerError: `source` is given and does not load.
    """
    if source is not None:
        name = str(source)
        if name == BUNDLED:
            return _build(("bundled", None), BUNDLED, estimated=False)
        if Path(name).expanduser().exists():
            return _build(("path", str(Path(name).expanduser().resolve())), name, estimated=False)
        return _build(("hub", name), name, estimated=False)
    if model is not None:
        path = Path(model).expanduser()
        origin = ("path", str(path.resolve())) if path.exists() else ("cached", model)
        try:
            return _build(origin, model, estimated=False)
        except TokenizerError:
            pass  # most models are not on this machine: go on to the next way
    if remote is not None:
        return _build(("remote", remote), f"{model or 'server'} (tokenize route)", estimated=False)
    return _build(("bundled", None), BUNDLED, estimated=True)


# ------------------------------------------------------------------------------------- loading


def _restore(origin: tuple[str, Any], name: str, fingerprint: str, estimated: bool) -> Tokenizer:
    tokenizer = _build(origin, name, estimated=estimated)
    if tokenizer.fingerprint != fingerprint:
        raise TokenizerError(
            f"the tokenizer {name!r} is not the one the run began with (sha256 "
            f"{tokenizer.fingerprint[:12]}, expected {fingerprint[:12]}): put the old files back "
            "on every machine, or start a new run"
        )
    return tokenizer


def _build(origin: tuple[str, Any], name: str, *, estimated: bool) -> Tokenizer:
    kind, what = origin
    chat: ChatTemplate | None = None
    if kind == "remote":
        engine: Engine = GpuEngine(CountingEngine(what, name="tokenize route"), None, None)
        # The server does not show its vocabulary: its answers to a few texts stand for it.
        fingerprint = _sha256(name, json.dumps([int(n) for n in what(_PROBES)]))
    else:
        engine, chat, fingerprint = _open(_locate(kind, what), name)
    return Tokenizer(
        engine,
        name=name,
        fingerprint=fingerprint,
        chat=chat,
        estimated=estimated,
        origin=origin,
    )


_PROBES = [
    "",
    "The quick brown fox, 12345.",
    "naïve 語言模型\n\n\t",
    "def f(x):\n    return {x: 1}",
]


def _locate(kind: str, what: str) -> Path:
    if kind == "bundled":
        return _BUNDLED_FOLDER
    if kind == "path":
        return Path(what)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    download = functools.partial(snapshot_download, what, allow_patterns=_HUB_FILES)
    try:
        return Path(download(local_files_only=True))
    except (OSError, ValueError) as error:
        if kind == "cached":
            raise TokenizerError(f"no tokenizer of {what!r} on this machine") from error
    try:
        return Path(download())
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        raise TokenizerError(
            f"tokenizer {what!r} is no folder or file here and does not come from the hub "
            f"({type(error).__name__}): give a folder, a tokenizer.json, or {BUNDLED!r}"
        ) from error


_opened: dict[tuple[Any, ...], tuple[GpuEngine, ChatTemplate | None, str]] = {}
_opening = threading.Lock()


def _open(path: Path, name: str) -> tuple[GpuEngine, ChatTemplate | None, str]:
    """Open a tokenizer folder or file, once per process for the same files."""
    folder = path if path.is_dir() else path.parent
    file = path / "tokenizer.json" if path.is_dir() else path
    watched = [file, folder / "tokenizer_config.json", folder / "chat_template.jinja"]
    stats = [(p.stat().st_mtime_ns, p.stat().st_size) if p.is_file() else None for p in watched]
    key = (str(path), *stats)
    with _opening:
        if key not in _opened:
            chat = read_chat_template(folder)
            if file.is_file():
                engine, content = _open_json(file, name)
            else:
                engine, content = _open_auto(folder, name)
            template = [chat.source, dict(chat.special_tokens)] if chat else None
            fingerprint = _sha256(content, json.dumps(template, sort_keys=True))
            _opened[key] = (engine, chat, fingerprint)
        return _opened[key]


def _open_json(file: Path, name: str) -> tuple[GpuEngine, str]:
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    try:
        content = file.read_text(encoding="utf-8")
        tokenizer = HuggingFaceTokenizer.from_str(content)
    except Exception as error:  # `tokenizers` raises nothing more exact
        raise TokenizerError(f"tokenizer {name!r} cannot be read ({file.name}): {error}") from error
    return _engine(tokenizer, content), content


def _open_auto(folder: Path, name: str) -> tuple[GpuEngine, str]:
    """Open a folder without tokenizer.json through transformers, which knows the other formats."""
    from transformers import AutoTokenizer

    try:
        auto = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise TokenizerError(
            f"tokenizer {name!r} holds no tokenizer.json and nothing that transformers can load "
            f"without code of its own ({type(error).__name__})"
        ) from error
    backend = getattr(auto, "backend_tokenizer", None)
    if backend is not None:
        content = backend.to_str()
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        return _engine(HuggingFaceTokenizer.from_str(content), content), content
    vocabulary = json.dumps([type(auto).__name__, sorted(auto.get_vocab().items())])

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in auto(texts, add_special_tokens=False)["input_ids"]]

    return GpuEngine(CountingEngine(count, name="transformers"), None, None), vocabulary


def _engine(tokenizer: Any, content: str) -> GpuEngine:
    reference = ExactEngine(tokenizer)
    return GpuEngine(open_fast(reference, content), reference, content)


def _no_text(texts: Texts) -> DataError:
    """Return what is wrong with texts that no engine takes."""
    if isinstance(texts, (pa.Array, pa.ChunkedArray)):
        return DataError(f"only texts have tokens: the column holds {texts.type}, not strings")
    for row, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            return DataError(f"only texts have tokens: row {row} holds {type(text).__name__}")
        if text and text.encode(errors="ignore") != text.encode(errors="surrogatepass"):
            return DataError(f"row {row} is not Unicode: it holds half of a surrogate pair")
    return DataError("the tokenizer does not take these texts")


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
