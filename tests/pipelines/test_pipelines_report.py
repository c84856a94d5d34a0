"""`report.html`: what it says, that nothing in it can act, and how it looks in a browser."""

from __future__ import annotations

import html
import html.parser
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import run_rig as rig
from click.testing import CliRunner

from nemo_sdg.cli.main import app
from nemo_sdg.errors import RunFolderError, TooManyFailures
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.llm.tries import TryLog
from nemo_sdg.llm.usage import Usage
from nemo_sdg.pipelines import report
from nemo_sdg.pipelines import report_sections as sections
from nemo_sdg.pipelines import report_words as words
from nemo_sdg.pipelines.charts import (
    Tick,
    apart,
    log_place,
    log_steps,
    nice_steps,
    stairs,
    time_steps,
)
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.report import gather, write_report
from nemo_sdg.pipelines.report_samples import MOST_CHARACTERS, samples_of, visible
from nemo_sdg.pipelines.report_sections import funnel
from nemo_sdg.pipelines.run import run

HOSTILE = "</div><script>alert(1)</script><img src=x onerror=alert(2)>\u202eoffer\u2066\x1b[31m"
RULES = [
    (r"number \d*[05] is", HOSTILE),
    (r"number \d*7 is", {"text": None, "refusal": "no"}),
]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


class Page(html.parser.HTMLParser):
    """Collects what a page is made of."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "line", "rect", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def made(client: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with hostile answers and dead letters; it was moved since."""
    place = tmp_path_factory.mktemp("report")
    source = rig.documents(place / "in.jsonl", range(60))
    with ScriptedEndpoint.start_process(rules=RULES) as server:
        task = rig.SUMMARY | {"filters": {"min_tokens": 2}}
        recipe = rig.recipe_for(server.url, source, tasks=[task], partition_size="4KB")
        run(recipe, place / "run <b>one", client=client)
    (place / "run <b>one").rename(place / "moved <i>run")
    return place / "moved <i>run"


@pytest.mark.cluster
def test_a_run_leaves_a_report_that_says_what_it_did(made: Path) -> None:
    assert (made / "report.html").stat().st_mode & 0o777 == 0o600
    page = Page(Path(write_report(RunFolder(made))).read_text())
    told_by_run = rig.report(made)
    counts, total = told_by_run["counts"]["summary"], told_by_run["metrics"]["total"]
    assert counts["dead.refused"] == 6 and told_by_run["exit_code"] == 4
    text = " ".join(page.text.split())
    for told in (
        "Complete, with gaps",
        "documents in 60 segments 60 asked about 60 refused −6 parsed 54",
        f"{total['sent']:,}",
        f"{total['tokens']['input_tokens']:,}",
        "the model declined",
        "dead letter refused",
        "127.0.0.1",
        f"nemo-sdg {told_by_run['versions']['nemo_sdg']}",
        rig.MODEL,
        "moved <i>run",
    ):
        assert told in text, told
    assert "unknown" in text and "cost 0" not in text
    titles = [title for title in page.named("svg") if title.get("role") == "img"]
    assert len(titles) >= 4 and all(title["aria-label"] for title in titles)
    # A table behind each drawing: those with a role, and bars, which are hidden from readers.
    number = len(page.named("figure"))
    assert number + 1 == len(page.named("details"))
    assert number + 2 == len(page.named("caption")), "and the two tables of all tasks"
    assert page.named("html") == [{"lang": "en"}]


