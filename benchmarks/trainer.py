"""A training step of the trainer beside transfusion-pytorch, a plain causal transformer, and the peak of matrix products.

    python -m benchmarks.trainer [--quick] [--json FILE] [--device cuda]

What is compared, and with what, is said in `NOTES` and on the result page.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from benchmarks.dedupe_data import has_peer, printed
from benchmarks.harness import HERE, Result, peer_python, publish, summary
from benchmarks.trainer_data import Shape
from mmdata.trainer.config import ParamsConfig

TIMEOUT_S = 1800
PEER = "transfusion"
H100 = 989e12  # dense bfloat16 operations a second, from its data sheet
SHARES = get_args(ParamsConfig.model_fields["share"].annotation)
NOTES = """\
Lower is better: milliseconds of a training step (`_cpu`: of CPU time, which other work on the machine does not lengthen as much);
forward, backward and a fused AdamW, in float32, on one fixed batch that is ready in memory. Sides take turns, each run in a
process of its own: {warm} steps that do not count, then the median of {steps}; medians of {runs} such runs are shown. Each side
has the number of threads, of 1 and 2, with which it was the quicker in one run before. *Limit* is the time that ours would take
at the float32 peak of this machine, one product of squares of {squares}, measured in the same rounds with as many threads:
{peaks}.

The model is as wide and as deep on all sides, with heads of 64, a gated FFN of 2.75 times the width, and {vocab:,} ids. Rows have
{length} tokens: text of 24 and an image of 64 latents of 48 channels in turn, {images} times, then text. All sides go through
{length} tokens a row, which is what tokens/s counts; ours and the peer have the same {text} text tokens and {patches} latents a
row. Both have causal text, attention both ways inside an image, cross-entropy on text and flow matching on images.

- *ours*: `mmdata.trainer` with the layout and the mask of Transfusion (one document a row, no clean copy), QK-norm, z-loss.
  Laying out and collating the batch took {collate} ms (the loader's threads do that beside the step; the peer does its own part
  inside the step).
- *transfusion-pytorch* {version} in its own environment, with our torch. It is at its quickest: without U-Net skips, gated
  values, axial positions, condition dropout, the losses of reconstruction and consistency, and without assertions (`python -O`:
  without U-Net skips one of them fails). What stays is its model: adaptive norms by the noise time of every token, also of text,
  are most of its parameters and operations; attention residuals over all layers; a soft cap, for which it writes its scores
  out; logits for every token. So it does more work a token at equal width and depth: the table tells how much, and its share of
  the peak.
- *plain causal*: RMSNorm, RoPE, the causal kernel, SwiGLU, cross-entropy on every token; no images, and nothing that a unified
  model needs.

*Operations* are products of weights with tokens as executed, and the pairs that the mask allows in attention, both forward and
back; nothing else counts. *Memory* is what the process grew to since before the model was made.

{table}

