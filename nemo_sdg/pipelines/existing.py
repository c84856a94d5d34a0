"""A run folder that is there: with which settings it was made, and what has changed since."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_sdg.errors import RunFolderError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.pipelines.begin import changes_since, check_tokenizer, named_endpoint
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.job import choose_tokenizer, fingerprint_inputs, own_tokenizer
from nemo_sdg.pipelines.recipe import Recipe, load_recipe
from nemo_sdg.pipelines.tokenize_route import NAME as TOKENIZE_ROUTE
from nemo_sdg.text.tokens import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Existing:
    """A run folder and what it was begun with.

    Attributes:
        changes: how input and tasks differ from then, in words; none where they do not.
    """

    folder: RunFolder
    recipe: Recipe
    state: dict[str, Any]
    inputs: list[dict[str, Any]]
    changes: list[str]

    @property
    def ledger(self) -> str:
        """Where its answers are filed."""
        return self.recipe.ledger or self.folder.ledger

    def endpoint(self) -> Endpoint:
        """Return the endpoint that was asked, for its model and prices; it may be gone."""
        return named_endpoint(self.recipe)

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer that cut its texts; no endpoint is asked but one that counted them.

        Raises:
            RunFolderError: it is another one that this machine has.
        """
        recipe, counted = self.recipe, self.state.get("tokenizer")
        if recipe.endpoint and counted and counted["name"].endswith(f"({TOKENIZE_ROUTE})"):
            endpoint = self.endpoint()
            tokenizer = choose_tokenizer(recipe, endpoint, is_offline=False)
            if counted["fingerprint"] != tokenizer.fingerprint:
                raise RunFolderError(
                    f"its texts were cut by the token counts of {endpoint.host}, which does not "
                    "count them now: have that server answer again (with its key, if it wants "
                    "one), or begin a new run with --tokenizer, which needs no server"
                )
        else:
            tokenizer = own_tokenizer(recipe)
        check_tokenizer(self.state, tokenizer)
        return tokenizer


def open_existing(path: str | Path) -> Existing:
    """Read the settings of a run folder, and compare input and tasks with those of then.

    Raises:
        RunFolderError: it is none.
        ConfigurationError: its input or task file is gone.
    """
    place = Path(path).expanduser().resolve()
    if not os.path.exists(place / "recipe.yaml"):
        raise RunFolderError(f"{place} is no run folder: it holds no recipe.yaml")
    recipe = load_recipe(place / "recipe.yaml")
    folder = RunFolder(place, recipe.format)
    inputs = fingerprint_inputs(recipe)
    changed, new = changes_since(folder, recipe, inputs)
    if new:
        changed.append(f"there are new input files: {', '.join(new[:3])}")
    return Existing(
        folder=folder,
        recipe=recipe,
        state=folder.read_json("state.json") or {},
        inputs=inputs,
        changes=changed,
    )