@pytest.mark.cluster
def test_nothing_in_it_can_act_or_ask(made: Path) -> None:
    text = Path(write_report(RunFolder(made))).read_text()
    page = Page(text)
    assert "<script>alert(1)</script>" in page.text, "it is shown, as text"
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "base", "form", "a", "i", "b"}
    attributes = {name for _, found in page.tags for name in found}
    assert not [name for name in attributes if name.startswith("on")]
    assert not attributes & {"src", "href", "srcset", "action", "data", "poster"}
    assert "url(" not in text and "@import" not in text and "//" not in text.replace("://", "")
    policy = [m.get("content") for m in page.named("meta") if m.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert not set(text) & set("\u202e\u2066\x1b")
    assert "\\u202eoffer\\u2066\\x1b[31m" in page.text


@pytest.mark.cluster
def test_samples_can_be_left_out(made: Path, tmp_path: Path) -> None:
    folder = RunFolder(made)
    assert "Text number" in Path(write_report(folder)).read_text()
    runner = CliRunner()
    done = runner.invoke(app, ["report", str(made), "--no-samples"])
    assert done.exit_code == 0 and done.output.strip() == str(made / "report.html")
    text = (made / "report.html").read_text()
    assert "Text number" not in text and "Samples" not in text and "offer" not in text
    recipe = (made / "recipe.yaml").read_text()
    assert "no_samples: false" in recipe
    try:
        (made / "recipe.yaml").write_text(recipe.replace("no_samples: false", "no_samples: true"))
        assert "Text number" not in Path(write_report(folder)).read_text()
    finally:
        (made / "recipe.yaml").write_text(recipe)
    with pytest.raises(RunFolderError, match=r"no recipe\.yaml"):
        write_report(RunFolder(tmp_path))
    missing = runner.invoke(app, ["report", str(tmp_path / "nothing")])
    assert missing.exit_code == 2 and "no run folder" in missing.output


@pytest.mark.cluster
def test_a_run_that_stopped_leaves_one_too(client: Any, tmp_path: Path) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(100))
    with ScriptedEndpoint(rules=[("number", {"text": None, "refusal": "no"})]) as server:
        recipe = rig.recipe_for(server.url, source)
        with pytest.raises(TooManyFailures):
            run(recipe, tmp_path / "out", client=client)
    text = " ".join(Page((tmp_path / "out" / "report.html").read_text()).text.split())
    told_by_run = rig.report(tmp_path / "out")
    assert told_by_run["exit_code"] == 3
    assert "Stopped: too many failures" in text and "Run the same command again" in text
    assert f"{told_by_run['metrics']['total']['sent']:,}" in text
    assert "parts are finished" in text


# --- in a browser ---------------------------------------------------------------------------------


def browse(path: Path, width: int, *more: str, scratch: Path) -> str:
    """Open a page in headless Chromium; return what it prints."""
    assert CHROMIUM is not None
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *(
            "--disable-sync",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            f"--user-data-dir={scratch}",
        ),
        *(f"--window-size={width},1200", *more, path.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout + "\n".join(x for x in done.stderr.splitlines() if "CONSOLE" in x)


def measured(page: str, width: int, tmp_path: Path) -> dict[str, Any]:
    """Open a report in a frame of this width and return what a script beside it measures.

    Chromium's own window is at least 500 wide, so the width is that of a frame. A script may look
    into it since both are one document's: the report itself runs none.
    """
    outer = tmp_path / f"outer-{width}.html"
    outer.write_text(
        f"<iframe id=f style='width:{width}px;height:900px;border:0' "
        f'srcdoc="{html.escape(page)}">'
        "</iframe><pre id=out></pre><script>f.onload = () => { const d = f.contentDocument, "
        "e = d.documentElement; d.querySelectorAll('details').forEach(x => x.open = true); "
        "out.textContent = JSON.stringify({wide: e.scrollWidth, width: e.clientWidth, "
        "cards: d.querySelectorAll('.card').length, shown: d.body.innerText.length, "
        "cut: [...d.querySelectorAll('.wide')].filter(x => x.scrollWidth > x.clientWidth).length, "
        "met: (boxes => boxes.filter((a, i) => boxes.some((b, j) => j > i && a.left < b.right && "
        "b.left < a.right && a.top < b.bottom && b.top < a.bottom)).length)("
        "[...d.querySelectorAll('.across span')].map(x => x.getBoundingClientRect())"
        ".filter(x => x.width)), "
        "acted: Boolean(f.contentWindow.acted), requests: "
        "f.contentWindow.performance.getEntriesByType('resource').length}); }</script>"
    )
    printed = browse(outer, max(width, 800), "--dump-dom", scratch=tmp_path / f"profile-{width}")
    found = re.search(r'<pre id="out">(.*?)</pre>', printed)
    assert found, printed[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


@pytest.mark.cluster
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_in_a_browser_it_is_quiet_and_fits_a_phone(made: Path, tmp_path: Path) -> None:
    path = Path(write_report(RunFolder(made)))
    plain = tmp_path / "report.html"
    plain.write_text(path.read_text())
    assert "CONSOLE" not in browse(plain, 1280, "--dump-dom", scratch=tmp_path / "profile")
    for width in (390, 1280):
        found = measured(plain.read_text(), width, tmp_path)
        assert found["width"] == width
        assert found["wide"] <= found["width"], "it scrolls sideways"
        assert not found["cut"], "a table is cut at its right"
        assert not found["met"], "labels of an axis overlap"
        assert found["cards"] >= 8 and found["shown"] > 1500
        assert not found["acted"] and found["requests"] == 0


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_check_for_the_browser_sees_what_is_wrong(tmp_path: Path) -> None:
    bad = "<body style='margin:0'><script>window.acted = 1</script><p style='width:700px'>wide</p>"
    bad += "<div class=wide style='overflow:auto'><p style='width:900px'>table</p></div>"
    bad += "<p class=across><span>50 ms</span><span style='margin-left:-9px'>100 ms</span></p>"
    found = measured(bad, 390, tmp_path)
    assert found["wide"] > found["width"] and found["acted"]
    assert (found["cut"], found["met"]) == (1, 1)
    noisy = tmp_path / "noisy.html"
    noisy.write_text("<script>console.error('wrong')</script>")
    assert "CONSOLE" in browse(noisy, 800, "--dump-dom", scratch=tmp_path / "profile")


def test_words_stand_out_from_what_is_behind_them_by_day_and_by_night() -> None:
    """WCAG: 4.5 to 1 for text, 3 to 1 for what is drawn."""
    folder = Path(report.__file__).parent
    style = (folder / "report.html.j2").read_text()
    themes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in style.split(":root {")[1:3]
    ]
    pairs = {
        "text": ("page", "card"),
        "soft": ("page", "card"),
        "link": ("card",),
        "good": ("good-back",),
        "fair": ("fair-back",),
        "bad-text": ("bad-back",),
        "open": ("open-back",),
    }
    for theme in themes:
        assert len(theme) >= 20
        for front, backs in pairs.items():
            for back in backs:
                assert contrast(theme[front], theme[back]) >= 4.5, (front, back)
        for drawn in ("one", "three", "four", "bad"):
            assert contrast(theme[drawn], theme["card"]) >= 3, drawn
        assert contrast(theme["bad"], theme["two"]) >= 1.8, "failures are drawn over answers"
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dark + 0.05)


