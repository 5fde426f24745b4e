"""The hostile list against our download stage and img2dataset: faults survived, memory on bombs, manners.

    python -m benchmarks.hostile [--cache FOLDER] [--only ours|img2dataset]

Both get the same rows, each fault under a host name of its own, with default limits (img2dataset: its defaults with 2
retries, as ours). `benchmarks/faults.py` says what counts as survived. The server and its canaries are the tests' own.
"""

import argparse
import io
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.bombs import BOMBS, bomb
from benchmarks.faults import MOST_HELD_S, RETRIES, Fault, faults
from benchmarks.fidelity import members
from benchmarks.harness import HERE, stamp
from benchmarks.measure import MOST_MIB, Cost, measure
from mmdata.stages.download import Download
from tests.net.behaviours import jpeg
from tests.net.hostile import SUFFIX, HostileServer, hostile_server, http

WHO = ("ours", "img2dataset")
# Rows that may be tried again are so in later passes too, after all others; a host's breaker ends that.
PASSES = {"ours": Download.model_fields["passes"].default, "img2dataset": 1}
TIMEOUT_S = 420.0
MANNERS_ROWS = 60
# Above what one healthy picture needs: two times the cap on a body, and as much again for what processes add by chance.
MOST_RISE_MIB = 128.0


@dataclass(frozen=True)
class Verdict:
    """What came of one fault: `why` is empty when it was survived."""

    who: str
    ident: str
    what: str
    why: str


@dataclass(frozen=True)
class Manners:
    """How one host with many rows, hosts that ask to wait, and opt-outs were treated."""

    who: str
    peak_connections: int
    shortest_gap_s: float
    requests_after_opt_out: int
    retry_after_violations: int


def download(who: str, server: HostileServer, urls: list[str], folder: Path) -> tuple[Cost, dict[str, bytes]]:
    """Download a list with one of the two; return its cost and the pictures stored, by url."""
    folder.mkdir()
    table = pa.table({"url": urls, "text": [f"row {number}" for number in range(len(urls))]})
    pq.write_table(table, folder / "list.parquet")
    (folder / "catalog.yaml").write_text("entries:\n  web: {files: [list.parquet]}\n", encoding="utf-8")
    size = {"image_size": 256, "resize_mode": "keep_ratio_largest"}
    if who == "ours":
        command = [sys.executable, "-m", "benchmarks.jobs", "ours"]
        options = {
            "catalog": str(folder / "catalog.yaml"), "partition_rows": 10_000, "stage": size, "allow": server.allow,
            "run_dir": str(folder / "out"), "workers": 1,
        }  # fmt: skip
    else:
        rule = f".{SUFFIX}={server.allow[0]}"
        command = ["env", f"BENCH_HOSTS={rule}", sys.executable, str(HERE / "peers/img2dataset_download.py")]
        options = size | {
            "url_list": str(folder / "list.parquet"), "input_format": "parquet", "url_col": "url", "caption_col": "text",
            "output_format": "webdataset", "output_folder": str(folder / "out"), "processes_count": 1, "thread_count": 64,
            "retries": RETRIES, "enable_wandb": False,
        }  # fmt: skip
    (folder / "options.json").write_text(json.dumps(options), encoding="utf-8")
    cost, _ = measure([*command, str(folder / "options.json")], TIMEOUT_S)
    return cost, dict(members(folder))


def network(who: str, folder: Path) -> tuple[list[Verdict], Manners]:
    """Run the list of faults, then many rows of one host; judge both."""
    local = folder / "local.jpg"
    local.write_bytes(jpeg())
    with hostile_server() as server:
        rows = faults(server, str(local))
        cost, stored = download(who, server, [row.url for row in rows], folder / f"{who}-list")
        named = {row: row.what.replace(f":{server.port}", "") for row in rows}
        verdicts = [Verdict(who, row.ident, named[row], _judge(who, row, server, stored)) for row in rows]
        verdicts.append(Verdict(who, "I10", "the whole list ends", "" if cost.ended else f"stopped after {TIMEOUT_S:.0f} s"))
        opted = sum(max(0, len(_asked(row, server)) - 1) for row in rows if row.opt_out)
        early = sum("before" in verdict.why for verdict in verdicts)
    with hostile_server() as server:
        urls = [server.url("/ok", host="one", row=number) for number in range(MANNERS_ROWS)]
        download(who, server, urls, folder / f"{who}-manners")
        name = f"one.{SUFFIX}"
        return verdicts, Manners(who, server.peak(name), round(server.shortest_gap_s(name), 4), opted, early)


def _asked(row: Fault, server: HostileServer) -> list[float]:
    hits = [hit for hit in server.asked(host=row.host) if not hit.path.startswith(("/robots.txt", "/.well-known"))]
    return [hit.at_s for hit in hits]


