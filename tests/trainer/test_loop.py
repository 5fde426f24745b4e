"""The loop: what a step does, what it tells, and what it does when something goes wrong."""

import json
import math
import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdata import failpoint
from mmdata.errors import RunError
from mmdata.trainer import train
from mmdata.trainer.checkpoint import latest
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.flops import active_parameters, step_flops
from mmdata.trainer.log import Log
from mmdata.trainer.model import Transformer
from mmdata.trainer.optim import learning_rate, make_optimizer
from tests.trainer.ranks import apart, ranks, records, small

pytestmark = pytest.mark.filterwarnings("ignore")


def test_200_steps_broken_at_three_places_are_bitwise_those_that_were_not(
    shapes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(shapes, 200, checkpoint_every=40, eval_every=40)
    train(settings, tmp_path / "whole")
    # After the checkpoint of step 40; before that of 80 has a name, so 40 is resumed again; while that of 160 is written.
    for point in ("after-rename:1", "before-rename:1", "before-facts:3"):
        monkeypatch.setenv("FAILPOINT", f"{point}:raise")
        failpoint.reset()
        with pytest.raises(RunError, match=r"step-\d+: the checkpoint cannot be written"):
            train(settings, tmp_path / "broken")
    monkeypatch.delenv("FAILPOINT")
    assert train(settings, tmp_path / "broken").step == 200
    assert records(tmp_path / "broken") == records(tmp_path / "whole")
    ours, theirs = latest(tmp_path / "broken"), latest(tmp_path / "whole")
    assert ours is not None
    assert theirs is not None
    assert ours.state == theirs.state  # with the digests of weights, averages and the optimizer


@pytest.mark.parametrize("changes", [{"optim": {"micro_rows": 1}}, {"optim": {"micro_rows": 2}, "loader_threads": 3}])
def test_micro_batches_and_threads_change_no_loss(shapes: str, tmp_path: Path, changes: dict[str, Any]) -> None:
    train(small(shapes, 12, precision="float64", loader_threads=0), tmp_path / "one")
    train(small(shapes, 12, precision="float64", **changes), tmp_path / "other")
    assert apart(records(tmp_path / "one"), records(tmp_path / "other")) < 1e-12


def test_what_is_computed_twice_is_the_same(shapes: str, tmp_path: Path) -> None:
    train(small(shapes, 4), tmp_path / "kept")
    train(small(shapes, 4, activation_checkpointing=True), tmp_path / "twice")
    assert records(tmp_path / "kept") == records(tmp_path / "twice")


def test_compiled_blocks_give_the_same_losses(shapes: str, tmp_path: Path) -> None:
    train(small(shapes, 2), tmp_path / "eager")
    train(small(shapes, 2, compile=True, activation_checkpointing=True), tmp_path / "compiled")
    assert apart(records(tmp_path / "eager"), records(tmp_path / "compiled")) < 1e-4


def test_products_in_bfloat16_leave_weights_and_losses_near(shapes: str, tmp_path: Path) -> None:
    train(small(shapes, 4), tmp_path / "wide")
    train(small(shapes, 4, precision="bfloat16"), tmp_path / "low")
    assert 0 < apart(records(tmp_path / "wide"), records(tmp_path / "low")) < 1
    found = latest(tmp_path / "low")
    assert found is not None
    assert {value.dtype for value in found.tensors("model").values()} == {torch.float32}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 100 steps, 10 of warm-up, down to a tenth: half way down the cosine at 55; `wsd` falls over the last 20.
        ("constant", {0: 0.1, 9: 1.0, 10: 1.0, 55: 1.0, 99: 1.0}),
        ("cosine", {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.55, 99: 0.1}),
        ("wsd", {0: 0.1, 9: 1.0, 10: 1.0, 79: 1.0, 80: 1.0, 90: 0.55, 99: 0.145}),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule: str, expected: dict[int, float]) -> None:
    optim = small(".", 100, optim={"schedule": schedule, "warmup": 10, "lr": 1.0, "decay": 0.2, "final_lr": 0.1}).optim
    assert {step: round(learning_rate(optim, step), 3) for step in expected} == expected


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    settings = small(".", 1, optim={"weight_decay": 0.5})
    model = Transformer(settings, Encoders(settings, 300).sizes)
    decays, spared = make_optimizer(model, settings.optim).param_groups
    assert (decays["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(parameter)] for parameter in decays["params"]}
    assert {"blocks.0.attention.qkv.weight", "blocks.0.ffn.down.weight", "head.weight", "patch_in.weight"} <= decayed
    assert not [name for name in decayed if "norm" in name or "bias" in name or name.startswith(("embed", "place"))]
    assert len(decayed) + len(spared["params"]) == len(names)


def test_a_step_that_is_not_finite_stops_and_the_last_checkpoint_stays(shapes: str, tmp_path: Path) -> None:
    settings = small(shapes, 9, checkpoint_every=1, optim={"lr": 1e30, "warmup": 0})
    with pytest.raises(
        RunError, match=r"step 2: not finite: loss `text`, .*gradient of `blocks.0.*` and \d+ more; the last"
    ) as caught:
        train(settings, tmp_path)
    assert "lower `optim.lr`" in str(caught.value)
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert all(bool(value.isfinite().all()) for value in found.tensors("model").values())


def test_steps_that_are_not_finite_are_skipped_counted_and_not_for_ever(shapes: str, tmp_path: Path) -> None:
    settings = small(shapes, 9, checkpoint_every=3, optim={"lr": 1e30, "warmup": 0, "nonfinite": "skip", "max_skips": 3})
    with pytest.raises(RunError, match=r"step 5: not finite, 4 steps in a row: loss"):
        train(settings, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [record["skipped"] for record in found] == [0, 1, 2, 3]
    assert found[3]["loss/text"] is None
    with pytest.raises(RunError, match=r"step 5: not finite, 4 steps in a row: loss"):  # resumed, it counts on
        train(settings, tmp_path)


def test_without_memory_it_says_what_to_lower(shapes: str, tmp_path: Path) -> None:
    settings = small(shapes, 2, val_split=None, layout={"row_tokens": 6000})

    def act() -> None:
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
        train(settings, tmp_path / "out")

    ended = ranks(1, tmp_path, act)
    assert ended.codes == [1]
    assert "step 1: out of memory on a micro-batch of 4 rows of 6000 tokens" in ended.said[0]
    assert "lower `optim.micro_rows` (now 4)" in ended.said[0]


def test_every_step_tells_its_figures(shapes: str, tmp_path: Path) -> None:
    train(small(shapes, 3, peak_tflops=0.001), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    told = {
        "step", "tokens", "samples", "flops", "lr", "grad_norm", "ema_gap", "skipped", "padding", "loader_wait", "tokens_per_s",
        "mfu", "seconds", "loss/text", "loss/latents", "loss/z", *(f"loss/latents/t{bucket}" for bucket in range(4)),
    }  # fmt: skip
    assert [set(line) - told for line in lines] == [set(), set(), {"val/text", "val/latents", "val/loss"}]
    assert all(0 <= line["padding"] < 1 and 0 <= line["loader_wait"] <= 1 and line["mfu"] > 0 for line in lines)
    assert lines[0]["tokens"] == round((1 - lines[0]["padding"]) * 4 * 40)
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))["step"] == 3


def test_operations_are_those_of_tokens_and_of_pairs_that_see_each_other() -> None:
    settings = small(".", 1)  # 1 layer, 48 wide, patches of 48 numbers
    model = Transformer(settings, Encoders(settings, 300).sizes)
    hidden = settings.model.hidden
    layer = 4 * 48 * 48 + 3 * 48 * hidden + 2 * 48 + 2 * 24 + 48  # products, norms of the layer, of queries and keys, the last
    time = 64 * 48 + 48 + 48 * 48 + 48
    images = layer + 48 * 48 + 48 + time
    assert active_parameters(model) == {"text": layer, "image": images}
    found = step_flops(model, {"text": 10, "image": 100}, {"text": 7, "codes": 0, "latents": 60}, pairs=50)
    assert found == 6 * (10 * layer + 100 * images + 7 * 48 * 300 + 60 * 48 * 48) + 12 * 1 * 48 * 50


@pytest.mark.parametrize("share", ["moe", "mot"])
def test_a_token_uses_one_tower_and_its_best_experts(share: str) -> None:
    dense = small(".", 1)
    other = small(".", 1, params={"share": share, "experts": 4, "top_k": 2, "expert_ratio": 0.5})
    plain, found = (active_parameters(Transformer(one, Encoders(one, 300).sizes)) for one in (dense, other))
    router = 4 * 48 if share == "moe" else 0
    assert found["image"] == plain["image"] + router


def test_a_line_that_was_cut_short_is_dropped_from_the_log(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo', encoding="utf-8")
    with Log(tmp_path, 3, 5) as log:
        log.write({"step": 4, "loss/text": math.nan, "tokens_per_s": 1.0})
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 4]


def test_ranks_that_do_not_write_leave_no_log(tmp_path: Path) -> None:
    with Log(tmp_path / "out", 0, 5, writes=False) as log:
        log.write({"step": 1, "tokens_per_s": 1.0})
        log.sync()
    assert not (tmp_path / "out").exists()


def test_what_one_rank_cannot_read_no_rank_trains_on(shapes: str, tmp_path: Path) -> None:
    ended = ranks(2, tmp_path, partial(train, small(f"{shapes}/none", 4, optim={"micro_rows": 2}), tmp_path / "out"))
    assert ended.codes == [1, 1]
    assert "no corpus.json" in ended.said[0]
    assert not (tmp_path / "out").exists()
