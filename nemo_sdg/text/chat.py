"""Render a list of messages into the one text that a model reads.

A chat template is a Jinja program that comes with the tokenizer, from whoever published the model:
it runs in a sandbox, with the names that such templates expect and nothing else.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from nemo_sdg.errors import TokenizerError

Messages = Sequence[Mapping[str, Any]]


def plain_chat(messages: Messages) -> str:
    """Render messages for a tokenizer without a chat template: contents, a blank line between."""
    return "\n\n".join(str(message["content"]) for message in messages)


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A chat template and the special tokens that it may name.

    Attributes:
        source: the Jinja text.
        special_tokens: `bos_token`, `eos_token` and the like, by name.
    """

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    def render(self, messages: Messages) -> str:
        """Render `messages`, ending with the header that makes the model answer.

        Raises:
            TokenizerError: the template is broken, or refuses these messages (some know no system
                role).
        """
        from jinja2 import TemplateError

        try:
            return str(
                _compile(self.source).render(
                    messages=[dict(message) for message in messages],
                    add_generation_prompt=True,
                    tools=None,
                    documents=None,
                    **self.special_tokens,
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise TokenizerError(f"the chat template cannot render the prompt: {error}") from error


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """Read the chat template of a tokenizer folder; None when it has none.

    `chat_template.jinja` goes before `chat_template` in `tokenizer_config.json`; of several named
    templates the one called `default` is taken.

    Raises:
        TokenizerError: `tokenizer_config.json` is not JSON.
    """
    config: dict[str, Any] = {}
    config_file = folder / "tokenizer_config.json"
    if config_file.is_file():
        try:
            config = json.loads(config_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TokenizerError(f"{config_file} is not JSON: {error}") from error
    source: Any = config.get("chat_template")
    template_file = folder / "chat_template.jinja"
    if template_file.is_file():
        source = template_file.read_text(encoding="utf-8")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    special = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in config.items()
        if name.endswith("_token") and isinstance(value, (str, dict))
    }
    return ChatTemplate(source=source, special_tokens=special)


@functools.lru_cache(maxsize=64)
def _compile(source: str) -> Any:
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class SafeNamespace(Namespace):
        # Without this check a template could reach Python's internals through `set ns.__x__`.
        def __setitem__(self, name: str, value: object) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a template may not set {name!r}")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter writes HTML escapes, which no model was trained on.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_tag()]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=lambda pattern: datetime.now().strftime(pattern),
        namespace=SafeNamespace,
    )
    return environment.from_string(source)


def _generation_tag() -> Any:
    """Give the extension for `{% generation %}`, which marks answers for training: a no-op here."""
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - the type that jinja2 declares

        def parse(self, parser: Parser) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation
