"""Recipes: what they accept, what they say about what they do not, and what they become."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_sdg.errors import RecipeError
from nemo_sdg.pipelines.recipe import (
    Recipe,
    difference,
    load_recipe,
    make_recipe,
    starter_recipe,
)
from nemo_sdg.tasks.registry import all_tasks, get_task
from nemo_sdg.tasks.steps import join_lines
from nemo_sdg.tasks.task import Budget, Task

FIVE = ["wikipedia_rephrase", "diverse_qa", "distill", "extract_knowledge", "knowledge_list"]
EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "recipes"


def written(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path, **overrides: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, **overrides)
    return str(caught.value)


def own(**fields: Any) -> Task:
    spec = {"name": "summary", "output": "summary", "prompt": "Sum up: {document}"} | fields
    needs_no_input = "languages" in fields
    (task,) = Recipe(tasks=[spec], input=[] if needs_no_input else "x.jsonl").resolved_tasks()
    assert isinstance(task, Task)
    return task


# --- what is wrong --------------------------------------------------------------------------------

WRONG = """\
tasks:
  - distil
  - name: summary
    output: summary
    promt: Sum up {document}
    budget: {max_input_tokens: 3}
    sampling:
      temprature: 1
      top_p: 2
input: documents.jsonl
shape: row
max_failures: many
limit: true
modle: llama
"""


@pytest.mark.row("I1")
def test_everything_wrong_is_told_at_once_with_line_key_and_nearest_name(tmp_path: Path) -> None:
    path = written(tmp_path, WRONG)
    lines = message(path).splitlines()
    told = {int(line.removeprefix(f"{path}:").split(":")[0]): line for line in lines}
    assert list(told) == [2, 5, 6, 8, 9, 11, 12, 13, 14] == sorted(told)
    assert "no task 'distil'; did you mean 'distill'?" in told[2]
    assert "tasks[1].promt: unknown key 'promt'; did you mean 'prompt'?" in told[5]
    assert "max_input_tokens: must be at least 16, not 3" in told[6]
    assert "did you mean 'temperature'?" in told[8]
    assert "must be at most 1" in told[9]
    assert "one of text, rows, not 'row'; did you mean 'rows'?" in told[11]
    assert "must be a number, not 'many'" in told[12]
    assert "must be a whole number, not True" in told[13]
    assert "did you mean 'model'?" in told[14]
    for name in Recipe.model_fields:
        assert f" {name}" in told[14], "the allowed names are listed"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "is empty"),
        ("- distill\n", "holds no mapping"),
        ("tasks: [distill\nseed: 1\n", ":2: this is no YAML"),
        ("tasks: !!python/object:os.system x\n", ":1: this is no YAML"),
        (
            "seed: 1\nlimit: 2\nseed: 2\ntasks: distill\ninput: x\n",
            ":1: seed: this key stands twice",
        ),
        ("tasks: distill\n", ": input: there is no input, and distill needs documents"),
        ("input: x\n", "no task is named"),
        ("tasks: multilingual_qa\ninput: x\n", ":2: input: multilingual_qa needs no input"),
        ("tasks: [distill, nemotron-cc]\ninput: x\n", "distill stands there more than once"),
        (
            "tasks: distill\ninput: x\nmodel: 3\n",
            ":3: model: must be text, not 3; put it in quotes",
        ),
        ("tasks: distill\ninput: x\nendpoint: http://h/v1\n", "no model is named"),
        ("tasks: distill\ninput: x\nendpoint: h\nmodel: m\n", ":3: endpoint: "),
        (
            "tasks: distill\ninput: x\nendpoint_kind: vlm\n",
            ":3: endpoint_kind: must be one of auto",
        ),
        ("tasks: distill\ninput: x\ntext_field: distill\n", "is the text_field already"),
        ("tasks: distill\ninput: x\ntask_file: no.py\n", ":3: task_file: there is no task file"),
        ("tasks: [{name: nemotron-cc, seed: 1}]\ninput: x\n", "unknown key 'seed'"),
        ("tasks: [{name: nemotron-cc, system: hi}]\ninput: x\n", "takes no system"),
        (
            "tasks: [{name: distill, parse: zzz}]\ninput: x\n",
            "there is no parser 'zzz'. There are: plain_text",
        ),
        (
            "tasks: [{name: distill, filters: {lenght: 3}}]\ninput: x\n",
            "there is no filter 'lenght'; did you mean 'length'? There are: min_tokens",
        ),
    ],
)
def test_a_recipe_that_cannot_be_says_why(tmp_path: Path, text: str, wanted: str) -> None:
    path = written(tmp_path, text)
    told = message(path)
    assert wanted in told
    assert told.startswith(str(path))


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ("prompt: ''", "the prompt is empty"),
        ("prompt: Say hello.", "there is no placeholder"),
        ("output: text", "is the text_field already"),
        ("parse: list_item", "did you mean 'list_items'?"),
        ("parse: after_prefix", "after_prefix needs its text"),
        ("parse: {list_items: 3}", "must be text"),
        ("parse: {list_items: x}", "list_items takes no value"),
        ("languages: [German]", "the placeholder {document}"),
        ("filters: [repetitions]", "did you mean 'repetition'?"),
        ("filters: [{repetition: {max_shar: 0.1}}]", "did you mean 'max_share'?"),
        ("filters: [{repetition: 3}]", "max_share is between 0 and 1"),
        ("filters: [{min_tokens: many}]", "min_tokens"),
        ("sampling: {extra_body: {seed: 3}}", "must not set 'seed'"),
        ("sampling: {stop_when: {complete: '('}}", "complete: is no regular expression"),
        ("sampling: {stop_when: {reject: 'x*'}}", "reject: would end every answer"),
        ("sampling: {stop_when: {rejects: x}}", "did you mean 'reject'?"),
        ("sampling: {stop_when: {max_repeated_lines: 0}}", "max_repeated_lines: must be at least"),
        ("sampling: {stop_when: {}}", "names no rule"),
        ("budget: {max_output_tokens: 0}", "at least 1"),
    ],
)
def test_a_task_of_ones_own_that_cannot_be_says_why(
    tmp_path: Path, fields: str, wanted: str
) -> None:
    base = {"name": "summary", "output": "summary", "prompt": "Sum up: {document}"}
    entry = base | yaml.safe_load("{" + fields + "}")
    path = written(tmp_path, yaml.safe_dump({"tasks": [entry], "input": "x.jsonl"}))
    told = message(path)
    assert wanted in told
    assert re.match(rf"{re.escape(str(path))}:\d+: tasks", told)


def test_an_unknown_task_with_a_prompt_lacks_its_output(tmp_path: Path) -> None:
    path = written(tmp_path, "input: x\ntasks: [{name: distil, prompt: 'a {document}'}]\n")
    assert "did you mean 'distill'?" in message(path)
    assert "needs output too" in message(path)


def test_there_is_no_recipe_and_it_is_not_utf8(tmp_path: Path) -> None:
    assert "there is no recipe" in message(tmp_path / "none.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes("tasks: distill # für\n".encode("latin-1"))
    assert "not UTF-8" in message(path)
    assert "cannot be read" in message(tmp_path)


def test_options_are_told_by_their_own_names(tmp_path: Path) -> None:
    path = written(tmp_path, "tasks: distill\ninput: x.jsonl\nseed: 1\n")
    told = message(path, seed="a", max_outage_s=-1)
    assert "--seed: must be a whole number" in told
    assert "--max-outage: must be at least 0" in told
    with pytest.raises(RecipeError, match=r"^TASK: there is no task 'distil'"):
        make_recipe(tasks=["distil"], input="x")


def test_a_python_caller_gets_the_place_as_well() -> None:
    with pytest.raises(RecipeError, match=r"tasks\[0\]\.budget\.max_input_tokens"):
        Recipe(tasks=[{"name": "distill", "budget": {"max_input_tokens": 1}}], input="x")


# --- what it reads --------------------------------------------------------------------------------


def test_values_follow_yaml_1_2(tmp_path: Path) -> None:
    text = "tasks: distill\ninput: x\nyes: true\nmax_failures: 1e-1\nmodel: 2024-01-01\n"
    recipe = load_recipe(written(tmp_path, text))
    assert recipe.yes
    assert recipe.max_failures == 0.1
    assert recipe.model == "2024-01-01"


def test_paths_in_a_recipe_start_at_its_folder(tmp_path: Path, monkeypatch: Any) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "tok").mkdir()
    text = "tasks: distill\ninput: [../a.jsonl, 's3://bucket/b', /c]\ntokenizer: tok\nledger: led\n"
    path = written(inner, text)
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path)
    assert recipe.input == [str(tmp_path / "a.jsonl"), "s3://bucket/b", "/c"]
    assert recipe.tokenizer == str(inner / "tok")
    assert recipe.ledger == str(inner / "led")
    assert load_recipe(path, input=["d.jsonl"]).input == [str(tmp_path / "d.jsonl")]


def test_groups_names_and_files_become_tasks(tmp_path: Path) -> None:
    assert [t.name for t in Recipe(tasks="nemotron-cc", input="x").resolved_tasks()] == FIVE
    file = written(
        tmp_path,
        "from nemo_sdg.tasks.task import Task\n"
        "shout = Task(name='recipe_shout', output='loud', prompt='Shout: {document}', doc='d')\n",
        "mine.py",
    )
    recipe = Recipe(task_file=str(file), input="x")
    assert [t.name for t in recipe.resolved_tasks()] == ["recipe_shout"]
    (task,) = Recipe(task_file=str(file), tasks=["distill"], input="x").resolved_tasks()
    assert task.name == "distill"


def test_a_known_task_takes_fields_of_ones_own() -> None:
    spec = {
        "name": "distill",
        "output": "short",
        "system": None,
        "sampling": {"temperature": None, "stop": "END", "schema": {"type": "object"}},
        "budget": {"max_input_tokens": 900},
        "filters": {"min_tokens": 20, "repetition": {"max_share": 0.3}},
    }
    (task,) = Recipe(tasks=[spec], input="x").resolved_tasks()
    base = get_task("distill")
    assert isinstance(task, Task) and isinstance(base, Task)
    assert task.system is None and task.prompt == base.prompt
    assert task.output == "short" and dict(task.columns) == {"short": "string"}
    assert task.sampling.temperature is None and task.sampling.top_p == 0.9
    assert task.sampling.stop == ("END",) and task.sampling.schema == {"type": "object"}
    assert task.budget is not None and base.budget is not None
    assert task.budget.max_input_tokens == 900
    assert task.budget.max_output_tokens == base.budget.max_output_tokens
    filters = [step for step in task.clean if hasattr(step, "measure")]
    assert [f.name for f in filters] == ["min_tokens", "repetition"], "one replaced, one added"
    assert filters[0].min_tokens == 20 and filters[1].max_share == 0.3
    assert task.check is base.check and task.parse is base.parse


def test_a_new_task_is_a_prompt_and_an_output() -> None:
    task = own()
    assert task.variables == ("document",)
    assert task.budget == Budget(max_input_tokens=2000, max_output_tokens=512)
    assert task.parse("  a  ") == "a"
    listed = own(parse="list_items")
    assert listed.columns == {"summary": "list[string]"}
    assert listed.clean == (join_lines,) and listed.rows is not None
    assert own(parse={"after_prefix": "Sum:"}).parse("Sum: it") == "it"
    planned = own(
        prompt="{language} {topic}", languages=["german", "French"], weights={"German": 3}
    )
    assert planned.plan is not None
    drawn = planned.plan.rows(0, 8, total=8, seed=0)["language"]
    assert set(drawn) == {"German"}


def test_a_task_read_anew_is_not_answered_by_the_old_rule() -> None:
    (same,) = Recipe(
        tasks=[{"name": "distill", "prompt": "Shorter: {document}"}], input="x"
    ).resolved_tasks()
    (other,) = Recipe(
        tasks=[{"name": "distill", "prompt": "Of {title}."}], input="x"
    ).resolved_tasks()
    assert isinstance(same, Task) and isinstance(other, Task)
    assert same.offline is not None
    assert other.offline is None


def test_offline_has_its_own_model_and_a_real_one_is_named() -> None:
    assert Recipe(tasks="distill", input="x", endpoint="offline").model == "offline-extractive"
    with pytest.raises(RecipeError, match="offline"):
        Recipe(tasks="distill", input="x").require_endpoint()
    named = Recipe(
        tasks="distill", input="x", endpoint="http://h:1/v1", from_columns={"model": "m"}
    )
    assert named.require_endpoint() == "http://h:1/v1"


@pytest.mark.row("M15")
def test_an_endpoint_of_a_recipe_knows_where_the_key_is_and_not_the_key(monkeypatch: Any) -> None:
    monkeypatch.setenv("MY_KEY", "sk-test-secret")
    recipe = Recipe(
        tasks="distill",
        input="x",
        endpoint="http://h:1/v1",
        model="m",
        api_key_env="MY_KEY",
        timeout_s=30,
        concurrency=7,
        stream=True,
        hedge=0.02,
        group_prefixes=500,
        price_in=1,
    )
    endpoint = recipe.endpoint_for("http://h:1/v1")
    assert endpoint.key() == "sk-test-secret"
    for thing in (recipe, endpoint, recipe.identity()):
        assert b"sk-test-secret" not in pickle.dumps(thing)
        assert "sk-test-secret" not in repr(thing)
    assert "sk-test-secret" not in recipe.to_yaml()
    assert endpoint.timeouts.total_s == endpoint.timeouts.first_byte_s == 30
    assert (endpoint.limit, endpoint.stream, endpoint.price_in) == (7, True, 1)
    assert (endpoint.hedge, endpoint.group_prefixes) == (0.02, 500)


def test_every_field_is_of_one_kind_and_says_what_it_is() -> None:
    kinds = [Recipe.fields_of(kind) for kind in ("identity", "cheap", "free")]
    assert sorted(name for kind in kinds for name in kind) == sorted(Recipe.model_fields)
    assert all(field.description for field in Recipe.model_fields.values())
    assert "prompt" not in kinds[2] and "model" in kinds[0] and "endpoint" in kinds[2]


# --- written and read again -----------------------------------------------------------------------


def recipes() -> list[Recipe]:
    return [
        Recipe(tasks="nemotron-cc", input=["a.jsonl", "b"], limit=3, endpoint="offline"),
        Recipe(tasks="multilingual_qa", num_samples=5, yes=True),
        Recipe(
            tasks=[
                {
                    "name": "summary",
                    "output": "summary",
                    "prompt": "  Sum: up\n\n{document}\n# not a remark \n",
                    "system": "Yes: no",
                    "parse": {"after_prefix": "Sum:"},
                    "filters": [{"repetition": {"max_share": 0.3}}],
                    "sampling": {
                        "temperature": None,
                        "stop": ["\n\n", "END"],
                        "top_k": 3,
                        "stop_when": {"complete": r"\bEND\b", "max_characters": 900},
                    },
                },
                {
                    "name": "multilingual_qa",
                    "languages": ["Dutch", "Polish"],
                    "weights": {"Dutch": 1, "Polish": 2.5},
                    "language_mode": "random",
                },
            ],
            input="x",
            headers={"X-Team": "a"},
            from_columns={"temperature": "t"},
        ),
    ]


@pytest.mark.parametrize("number", range(3))
def test_what_was_written_is_read_again(tmp_path: Path, number: int) -> None:
    recipe = recipes()[number]
    again = load_recipe(written(tmp_path, recipe.to_yaml()))
    assert again.identity() == recipe.identity()
    assert again.cheap() == recipe.cheap()
    assert again.to_yaml() == recipe.to_yaml()
    assert difference(recipe, again) == []
    for name in set(Recipe.model_fields) - {"tasks"}:
        assert getattr(again, name) == getattr(recipe, name)


def test_a_written_recipe_holds_the_prompts_whatever_becomes_of_the_package(
    tmp_path: Path, monkeypatch: Any
) -> None:
    from nemo_sdg.tasks import registry

    old = Recipe(tasks="distill", input="x")
    path = written(tmp_path, old.to_yaml())
    task = get_task("distill")
    assert isinstance(task, Task)
    changed = {"distill": Task(name="distill", output="distill", prompt="New: {document}", doc="d")}
    monkeypatch.setattr(registry, "_tasks", registry._tasks | changed)
    found = difference(load_recipe(path), Recipe(tasks="distill", input="x"))
    assert "the prompt of distill is another" in found


BASE: dict[str, Any] = {"tasks": ["distill"], "input": "x", "model": "m", "limit": 10}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, []),
        ({"endpoint": "http://h/v1", "workers": 5, "format": "jsonl", "shape": "rows"}, []),
        ({"limit": 20}, []),
        ({"limit": None}, []),
        ({"limit": 5}, ["limit: 10 became 5"]),
        ({"model": "n"}, ["model: 'm' became 'n'"]),
        ({"seed": 1}, ["seed: 0 became 1"]),
        ({"sample": 3}, ["sample: nothing became 3"]),
        (
            {"tasks": ["knowledge_list"]},
            ["the task distill is gone", "the task knowledge_list is new"],
        ),
        (
            {"tasks": [{"name": "distill", "sampling": {"temperature": 0.7}}]},
            ["temperature of distill: 0.5 became 0.7"],
        ),
        (
            {"tasks": [{"name": "distill", "system": "Hi"}]},
            ["the system prompt of distill is another"],
        ),
        (
            {"tasks": [{"name": "distill", "budget": {"max_input_tokens": 900}}]},
            ["max_input_tokens of distill: 2000 became 900"],
        ),
        ({"tasks": [{"name": "distill", "filters": {"min_tokens": 3}, "output": "d"}]}, []),
    ],
)
def test_differences_are_named(changes: dict[str, Any], wanted: list[str]) -> None:
    assert difference(Recipe(**BASE), Recipe(**(BASE | changes))) == wanted


def test_what_is_cheap_shows_where_identity_does_not() -> None:
    old = Recipe(**BASE)
    for changes in (
        {"format": "jsonl"},
        {"tasks": [{"name": "distill", "filters": {"min_tokens": 3}}]},
        {"tasks": [{"name": "distill", "output": "d"}]},
        {"tasks": [{"name": "distill", "parse": "plain_text"}]},
    ):
        assert Recipe(**(BASE | changes)).cheap() != old.cheap()
    assert Recipe(**(BASE | {"workers": 9})).cheap() == old.cheap()
    assert difference(old, Recipe(**(BASE | {"input": "y"})), ignore={"input"}) == []


def test_replace_checks_like_a_new_recipe() -> None:
    recipe = Recipe(**BASE)
    assert recipe.replace(limit=3).limit == 3
    with pytest.raises(RecipeError, match="limit"):
        recipe.replace(limit=0)


# --- recipes to begin with ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*all_tasks(), "nemotron-cc"])
def test_the_starter_recipe_of_every_task_loads_and_changes_nothing(
    tmp_path: Path, name: str
) -> None:
    text = starter_recipe(name)
    recipe = load_recipe(written(tmp_path, text))
    wanted = FIVE if name == "nemotron-cc" else [name]
    assert recipe.resolved_tasks() == [get_task(task) for task in wanted]
    for field in Recipe.model_fields.keys() - {"input", "num_samples"}:
        assert re.search(rf"^(# )?{field}:", text, re.MULTILINE), f"{field} is not in it"
    defaults = {k: f.get_default(call_default_factory=True) for k, f in Recipe.model_fields.items()}
    given = {"tasks", "input", "endpoint", "model"}
    assert {k: v for k, v in recipe if k not in given} == {
        k: v for k, v in defaults.items() if k not in given
    }


def test_a_starter_recipe_without_its_marks_still_loads(tmp_path: Path) -> None:
    text = re.sub(r"^    #( |$)", "    ", starter_recipe("distill"), flags=re.M)
    text = re.sub(r"^# ([a-z_]+: )", r"\1", text, flags=re.M)
    assert "\nseed: 0\n" in text and "\n    prompt: |" in text
    recipe = load_recipe(written(tmp_path, text))
    assert difference(Recipe(tasks="distill", input=recipe.input, endpoint="offline"), recipe) == []


def test_there_is_no_starter_recipe_for_an_unknown_task() -> None:
    with pytest.raises(RecipeError, match="did you mean 'distill'"):
        starter_recipe("distil")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_example_recipes_load(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.resolved_tasks() and recipe.endpoint == "offline"
    assert all(Path(name).parent.exists() for name in recipe.input)