def _judge(who: str, row: Fault, server: HostileServer, stored: dict[str, bytes]) -> str:
    """Return why a fault was not survived; empty when it was."""
    times = _asked(row, server)
    most = row.most_requests * (PASSES[who] if row.most_requests > RETRIES else 1)
    # A server that is silent does not see its visitor go: such a request has no end, and says nothing.
    ended = [hit for hit in server.asked(host=row.host) if math.isfinite(hit.ended_s)]
    held = max((hit.ended_s - hit.at_s for hit in ended), default=0.0)
    picture = stored.get(row.url)
    gap = min((b - a for a, b in itertools.pairwise(times)), default=row.least_gap_s)
    reasons = {
        "a forbidden address was dialled": row.ident in ("S01", "S04", "S08") and server.canary_hits > 0,
        "stored": picture is not None and not row.stored,
        "not stored": picture is None and row.stored,
        "stored wrongly": picture is not None and row.check is not None and not row.check(_opened(picture)),
        f"asked {len(times)} times": len(times) > most,
        f"asked again {gap:.3f} s later, before it was due": gap < row.least_gap_s,
        f"held for {held:.0f} s": held > MOST_HELD_S,
    }
    return "; ".join(why for why, is_so in reasons.items() if is_so)


def _opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def bombs(who: str, folder: Path, cache: Path) -> Iterator[tuple[str, float, Verdict]]:
    """Run each bomb alone; return its name, the peak in MiB above a healthy picture's, and the verdict."""
    names = ["ok", "endless", "gzip-bomb", *BOMBS]
    healthy = 0.0
    for name in names:
        with hostile_server() as server:
            if name in BOMBS:
                server.on(f"/{name}", http(bomb(cache / "bombs", name), "Content-Type: image/png"))
            cost, stored = download(who, server, [server.url(f"/{name}", host="b")], folder / f"{who}-{name}")
        healthy = healthy or cost.peak_mib
        rise = cost.peak_mib - healthy
        reasons = {
            f"stopped at {MOST_MIB} MiB or {TIMEOUT_S:.0f} s": not cost.ended,
            f"{rise:.0f} MiB": rise > MOST_RISE_MIB,
            "stored": bool(stored) != (name == "ok"),
        }
        yield name, cost.peak_mib, Verdict(who, "bomb", name, "; ".join(why for why, is_so in reasons.items() if is_so))


def page(verdicts: list[Verdict], manners: list[Manners], peaks: list[tuple[str, str, float]]) -> str:
    """Return the result page."""
    whos = [who for who in WHO if any(one.who == who for one in verdicts)]
    lines = ["# hostile", "", stamp("hostile"), ""]
    for who in whos:
        own = [one for one in verdicts if one.who == who]
        lines.append(f"- {who}: faults survived / injected {sum(not one.why for one in own)} / {len(own)}")
    lines += ["", "| id | fault | " + " | ".join(whos) + " |", "|---" * (2 + len(whos)) + "|"]
    for ident, what in dict.fromkeys((one.ident, one.what) for one in verdicts):
        said = [
            next((one.why or "survived" for one in verdicts if (one.who, one.ident, one.what) == (who, ident, what)), "-")
            for who in whos
        ]
        lines.append(f"| {ident} | `{what}` | " + " | ".join(said) + " |")
    lines += [
        "",
        f"A row whose trouble may pass is asked for {1 + RETRIES} times a pass at most; ours makes {PASSES['ours']} passes.",
        "",
        "Memory: the sum of the peaks (VmHWM) of all processes of a run with one row, in MiB.",
        "",
        "| row | " + " | ".join(whos) + " |",
    ]
    lines.append("|---" * (1 + len(whos)) + "|")
    for name in dict.fromkeys(name for _, name, _ in peaks):
        lines.append(
            f"| {name} | " + " | ".join(f"{peak:.0f}" for who in whos for w, n, peak in peaks if (w, n) == (who, name)) + " |"
        )
    lines += ["", f"Manners: {MANNERS_ROWS} rows of one host; opt-outs and Retry-After as in the list.", ""]
    lines += ["| | peak connections | shortest gap, s | requests after an opt-out | Retry-After violations |", "|---" * 5 + "|"]
    for one in manners:
        gap = f"{one.shortest_gap_s:.4f}"
        lines.append(
            f"| {one.who} | {one.peak_connections} | {gap} | {one.requests_after_opt_out} | {one.retry_after_violations} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/mmdata-bench", help="where bombs are kept")
    parser.add_argument("--only", choices=WHO, help="run one of the two, print, and write no page")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    verdicts: list[Verdict] = []
    manners: list[Manners] = []
    peaks: list[tuple[str, str, float]] = []
    for who in (options.only,) if options.only else WHO:
        with tempfile.TemporaryDirectory(dir=options.cache) as folder:
            found, own = network(who, Path(folder))
            sys.stderr.write(
                "".join(f"  {one.who} {one.ident} {one.what}: {one.why or 'survived'}\n" for one in found) + f"  {own}\n"
            )
            for name, peak, verdict in bombs(who, Path(folder), options.cache):
                sys.stderr.write(f"  {who} {name}: {peak:.0f} MiB, {verdict.why or 'survived'}\n")
                peaks.append((who, name, peak))
                found.append(verdict)
        verdicts += found
        manners.append(own)
    text = page(verdicts, manners, peaks)
    sys.stdout.write(text)
    if options.only is None:
        (HERE / "results/hostile.md").write_text(text, encoding="utf-8")
        raw = "".join(json.dumps(one) + "\n" for one in (*map(asdict, verdicts), *map(asdict, manners)))
        (HERE / "results/hostile.jsonl").write_text(raw, encoding="utf-8")


if __name__ == "__main__":
    main()
