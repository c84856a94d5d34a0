"""Questions and answers from nothing, in five languages.

Run it: `python examples/multilingual_quickstart.py`. For a real model, in place of "offline":
endpoint="http://localhost:8000/v1", model="NAME".
"""

from nemo_sdg import DocumentDataset, Recipe, run

LANGUAGES = ["English", "French", "German", "Italian", "Spanish"]

if __name__ == "__main__":  # `run` starts worker processes, and they import this file
    task = {"name": "multilingual_qa", "languages": LANGUAGES}
    result = run(Recipe(tasks=[task], num_samples=20, endpoint="offline"), "multilingual-run")
    rows = DocumentDataset.read(str(result.data_folders["multilingual_qa"])).to_pandas()

    for row in rows.sort_values("language").itertuples():
        print(f"[{row.language}] {row.question}\n    {row.answer}")
    print(rows["language"].value_counts().to_string())
