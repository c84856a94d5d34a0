"""Condense five articles with the built-in endpoint: `python examples/quickstart.py`.

A second call finds the run folder complete and asks nothing.
"""

from pathlib import Path

from nemo_sdg import DocumentDataset, Recipe, run

ARTICLES = str(Path(__file__).parent / "data" / "articles-en.jsonl")

if __name__ == "__main__":  # `run` starts worker processes, and they import this file
    recipe = Recipe(tasks=["distill"], input=[ARTICLES], limit=5, endpoint="offline")
    result = run(recipe, "quickstart-run")
    rows = DocumentDataset.read(str(result.data_folders["distill"])).to_pandas()

    for title, text in zip(rows["title"], rows["distill"], strict=True):
        print(f"{title}\n    {text[:90]}\n")
    print(f"{len(rows)} rows in {result.folder}; with a real model they would be worth training on")