# --- the parts ------------------------------------------------------------------------------------


def test_every_end_of_a_run_says_what_to_do_next() -> None:
    parts = {"a": (3, 4), "b": (4, 4)}
    ends: dict[str, dict[str, Any]] = {
        "good": {"status": "complete", "exit_code": 0},
        "fair": {"status": "stopped", "exit_code": 3, "reason": "EndpointDown", "detail": "Gone"},
        "open": {"status": "running"},
        "bad": {"status": "failed", "exit_code": 1, "reason": "KeyError", "detail": "'x'"},
    }
    for kind, end in ends.items():
        found = words.ending(end, parts)
        assert found.kind == kind and found.words and found.next
    assert words.ending(ends["fair"], parts).detail == "Gone. 7 of 8 parts are finished."
    assert words.ending(ends["fair"], parts).words == "Stopped: endpoint down"
    interrupted = {"status": "stopped", "exit_code": 130, "reason": "KeyboardInterrupt"}
    assert words.ending(interrupted, {}).words == "Interrupted"
    assert words.ending({"status": "failed", "exit_code": 2}, {}).words == "Not run: wrong input"
    assert words.ending({"status": "complete", "exit_code": 4}, parts).kind == "fair"


def test_numbers_in_words() -> None:
    assert [words.short(n) for n in (0, 7, 0.25, 9999, 12345, 5_600_000, 7.2e9)] == [
        "0", "7", "0.25", "9,999", "12.3 k", "5.6 M", "7.2 G",
    ]  # fmt: skip
    assert [words.seconds(s) for s in (0.0123, 4.5, 60, 75, 3600, 3900)] == [
        "12.3 ms", "4.5 s", "1 min", "1 min 15 s", "1 h", "1 h 5 min",
    ]  # fmt: skip
    assert [words.share(n, 1000) for n in (0, 0.2, 4, 500, 999.99, 1000)] == [
        "0 %", "0.1 %", "0.4 %", "50 %", "99.9 %", "100 %",
    ]  # fmt: skip
    assert words.share(1, 0) == "0 %"
    assert [words.money(c) for c in (None, 0.0, 0.00123, 12.3)] == [
        "unknown", "0.00", "0.00123", "12.30",
    ]  # fmt: skip


