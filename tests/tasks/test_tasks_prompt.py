"""Templates: only `{identifier}` is a place, and only in the template."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest

from nemo_sdg.errors import ConfigurationError, PromptError
from nemo_sdg.tasks.prompt import Template

Render = Callable[[str, dict[str, object]], str]

HOSTILE = {
    "braces": "a {x} and {document} and {0} and {}",
    "doubled": "{{ and }} and {{document}}",
    "percent": "100 %s %(a)s %d %",
    "dollar": "$x ${document}",
    "emoji": "🙂 é 漢字 \u202e \x00",
    "backslash": r"\1 \g<0> \n",
    "large": "word {x} " * 120_000,
}


def ours(template: str, values: dict[str, object]) -> str:
    return Template(template).render(values)


def predecessor(template: str, values: dict[str, object]) -> str:
    """Fills templates with str.format, one value at a time."""
    for name, value in values.items():
        template = template.format(**{name: value})
    return template


@pytest.mark.row("A4")
@pytest.mark.parametrize("name", HOSTILE)
def test_documents_pass_unchanged(name: str) -> None:
    document = HOSTILE[name]
    assert ours("Read:\n{document}\nEnd {x}", {"document": document, "x": 1}) == (
        f"Read:\n{document}\nEnd 1"
    )


JSON_EXAMPLE = """\
Answer as JSON: {"a": 1, "list": [{}], "f": {"b": [1, 2]}}, use 50 % of {0}, { spaced } and {a-b}.
Text: {document}"""


def a_json_example_renders(render: Render) -> None:
    text = render(JSON_EXAMPLE, {"document": "D"})
    assert text == JSON_EXAMPLE.replace("{document}", "D")


@pytest.mark.row("A4")
@pytest.mark.fault(16)
def test_a_template_with_a_json_example_renders() -> None:
    a_json_example_renders(ours)
    with pytest.raises((KeyError, ValueError, IndexError)):
        a_json_example_renders(predecessor)


def test_doubled_braces_write_a_literal_place() -> None:
    template = Template("Write {{name}} for {name}; {{}} and {{ x }} stay.")
    assert template.render({"name": "N"}) == "Write {name} for N; {{}} and {{ x }} stay."
    assert template.variables == ("name",)


def test_variables_in_order_once() -> None:
    template = Template("{b} {a} {b} {_c1} {Größe}")
    assert template.variables == ("b", "a", "_c1", "Größe")
    assert template.render({"a": 1, "b": None, "_c1": 2.5, "Größe": "L"}) == "None 1 None 2.5 L"


# ---------------------------------------------------------------------------------- fault 39

Places = Callable[[str], tuple[str, ...]]


def the_place_of_the_text_is_known(places: Places) -> None:
    assert places("Sum up:\n{document}") == ("document",)


@pytest.mark.fault(39)
def test_places_are_read_from_the_template_and_not_guessed() -> None:
    def guesses(template: str) -> tuple[str, ...]:
        return ("text",) if "{text}" in template else ()

    the_place_of_the_text_is_known(lambda text: Template(text).variables)
    with pytest.raises(AssertionError):
        the_place_of_the_text_is_known(guesses)


def test_an_unknown_place_is_named_with_the_nearest_and_the_remedy() -> None:
    template = Template("{documnet} {language}")
    with pytest.raises(PromptError) as caught:
        template.check({"document", "language"}, where="recipe.yaml: prompt")
    message = str(caught.value)
    assert "recipe.yaml: prompt" in message
    assert "{documnet}" in message
    assert "did you mean {document}?" in message
    assert "{{documnet}}" in message
    assert isinstance(caught.value, ConfigurationError)
    template.check({"documnet", "language", "unused"}, where="x")


def test_a_missing_value_is_named() -> None:
    with pytest.raises(PromptError, match=r"\{document\}"):
        Template("{document}").render({"text": "x"})


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_prompt_is_refused(text: str) -> None:
    with pytest.raises(PromptError, match="empty"):
        Template(text)


def test_templates_are_values() -> None:
    template = Template("Say {x}")
    _ = template.parts
    copy = pickle.loads(pickle.dumps(template))
    assert copy == template
    assert hash(copy) == hash(template)
    assert copy.render({"x": 1}) == "Say 1"
    assert template != Template("Say {y}")
    assert template != "Say {x}"


@pytest.mark.parametrize("document", ["one", "two\nlines (a+b)* [x] {document}", ""])
def test_a_rendered_prompt_reads_back(document: str) -> None:
    template = Template("In {language} (short?) [1]:\n{document}\nEnd. {language}")
    rendered = template.render({"language": "French", "document": document})
    found = template.pattern().fullmatch(rendered)
    assert found is not None
    assert found.groupdict() == {"language": "French", "document": document}


@pytest.mark.parametrize(
    ("text", "unclosed"),
    [
        ("Sum up:\n{document", {"document": 2}),
        ("{a} {b\n\n{c and {d}", {"b": 1, "c": 3}),
        ('{name} {"a": {"b": 1}} {{x}} {} }{', {}),
        ("function f() {return {a: 1}} {document}", {}),
    ],
)
def test_a_brace_that_nothing_closes_is_found_with_its_line(
    text: str, unclosed: dict[str, int]
) -> None:
    template = Template(text)
    assert template.unclosed == unclosed
    template.check_closed(["other"], where="here")
    for name, line in unclosed.items():
        with pytest.raises(PromptError, match=rf"here: .*`\{{{name}` in line {line} is not closed"):
            template.check_closed([name], where="here")