On a GPU (`--device cuda`) the same sides run at 350 M parameters in bfloat16, compiled, with FlexAttention, and ours again with a
causal mask; that part has not been run for this page, which was made on a CPU.
"""


@dataclass(frozen=True)
class Scale:
    """What is measured, and how often."""

    shapes: tuple[Shape, ...]
    threads: tuple[int, ...]
    runs: int
    warm: int
    steps: int
    squares: int


FULL = Scale((Shape(256, 6, 4, 4), Shape(512, 8, 8, 2)), threads=(1, 2), runs=5, warm=1, steps=3, squares=2048)
QUICK = Scale((Shape(64, 2, 2, 2, length=128),), threads=(1,), runs=1, warm=1, steps=1, squares=256)
CUDA = Scale(
    (Shape(1024, 24, 16, 8, 2048, 32_768), Shape(1024, 24, 16, 4, 4096, 32_768)),
    threads=(8,), runs=3, warm=5, steps=10, squares=8192,
)  # fmt: skip


@dataclass
class Side:
    """One of those that are compared at a shape: what it is asked, and what it said, run by run."""

    name: str
    ask: dict[str, Any]
    mask: str
    runs: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    def median(self, what: str) -> float:
        """Return the median of a figure."""
        return float(statistics.median(run[what] for run in self.runs))


@dataclass
class Bench:
    """A run of the benchmark: where its files are, its scale, its device, and the peaks seen by number of threads."""

    home: Path
    scale: Scale
    device: str
    peaks: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def sides(self, shape: Shape, *, peer: bool) -> list[Side]:
        """Return the sides of a shape; the mixed mask stands beside a causal one on a GPU."""
        cuda = self.device == "cuda"
        common = {"device": self.device, "warm": self.scale.warm, "steps": self.scale.steps, "threads": self.scale.threads[0]}
        common |= shape.options(self.home) | {"compile": cuda}
        masks = ("span_bidir", "causal") if cuda else ("span_bidir",)
        found = [
            Side(
                share if mask == "span_bidir" else f"{share}_{mask}",
                common | {"side": "ours", "share": share, "mask": mask},
                mask,
            )
            for share in SHARES
            for mask in masks
        ]
        if peer:
            found.append(Side("transfusion-pytorch", common | {"side": PEER, "compile": False}, "span_bidir"))
        return [*found, Side("plain causal", common | {"side": "causal"}, "causal")]

    def ask(self, side: Side, **changes: int) -> dict[str, Any]:
        """Run a side once, in a process of its own."""
        told = self.home / "options.json"
        told.write_text(json.dumps(side.ask | changes), encoding="utf-8")
        if side.ask["side"] == PEER:
            command = [str(peer_python(PEER)), "-O", str(HERE / "peers/trainer_transfusion.py"), str(told)]
        else:
            command = [sys.executable, "-m", "benchmarks.trainer_jobs", str(told)]
        return printed(command, TIMEOUT_S)

    def compare(self, shape: Shape, *, peer: bool) -> list[Side]:
        """Choose each side's number of threads, then run all in turn; one that fails is left out from then on."""
        sides = self.sides(shape, peer=peer)
        if len(self.scale.threads) > 1:
            for side in sides:
                tried = {threads: self.attempt(side, threads=threads, steps=1) for threads in self.scale.threads}
                worked = {threads: found["seconds"] for threads, found in tried.items() if found}
                side.ask["threads"] = min(worked, key=worked.__getitem__, default=1)
        for _ in range(self.scale.runs):
            for side in sides:
                if found := self.attempt(side):
                    side.runs.append(found)
            for threads in {side.ask["threads"] for side in sides}:
                square = Side("peak", sides[-1].ask | {"side": "peak", "side_of_squares": self.scale.squares}, "")
                self.peaks[threads].append(self.ask(square, threads=threads)["flops_per_s"])
        same_tokens(sides)
        return sides

    def attempt(self, side: Side, **changes: int) -> dict[str, Any] | None:
        """Run a side unless it failed before; null, its error kept, where it fails."""
        if side.error is None:
            try:
                return self.ask(side, **changes)
            except (subprocess.SubprocessError, OSError, ValueError) as problem:
                side.error = f"{type(problem).__name__}: {problem}"[-400:]
                print(f"{side.name}: {side.error}", file=sys.stderr)
        return None

    def peak(self, threads: int) -> float:
        """Return the operations a second that are the limit."""
        return H100 if self.device == "cuda" else statistics.median(self.peaks[threads])


def same_tokens(sides: list[Side]) -> None:
    """Refuse sides that did not go through as many tokens; ours and the peer's are the same text and patches."""
    ran = [side for side in sides if side.runs]
    lengths = {side.name: side.runs[0]["length"] for side in ran}
    tokens = {side.name: (side.runs[0]["text"], side.runs[0]["patches"]) for side in ran if side.ask["side"] != "causal"}
    if len(set(lengths.values())) > 1 or len(set(tokens.values())) > 1:
        raise ValueError(f"the sides have different tokens a row: {lengths}, text and patches {tokens}")


