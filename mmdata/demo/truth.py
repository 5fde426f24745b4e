"""What is known about the demo's rows and no stage is told: which captions were swapped, which files are copies."""

import json
from dataclasses import dataclass

import pyarrow as pa

from mmdata.demo.server import DATA
from mmdata.engine import RunStore
from mmdata.report.fates import fates


@dataclass(frozen=True)
class SwapScore:
    """How well the CLIP filter told swapped captions from true ones, among the rows it judged."""

    swapped_dropped: int
    swapped_kept: int
    clean_dropped: int
    clean_kept: int

    @property
    def precision(self) -> float:
        """Share of swapped captions among what was dropped."""
        return self.swapped_dropped / max(self.swapped_dropped + self.clean_dropped, 1)

    @property
    def recall(self) -> float:
        """Share of the swapped captions that was dropped."""
        return self.swapped_dropped / max(self.swapped_dropped + self.swapped_kept, 1)

    def text(self) -> str:
        """Return it as a line."""
        return (
            f"known swapped captions: the CLIP filter dropped {self.swapped_dropped} of "
            f"{self.swapped_dropped + self.swapped_kept} (recall {self.recall:.2f}) and with them {self.clean_dropped} of "
            f"{self.clean_dropped + self.clean_kept} true ones (precision {self.precision:.2f})"
        )


def known_rows() -> dict[str, dict[str, object]]:
    """Return what is known of each row, by its url."""
    rows = [json.loads(line) for line in (DATA / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    return {f"http://host-{row['host']:02d}.demo.localhost/{row['path']}": row for row in rows}


def demo_fates(run: RunStore, generation: int) -> pa.Table:
    """Return the fate of every demo row, with what is known of it in `kind`."""
    table = fates(run, ["url", "text", "clip_score", "payload"], generation)
    known = known_rows()
    kinds = [str(known[url]["kind"]) if url in known else None for url in table.column("url").to_pylist()]
    return table.append_column("kind", pa.array(kinds, pa.string()))


def swap_score(table: pa.Table) -> SwapScore:
    """Compare the CLIP filter's verdicts with the truth; rows that it never judged do not count."""
    counts = {("swapped", True): 0, ("swapped", False): 0, ("clean", True): 0, ("clean", False): 0}
    columns = (table.column(name).to_pylist() for name in ("kind", "reason", "clip_score"))
    for kind, reason, score in zip(*columns, strict=True):
        if score is not None and kind in ("swapped", "clean"):
            counts[kind, reason == "clip_score_below"] += 1
    return SwapScore(*counts.values())
