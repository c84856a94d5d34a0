"""What does kill -9 cost, and is the output the same afterwards?

    python benchmarks/kill_and_resume.py [--quick] [--rows 1000]

`nemo-sdg run` against a server that takes 0.1 s (lognormal), 64 slots, two workers. A worker, the
scheduler with the client, or everything is killed when 20, 50 or 80 % of the rows are answered;
then the same command runs again (where a worker was killed, the first goes on by itself). One line
each: how many requests were sent twice, how many of these had been answered before, and whether
the output equals that of a run without a kill.
"""

from __future__ import annotations

from rig import command, served, work
from rig.report import emit, options

from nemo_sdg.llm.faults import lognormal
from nemo_sdg.llm.scripted import ScriptedEndpoint

SLOTS = 64
SHARES = (0.2, 0.5, 0.8)
WHAT = ("worker", "scheduler", "everything")


def main() -> None:
    given = options(__doc__, lambda p: p.add_argument("--rows", type=int, default=1000))
    count = 600 if given.quick else given.rows
    shares = (0.5,) if given.quick else SHARES
    with (
        ScriptedEndpoint.start_process(latency=lognormal(0.1), keeps_bodies=False) as server,
        work.folder() as folder,
    ):
        source = work.write_documents(folder / "in.jsonl", work.prompts(count))
        recipe = work.recipe(source, server.url, rows=100, slots=SLOTS, workers=2)
        code, error = command.Command(recipe, folder / "undisturbed").ended()
        assert code == 0, error
        wanted = command.output_of(folder / "undisturbed")
        for what in WHAT:
            for share in shares:
                server.clear_log()
                out = folder / f"{what}-{share}"
                first = command.Command(recipe, out)
                kill = getattr(first, f"kill_{what}")
                moment = command.at_share(server, first, round(share * count), kill)
                code, error = first.ended()
                codes = [code]
                while code and len(codes) < 3:
                    code, error = command.Command(recipe, out).ended()
                    codes.append(code)
                log = served.asked(server.log)
                in_flight, twice, filed = command.asked_again(log, moment)
                emit(
                    "kill_and_resume",
                    met={
                        "it ends": code == 0,
                        "equal output": code == 0 and command.output_of(out) == wanted,
                        "no filed answer asked again": filed == 0,
                        "at most in flight + 1%": len(log) - count <= in_flight + count / 100,
                    },
                    killed=what,
                    at_share=share,
                    rows=count,
                    slots=SLOTS,
                    exit_codes=codes,
                    requests=len(log),
                    in_flight_at_kill=in_flight,
                    sent_twice=twice,
                    filed_and_asked_again=filed,
                    error=error[-300:] if code else "",
                )


if __name__ == "__main__":
    main()