def operations(side: Side, shape: Shape) -> float:
    """Return the operations of a step."""
    return side.median("flops") + shape.attention(side.mask)


def lines_of(bench: Bench, shape: Shape, sides: list[Side]) -> list[Result]:
    """Return a line for each of ours beside each other side, in wall time and, on a CPU, in CPU time."""
    mine = [side for side in sides if side.ask["side"] == "ours" and side.runs]
    others = [side for side in sides if side not in mine]
    found = []
    for side in mine:
        limit = operations(side, shape) / bench.peak(side.ask["threads"]) * 1e3
        for other in others:
            for end, figure in (("", "seconds"), ("_cpu", "cpu"))[: 1 if bench.device == "cuda" else 2]:
                values = [1e3 * run[figure] for run in side.runs], [1e3 * run[figure] for run in other.runs]
                label = (other.name, version_of(other))
                name = f"{side.name}_{shape.width}x{shape.depth}_{shape.length}{end}"
                found.append(summary(name, (*values, [] if end else [limit]), label, "ms", other.error))
    return found


def version_of(side: Side) -> str | None:
    """Return the version of a peer that ran."""
    return side.runs[0].get("version", "") if side.runs else None


def table(bench: Bench, measured: Iterable[tuple[Shape, list[Side]]]) -> str:
    """Return what a step of each side is made of."""
    head = "| width x depth, rows x tokens | side | threads | parameters | GFLOP a step | tokens/s | share of peak | memory |"
    rows = [head, "|---" * 8 + "|"]
    for shape, sides in measured:
        for side in (side for side in sides if side.runs):
            seconds, flops = side.median("seconds"), operations(side, shape)
            share = flops / seconds / bench.peak(side.ask["threads"])
            rows.append(
                f"| {shape.width} x {shape.depth}, {shape.rows} x {shape.length} | {side.name} | {side.ask['threads']} | "
                f"{side.median('parameters') / 1e6:.1f} M | {flops / 1e9:.0f} | {shape.rows * shape.length / seconds:,.0f} | "
                f"{share:.0%} | {side.median('mib'):,.0f} MiB |"
            )
    return "\n".join(rows)


def notes_of(bench: Bench, measured: list[tuple[Shape, list[Side]]]) -> str:
    """Return what is said beside the lines."""
    scale, (shape, sides) = bench.scale, measured[0]
    first = next(side for side in sides if side.runs)
    peers = [run["version"] for _, some in measured for side in some for run in side.runs if "version" in run]
    peaks = (
        f"{statistics.median(rates) / 1e9:.0f} GFLOP/s ({min(rates) / 1e9:.0f} to {max(rates) / 1e9:.0f}) with {threads}"
        for threads, rates in sorted(bench.peaks.items())
    )
    return NOTES.format(
        warm=scale.warm, steps=scale.steps, runs=scale.runs, squares=scale.squares, peaks=", ".join(peaks),
        vocab=shape.vocab, length=shape.length, images=shape.images, text=first.runs[0]["text"],
        patches=first.runs[0]["patches"], collate=f"{first.median('collate_s') * 1e3:.0f}",
        version=peers[0] if peers else "(not installed)", table=table(bench, measured),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of a tiny model; never committed")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    scale = QUICK if options.quick else CUDA if options.device == "cuda" else FULL
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="mmdata-trainer-") as home:
        bench = Bench(Path(home), scale, options.device)
        measured = [(shape, bench.compare(shape, peer=has_peer(PEER, quick=options.quick))) for shape in scale.shapes]
    results = [line for shape, sides in measured for line in lines_of(bench, shape, sides)]
    told = f"Load average of the machine when this began and ended: {load:.1f}, {os.getloadavg()[0]:.1f} (its own work among it)."
    notes = f"{notes_of(bench, measured)}\n{told}"
    print(notes)
    publish("trainer" if options.device == "cpu" else "trainer-gpu", results, options, notes)


if __name__ == "__main__":
    main()
