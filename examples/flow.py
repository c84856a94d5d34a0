"""Several questions a row, the second made of the first's answer: `python examples/flow.py`.

A flow yields what it asks and never waits; the stage runs thousands of them at a time, so that a
slow row holds no other one back. A list is asked at the same time.
"""

from pathlib import Path

from nemo_sdg import (
    DocumentDataset,
    Endpoint,
    Generate,
    Request,
    Sampling,
    chat,
    flow,
    serve_offline,
)
from nemo_sdg.llm.drive import Flow

ARTICLES = Path(__file__).parent / "data" / "articles-en.jsonl"
STEADY = Sampling(temperature=0.0, max_output_tokens=1000)


def ask(words: str, text: str) -> Request:
    """Return one question about a text."""
    return Request(messages=chat(None, f"{words}\n\nText:\n{text}"), sampling=STEADY)


@flow(
    output="summary",
    columns={"summary": "string", "title_idea": "string", "open_question": "string"},
    doc="Sum a document up; then a title and an open question for the summary.",
)
def summary_with_title(document: str) -> Flow:
    """Ask twice: the summary first, then two things about it at the same time."""
    summary = yield ask("Sum this text up in five sentences.", document)
    title, question = yield [
        ask("Give this text a title.", summary.text),
        ask("Which question does this text leave open?", summary.text),
    ]
    return summary.text, title.text, question.text


if __name__ == "__main__":
    articles = DocumentDataset.read_json(str(ARTICLES), columns=["id", "title", "text"])
    few = DocumentDataset.from_pandas(articles.head(6), npartitions=2)

    with serve_offline() as server:
        endpoint = Endpoint(url=server.url, model="offline-extractive")
        rows = Generate(summary_with_title, endpoint)(few).to_pandas()

    for row in rows.dropna(subset="summary").itertuples():
        print(f"{row.title}: {len(row.summary)} characters\n    {row.title_idea[:80]}")
    print(f"{rows['summary_error'].notna().sum()} of {len(rows)} rows failed; 3 requests a row")
