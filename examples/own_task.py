"""A task of one's own, on one's own data frame: `python examples/own_task.py`.

The same task on a cluster, with splitting, accounting and resume:

    nemo-sdg run headline --task-file examples/own_task.py --input 'examples/data/*.jsonl' \
        --endpoint offline --output headlines
"""

from pathlib import Path

from nemo_sdg import Budget, DocumentDataset, Endpoint, Generate, Sampling, Task, serve_offline
from nemo_sdg.errors import ParseError

ARTICLES = Path(__file__).parent / "data" / "articles-en.jsonl"


def first_sentence(answer: str) -> str:
    """Return the answer's first sentence; a very long one is a reason, not a headline."""
    sentence = answer.strip().splitlines()[0].partition(". ")[0].rstrip(".")
    if len(sentence) > 160:
        raise ParseError("too_long", f"{len(sentence)} characters")
    return sentence


headline = Task(
    name="headline",
    output="headline",
    prompt="Write a headline for this article, in its own language:\n\n{document}",
    parse=first_sentence,
    sampling=Sampling(temperature=0.7, top_p=0.95),
    budget=Budget(max_input_tokens=4000, max_output_tokens=1000, min_document_tokens=20),
    doc="Write a headline for an article.",
)

if __name__ == "__main__":
    articles = DocumentDataset.read_json(str(ARTICLES), columns=["id", "title", "text"])
    few = DocumentDataset.from_pandas(articles.head(12), npartitions=3)

    with serve_offline() as server:  # or Endpoint(url="http://localhost:8000/v1", model="NAME")
        endpoint = Endpoint(url=server.url, model="offline-extractive")
        rows = Generate(headline, endpoint)(few).to_pandas()  # a null, and why, where a row failed

    lines = rows["headline"].fillna("(none: " + rows["headline_error"] + ")")
    print("\n".join(rows["title"] + ": " + lines))
