"""Prompt templates: `{name}` is filled in, everything else is text.

Only `{identifier}` is a placeholder, and only in the template: braces in a value, JSON examples
in a template (`{"a": 1}`), `%s` and the like pass unchanged. `{{name}}` writes a literal `{name}`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import repeat

from nemo_sdg.errors import PromptError

_PLACEHOLDER = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|\{([A-Za-z_]\w*)\}")
_OPENED = re.compile(r"\{([A-Za-z_]\w*)")


class Template:
    """A prompt with named places. Equal, hashable and picklable by its text.

    Raises:
        PromptError: the text is empty.
    """

    def __init__(self, text: str) -> None:
        if not text.strip():
            raise PromptError("the prompt is empty")
        self.text = text

    def __repr__(self) -> str:
        return f"Template({self.text[:40]!r}...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __reduce__(self) -> tuple[type[Template], tuple[str]]:
        return Template, (self.text,)

    @cached_property
    def parts(self) -> tuple[str | tuple[str], ...]:
        """The template in order: literal text as str, a placeholder as a tuple of its name."""
        parts: list[str | tuple[str]] = []
        end = 0
        for match in _PLACEHOLDER.finditer(self.text):
            literal, name = match.groups()
            parts.append(self.text[end : match.start()] + (f"{{{literal}}}" if literal else ""))
            if name:
                parts.append((name,))
            end = match.end()
        parts.append(self.text[end:])
        return tuple(part for part in parts if part)

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """Names of the placeholders in order of appearance, each once."""
        return tuple(dict.fromkeys(part[0] for part in self.parts if isinstance(part, tuple)))

    @cached_property
    def unclosed(self) -> Mapping[str, int]:
        """Names after a brace that nothing closes, as in `{document`, and the line of each.

        They are text like any other; whether one was meant as a placeholder the caller knows.
        """
        open_at: list[int] = []
        for match in re.finditer(r"[{}]", self.text):
            if match.group() == "{":
                open_at.append(match.start())
            elif open_at:
                open_at.pop()
        names = [(_OPENED.match(self.text, at), at) for at in open_at]
        return {m.group(1): self.text.count("\n", 0, at) + 1 for m, at in names if m}

    def check_closed(self, meant: Collection[str], *, where: str) -> None:
        """Raise `PromptError` when a name that is meant as a placeholder has no closing brace."""
        for name, line in self.unclosed.items():
            if name in meant:
                raise PromptError(
                    f"{where}: the brace of `{{{name}` in line {line} is not closed: write "
                    f"{{{name}}}"
                )

    def check(self, available: Collection[str], *, where: str) -> None:
        """Raise `PromptError` when a placeholder is not among the available names."""
        for name in self.variables:
            if name not in available:
                near = difflib.get_close_matches(name, available, n=1)
                hint = f"; did you mean {{{near[0]}}}?" if near else "."
                raise PromptError(
                    f"{where}: the placeholder {{{name}}} has no column of that name "
                    f"(there are: {', '.join(sorted(available)) or 'none'}){hint} "
                    f"To write it literally, double the braces: {{{{{name}}}}}."
                )

    def render(self, values: Mapping[str, object]) -> str:
        """Fill in the values as they are; raise `PromptError` when one is missing."""
        try:
            return "".join(
                part if isinstance(part, str) else str(values[part[0]]) for part in self.parts
            )
        except KeyError as missing:
            raise PromptError(f"no value for the placeholder {{{missing.args[0]}}}") from None

    def render_columns(
        self, columns: Mapping[str, Sequence[object]], rows: Sequence[int]
    ) -> list[str]:
        """Return `render` for every one of `rows`, with its values in `columns`."""
        lanes: list[Iterable[str]] = [
            repeat(part, len(rows))
            if isinstance(part, str)
            else map(str, [columns[part[0]][row] for row in rows])
            for part in self.parts
        ]
        return ["".join(pieces) for pieces in zip(*lanes, strict=True)]

    def pattern(self) -> re.Pattern[str]:
        """Return a pattern that reads the values back out of a rendered prompt."""
        seen: set[str] = set()
        pieces = []
        for part in self.parts:
            if isinstance(part, str):
                pieces.append(re.escape(part))
            elif part[0] in seen:
                pieces.append(f"(?P={part[0]})")
            else:
                seen.add(part[0])
                pieces.append(f"(?P<{part[0]}>.*)")
        return re.compile("".join(pieces), re.DOTALL)