def test_words_stay_with_their_numbers() -> None:
    kept = {
        "99.6 % of 553 segments": "99.6~% of 553 segments",
        "p95 199 ms, p99 2 min 3 s": "p95~199~ms, p99~2~min 3~s",
        "refused −80, empty −3": "refused~−80, empty~−3",
        "12.3 k in, 4 M out, 7 months": "12.3~k in, 4~M out, 7 months",
    }
    for text, expected in kept.items():
        assert words.whole(text) == expected.replace("~", "\u00a0")
    assert [words.many(n, "answer") for n in (0, 1, 1200)] == [
        "0 answers",
        "1 answer",
        "1,200 answers",
    ]
    assert words.many(2, "retry", "retries") == "2 retries"


def test_times_on_an_axis_are_round() -> None:
    told = {
        1.4: ["0 ms", "250 ms", "500 ms", "750 ms", "1 s", "1.25 s"],
        150: ["0 ms", "30 s", "1 min", "1 min 30 s", "2 min", "2 min 30 s"],
        7200: ["0 ms", "30 min", "1 h", "1 h 30 min", "2 h"],
        90_000: ["0 ms", "6 h", "12 h", "18 h", "24 h"],
    }
    for length, expected in told.items():
        assert [words.seconds(step) for step in time_steps(length)] == expected
    for length in (0.01, 59.9, 60, 61, 3599, 86_400, 1e6, 1e7):
        steps = time_steps(length)
        assert steps[0] == 0 and 3 <= len(steps) <= 7 and steps[-1] <= length * 1.001


def test_labels_of_an_axis_stand_apart() -> None:
    ticks = [Tick(at=at, label="1 h 20 min") for at in (0, 30, 50, 53, 70, 99)]
    found = apart(ticks)
    assert [(t.at, t.is_spare) for t in found] == [
        (0, False), (30, True), (50, False), (70, True), (99, False),
    ]  # fmt: skip
    assert apart(ticks[::-1])[0].at == 99, "what stands first stays"


def test_tasks_stand_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.make()
    folder.write_text("recipe.yaml", "tasks: [{name: b}, {name: a}]\nmodel: m\n")
    folder.write_text("run.json", json.dumps({"status": "stopped", "parts": {"b": 1, "a": 1}}))
    log = TryLog(folder.tries)
    for task in ("a", "b", "c"):
        log.put(task, time.perf_counter() - 0.2, Usage(input_tokens=1, output_tokens=1), cost=None)
    log.flush()
    facts = gather(folder)
    assert list(facts.metrics.tasks) == ["b", "a", "c"]
    tables = sections.metric_tables(facts.metrics)
    assert [row[0] for row in tables["Tokens and cost"].rows] == ["b", "a", "c", "all tasks"]
    assert tables["Tokens and cost"].head == ["task", "tokens in", "tokens out", "cost", "wasted"]


def test_axes_have_round_steps() -> None:
    assert nice_steps(97) == [0, 25, 50, 75, 100]
    assert nice_steps(0.3) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert nice_steps(0) == [0, 1] and nice_steps(1) == [0, 0.25, 0.5, 0.75, 1]
    for top in (1e-5, 3, 7.7, 41, 100_000, 123_456_789):
        steps = nice_steps(top)
        assert steps[0] == 0 and steps[-1] >= top * 0.999 and len(steps) <= 5
    assert log_steps(0.04, 1.1) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1])
    assert log_steps(0.001, 1000) == pytest.approx([10.0**n for n in range(-3, 4)])
    assert (log_place(1, 0.1, 10), log_place(5, 5, 5)) == (50, 0)


def test_stairs_stay_in_their_box() -> None:
    assert stairs([0, 5, 5, 20], 10) == "M0 100H250V50H500H750V0H1000"
    assert stairs([10.0], 10, is_area=True) == "M0 0H1000V100H0Z"
    assert stairs([], 1) == "" and stairs([1], 0).startswith("M0 100")


