"""The trainer's benchmark runs all sides at a tiny size, on the same tokens, and its page says what they said."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.harness import line
from benchmarks.peers.trainer_steps import products
from benchmarks.trainer import PEER, Bench, Scale, Side, lines_of, notes_of, same_tokens
from benchmarks.trainer_data import CHANNELS, PATCHES, SIZE, TEXT, Shape, cut, make_batch
from benchmarks.trainer_jobs import blocks_of, ours
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.encoders import Encoders

TINY = Shape(64, 1, 2, 2, length=128)


def side_of(name: str, ask: str, mask: str = "span_bidir", **figures: float) -> Side:
    common = {"length": 128, "text": 58, "patches": 64, "collate_s": 0.004, "parameters": 2e6, "flops": 4e9, "cpu": 0.3}
    return Side(name, {"side": ask, "threads": 1}, mask, [common | figures])


def test_sides_that_go_through_other_tokens_are_refused() -> None:
    ours, plain = side_of("dense", "ours"), side_of("plain causal", "causal", text=128, patches=0)
    same_tokens([ours, side_of("transfusion-pytorch", PEER), plain, Side("moe", {"side": "ours"}, "span_bidir")])
    with pytest.raises(ValueError, match=r"different tokens a row: .*'dense': \(58, 64\), 'transfusion-pytorch': \(57, 64\)"):
        same_tokens([ours, side_of("transfusion-pytorch", PEER, text=57), plain])
    with pytest.raises(ValueError, match=r"'plain causal': 127"):
        same_tokens([ours, side_of("plain causal", "causal", length=127)])


def test_our_row_is_as_long_as_is_asked_and_holds_the_text_and_the_patches(tmp_path: Path) -> None:
    options = TINY.options(tmp_path) | {"device": "cpu", "share": "dense", "mask": "span_bidir"}
    model, loss_of, facts = ours(options, *make_batch(TINY))
    assert (facts["length"], facts["text"], facts["patches"]) == (128, TEXT + TINY.tail, PATCHES)
    loss_of(1).backward()  # type: ignore[no-untyped-call]
    assert all(weights.grad is not None for weights in model.parameters())


def test_a_row_is_cut_into_blocks_that_hold_all_its_tokens_in_order() -> None:
    shape = Shape(64, 1, 2, 2, length=512)
    ids_RT, images_RNHWC = make_batch(shape)
    blocks = blocks_of(ids_RT[1], images_RNHWC[1])
    assert [len(block) for block in blocks] == [TEXT, SIZE] * 5 + [shape.tail]
    assert np.concatenate(blocks[::2]).tolist() == ids_RT[1].tolist()
    np.testing.assert_array_equal(np.stack(blocks[1::2]), images_RNHWC[1])
    assert cut(images_RNHWC).shape == (2, 5, PATCHES, CHANNELS)
    assert 1 + shape.images * (TEXT + PATCHES + 5) + shape.tail + 1 == shape.length + 1  # the peer's row, whose last is no input


def test_the_peer_gets_the_patches_that_ours_cuts() -> None:
    _, images_RNHWC = make_batch(TINY)
    config = TrainConfig.model_validate({"name": "cut", "corpus": "-", "image": {"size": SIZE, "patch": 4}})
    patches_INP = Encoders(config, 300).encode(torch.from_numpy(images_RNHWC[1]))
    np.testing.assert_allclose(cut(images_RNHWC)[1], patches_INP.numpy(), atol=1e-6)


def test_products_of_weights_are_counted_forward_and_back_and_attention_by_its_pairs() -> None:
    layer = torch.nn.Linear(8, 16, bias=False)
    given = torch.ones(2, 4, 8, requires_grad=True)
    assert products(lambda: (layer(given) @ layer(given).mT).sum().backward()) == 2 * 3 * 2 * (8 * 8 * 16)
    causal = 2 * 128 * 129 // 2
    assert TINY.pairs("causal") == causal
    assert TINY.pairs("span_bidir") == causal + 2 * 64 * 63 // 2
    assert TINY.attention("causal") == 3 * 2 * 2 * 64 * causal  # two products, 2 operations a number, thrice


def test_the_page_tells_what_the_runs_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Scale((TINY,), threads=(1,), runs=3, warm=1, steps=1, squares=64), "cpu")
    sides = [side_of("dense", "ours"), side_of("plain causal", "causal", "causal", seconds=0.1, mib=50)]
    sides[0].runs = [sides[0].runs[0] | {"seconds": seconds, "mib": 100} for seconds in (0.2, 0.1, 0.4)]
    bench.peaks[1] = [50e9]
    lines = lines_of(bench, TINY, sides)
    assert [(one.name, one.ours, one.peer, one.ratio) for one in lines] == [
        ("dense_64x1_128", 200, 100, 0.5), ("dense_64x1_128_cpu", 300, 300, 1),
    ]  # fmt: skip
    expected = (4e9 + TINY.attention("span_bidir")) / 50e9 / 0.2
    assert lines[0].share_of_limit == pytest.approx(expected)
    page = notes_of(bench, [(TINY, sides)])
    assert f"| 64 x 1, 2 x 128 | dense | 1 | 2.0 M | 4 | 1,280 | {expected:.0%} | 100 MiB |" in page
    assert "50 GFLOP/s (50 to 50) with 1" in page
    assert "plain causal" in line(lines[0])


def test_the_quick_form_writes_json_and_no_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.trainer", "--quick", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    lines = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert {one["name"] for one in lines} >= {"dense_64x2_128", "dense_64x2_128_cpu"}
    assert all(one["error"] is None for one in lines)
    assert "| 64 x 2, 2 x 128 | plain causal | 1 |" in done.stdout
