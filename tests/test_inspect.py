"""What a corpus holds is said rightly, of any corpus; its page shows strangers' texts and pictures and runs none of them."""

import json
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdata.cli.main import main
from mmdata.errors import RunError
from mmdata.report.inspect import Inspection, Picture, inspect_corpus
from mmdata.report.inspect_page import write_inspection
from mmdata.report.inspect_text import inspection_text
from mmdata.report.spread import BINS, QUANTILES, spread
from mmdata.shards import index_folder, open_corpus
from mmdata.shards.contents import choose_samples
from tests.fire.damage import edit_index
from tests.mixed import HOSTILE, mixed_corpus, pair_row, write_rows


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return mixed_corpus(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def found(mixed: str) -> Inspection:
    return inspect_corpus(mixed)


@given(st.one_of(st.lists(st.integers(0, 1 << 40), max_size=60), st.lists(st.floats(-1e9, 1e9), max_size=60)), st.booleans())
def test_every_value_is_in_one_bin_and_quantiles_are_values(values: list[float], ratios: bool) -> None:
    made = spread("x", "units", np.array(values), ratios=ratios)
    assert sum(made.counts) == made.count == len(values)
    assert len(made.counts) <= BINS + 1
    assert set(made.quantiles.values()) <= set(values)
    assert list(made.quantiles.values()) == sorted(made.quantiles.values())
    for place, (low, high) in enumerate(zip(made.edges, made.edges[1:], strict=False)):
        last = place == len(made.counts) - 1
        assert made.counts[place] == sum(low <= value and (value < high or (last and value <= high)) for value in values)


def test_few_whole_numbers_have_a_bin_each_and_sizes_have_bins_of_equal_ratio() -> None:
    few = spread("x", "units", np.array([3, 3, 5]))
    assert (few.edges, few.counts) == ([3, 4, 5, 6], [2, 0, 1])
    wide = spread("x", "units", np.geomspace(1.0, 2.0**BINS, BINS + 1))
    assert wide.edges == pytest.approx([2.0**place for place in range(BINS + 1)])
    assert spread("x", "units", np.array([0, 0, 7, 4000])).edges[:2] == [0, 7]


def test_the_line_shows_every_bin_that_has_something() -> None:
    assert spread("x", "units", np.array([1] * 900 + [3])).line() == "█·▁"


def test_counts_are_those_of_the_corpus(found: Inspection, mixed: str) -> None:
    corpus = open_corpus(mixed)
    assert (found.samples, found.blocks, found.shards) == (40, len(corpus.blocks), 3)
    assert [(kind.name, kind.samples) for kind in found.kinds] == [
        ("pair", 36), ("video pair", 2), ("document", 2), ("without media", 0),
    ]  # fmt: skip
    for parts in (found.splits, found.kinds):
        assert sum(part.samples for part in parts) == 40
        assert sum(part.blocks for part in parts) == len(corpus.blocks)
        assert sum(part.bytes for part in parts) == int(corpus.samples["length"].sum()) * 512
    assert [(part.name, part.blocks) for part in found.formats] == [("jpg", 12), ("png", 28), ("mp4", 2)]
    assert found.bytes == sum(path.stat().st_size for path in Path(mixed).glob("*.tar"))


def test_spreads_are_of_what_is_known(found: Inspection) -> None:
    by_name = {each.name: each for each in found.spreads}
    # 36 pairs of heights 12 to 31, then 12 to 27; number 5's is not known. Two documents of two images of 32.
    heights = sorted([12 + number % 20 for number in range(36) if number != 5] + [32] * 4)
    height = by_name["image height"]
    assert (height.count, height.unknown) == (39, 1)
    assert height.quantiles == {name: heights[int(share * 38)] for name, share in QUANTILES.items()}
    assert (by_name["text length"].count, by_name["text length"].quantiles["max"]) == (41, len(HOSTILE))
    assert by_name["blocks of a sample"].quantiles["max"] == 4
    assert found.untold == 1


def test_what_only_samples_say_comes_from_a_choice_of_them(found: Inspection) -> None:
    assert (found.chosen.samples, found.chosen.sources) == (40, {"web": 40})
    scores = {each.name: each for each in found.chosen.scores}
    assert set(scores) == {"clip_score", "<b>phash"}
    assert scores["clip_score"].count == 35
    assert scores["clip_score"].quantiles["max"] == pytest.approx(0.45)
    assert len(found.chosen.pictures) == 38  # all but the videos


def test_the_choice_is_bounded_in_number_and_bytes(mixed: str) -> None:
    corpus = open_corpus(mixed)
    few = choose_samples(corpus, 10)
    assert (len(few), len(set(few.tolist()))) == (10, 10)
    assert few.tolist() == sorted(few.tolist()) == choose_samples(corpus, 10).tolist()
    small = choose_samples(corpus, 40, max_bytes=20_000)
    assert 1 <= int(corpus.samples["length"][small].sum()) * 512 <= 20_000
    assert len(choose_samples(corpus, 40, max_bytes=1)) == 1


class Page(HTMLParser):
    """Collects what a browser would load or run, and the text it would show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.loads: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]

    def handle_data(self, data: str) -> None:
        self.text += data


def safe_page(path: Path, num_pictures: int) -> Page:
    """Read a page that runs nothing and loads nothing but its own pictures."""
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags.isdisjoint({"script", "link", "iframe", "object", "b", "base", "form"})
    assert not [name for name in page.attributes if name.startswith("on")]
    assert len(page.loads) == num_pictures
    assert all(url.startswith("data:image/jpeg;base64,") for url in page.loads)
    assert "default-src 'none'; img-src data:" in html
    assert "\u202e" not in html
    return page


def test_the_page_shows_everything_and_runs_nothing(found: Inspection, tmp_path: Path) -> None:
    write_inspection(tmp_path / "page.html", found)
    page = safe_page(tmp_path / "page.html", 38)
    for text in (
        "<img src=x onerror=alert(1)>",
        "<script>alert(2)</script>",
        "CC0 & <b>free</b>",
        "kleine Straße 東京",
        "<b>phash",
    ):
        assert text in page.text
    assert "robots.txt was not asked" in page.text


def test_a_picture_that_cannot_be_decoded_costs_only_itself(tmp_path: Path) -> None:
    rows = [pair_row(tmp_path, number, trusted=False) for number in range(7, 10)]
    bad = tmp_path / "media" / str(rows[0]["payload"]["tar"])
    rows[0]["payload"] = rows[0]["payload"] | _stored(bad.with_name("bad"), b"\xff\xd8\xff" + bytes(500))
    found = inspect_corpus(write_rows(tmp_path, rows, trusted=False))
    write_inspection(tmp_path / "page.html", found)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(page.loads) == 2
    assert "not decoded: " in page.text
    assert "a blue bar, 7" in page.text


def _stored(path: Path, data: bytes) -> dict[str, object]:
    import hashlib

    path.write_bytes(data)
    return {"tar": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_half_a_character_in_a_text_is_no_trouble(tmp_path: Path) -> None:
    rows = [pair_row(tmp_path, 7)]
    found = inspect_corpus(write_rows(tmp_path, rows))
    broken = Picture(found.chosen.pictures[0].data, "half \ud83d")
    found.chosen.pictures[:] = [broken]
    write_inspection(tmp_path / "page.html", found)
    assert "half ?" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_an_empty_corpus_has_nothing_in_it(tmp_path: Path) -> None:
    found = inspect_corpus(write_rows(tmp_path, []))
    assert (found.samples, found.spreads, found.chosen.samples) == (0, [], 0)
    assert "0 samples, 0 blocks, 0 shards" in inspection_text(found)
    write_inspection(tmp_path / "page.html", found)
    assert "0 samples, 0 blocks, 0 shards" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_foreign_tars_say_what_they_do_not_know(tmp_path: Path) -> None:
    url = mixed_corpus(tmp_path)
    for path in Path(url).iterdir():
        if path.suffix != ".tar":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    index_folder(url)
    found = inspect_corpus(url)
    by_name = {each.name: each for each in found.spreads}
    assert (by_name["image width"].count, by_name["image width"].unknown) == (0, 40)
    assert (found.samples, found.licences, found.funnel) == (40, {}, {})
    assert "images or videos whose size is not in the index: 40" in inspection_text(found)
    write_inspection(tmp_path / "page.html", found)
    assert len(Page((tmp_path / "page.html").read_text(encoding="utf-8")).loads) == 38


def test_samples_that_cannot_be_read_are_counted_and_named(tmp_path: Path) -> None:
    url = mixed_corpus(tmp_path)
    first = open_corpus(url).shards[0]
    (Path(url) / first).unlink()
    found = inspect_corpus(url)
    assert (found.samples, found.chosen.samples, found.chosen.unreadable) == (40, 24, 16)
    assert "samples that could not be read: 16 of 40 (`mmdata verify` finds all damage)" in inspection_text(found)
    assert f"{first}: sample 0 at byte 0 cannot be read: the shard is missing" in inspection_text(found)


def test_indexes_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    url = mixed_corpus(tmp_path)
    edit_index(Path(url), "samples", lambda samples: samples["num_blocks"].__setitem__(0, 9), sealed=True)
    with pytest.raises(RunError, match="its indexes do not belong together"):
        inspect_corpus(url)


def test_the_command_prints_tables_or_json_and_writes_the_page(
    mixed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mmdata", "inspect", mixed, "--html", str(tmp_path / "page.html")])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, f"wrote {tmp_path / 'page.html'}\n")
    assert "40 samples" in out
    assert "caution: download: robots.txt was not asked" in out
    assert (tmp_path / "page.html").exists()
    monkeypatch.setattr(sys, "argv", ["mmdata", "inspect", mixed, "--json"])
    with pytest.raises(SystemExit):
        main()
    facts = json.loads(capsys.readouterr().out)
    assert (facts["samples"], facts["funnel"]["dropped"], facts["licences"]) == (
        40,
        {"http_4xx": 3},
        {"web": "CC0 & <b>free</b>"},
    )