def test_a_funnel_tells_what_was_lost_where() -> None:
    counts = {
        "documents.complete": 5, "documents.filtered": 2, "documents.filtered.quality_high": 2,
        "segments": 20, "asked": 18, "filtered.min_segment_tokens": 2, "dead.length": 3,
        "filtered.min_tokens": 4, "kept": 11, "rows": 30,
    }  # fmt: skip
    chart = funnel("t", counts)
    assert [(bar.label, bar.value) for bar in chart.bars] == [
        ("documents in", "7"), ("segments", "20"), ("asked about", "18"), ("parsed", "15"),
        ("kept", "11"), ("rows out", "30"),
    ]  # fmt: skip
    notes = [row[2] for row in chart.table.rows]
    assert notes == [
        "quality_high −2",
        "min_segment_tokens −2",
        "length −3",
        "min_tokens −4",
        "",
        "",
    ]
    assert max(piece.share for bar in chart.bars for piece in bar.pieces) == 100


def test_invisible_characters_are_made_visible_and_scripts_stay_whole() -> None:
    assert visible("a\u202eb\u200f\ufeff\x00\ud800") == "a\\u202eb\\u200f\\ufeff\\x00\\ud800"
    for kept in ("line\nand\ttab", "نمی\u200cخواهم", "👩\u200d🚀", "é 中文 <b>"):
        assert visible(kept) == kept


@pytest.mark.parametrize("file_format", ["parquet", "jsonl", "jsonl.gz", "jsonl.zst"])
def test_samples_come_of_every_format_and_are_cut(tmp_path: Path, file_format: Any) -> None:
    import pandas as pd

    folder = RunFolder(tmp_path, file_format)
    folder.make()
    frame = pd.DataFrame(
        {"id": ["a", "b", "c"], "text": ["x" * 5000, "y", "z"], "o": ["1", "2", None]}
    )
    summary = {"fingerprint": "f", "ended": 1.0, "number": 0, "counts": {}}
    tables: dict[str, list[dict[str, Any]]] = {"dropped": [], "dead_letters": [], "provenance": []}
    folder.write_part("t", 0, frame, tables, schema=None, is_only=False, summary=summary)
    found = samples_of(folder, {"t": ["o", "absent"]}, {"text_field": "text"})
    assert [(row.id, row.outputs) for row in found] == [("a", {"o": "1"}), ("b", {"o": "2"})]
    assert len(found[0].source) == MOST_CHARACTERS + 2 and found[1].source == "y"


def test_samples_name_the_segment_and_leave_the_source_out(tmp_path: Path) -> None:
    import pandas as pd

    folder = RunFolder(tmp_path)
    folder.make()
    source = "x" * 5000
    frame = pd.DataFrame({"id": ["a", "b"], "text": [source, "y"], "o": [f"{source}\n\nQ", "y"]})
    frame = frame.assign(segment_id=[3, 0], num_segments=[4, 1])
    summary = {"fingerprint": "f", "ended": 1.0, "number": 0, "counts": {}}
    tables: dict[str, list[dict[str, Any]]] = {"dropped": [], "dead_letters": [], "provenance": []}
    for task in ("t", "u"):
        folder.write_part(task, 0, frame, tables, schema=None, is_only=False, summary=summary)
    found = samples_of(folder, {"u": ["o"], "t": ["o"]}, {"text_field": "text"})
    assert [(row.task, row.id) for row in found] == [
        ("u", "a, segment 3"), ("u", "b"), ("t", "a, segment 3"), ("t", "b"),
    ]  # fmt: skip
    assert [row.outputs for row in found[:2]] == [{"o, after the source": "Q"}, {"o": "y"}]


def test_a_run_under_way_can_be_looked_at(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.make()
    folder.write_text("recipe.yaml", "tasks: [{name: t}]\nmodel: m\nprice_in: 1\nprice_out: 2\n")
    log = TryLog(folder.tries)
    for _ in range(30):
        usage = Usage(input_tokens=100_000, output_tokens=50_000)
        log.put("t", time.perf_counter() - 0.2, usage, cost=0.2)
    log.flush()
    text = " ".join(Page(Path(write_report(folder)).read_text()).text.split())
    assert "Not ended" in text and "No part is finished yet" in text
    assert "cost6.00" in text and "4.5 M" in text
