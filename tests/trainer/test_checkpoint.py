"""Checkpoints: which stay, what they belong to, and what becomes of them elsewhere."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmdata.cli.export import command as export
from mmdata.errors import ConfigError, RunError
from mmdata.trainer import TrainConfig, export_model, train
from mmdata.trainer.checkpoint import latest
from mmdata.trainer.model import Transformer
from mmdata.trainer.sizes import Sizes
from tests.corpus import make_corpus
from tests.trainer.ranks import records, small

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def trained(shapes: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(small(shapes, 2), out)
    return out


def steps(out: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in out.glob("step-*"))


@pytest.mark.parametrize("highest", [False, True])
def test_the_last_ones_stay_and_the_best(shapes: str, tmp_path: Path, highest: bool) -> None:
    keep = {"last": 2, "best": 1, "metric": "val/text", "highest": highest}
    # A rate that only falls makes later steps better; the first is the worst.
    train(small(shapes, 6, checkpoint_every=1, eval_every=1, keep=keep, optim={"lr": 1e-2, "warmup": 0}), tmp_path)
    values = [record["val/text"] for record in records(tmp_path)]
    best = values.index((max if highest else min)(values)) + 1
    assert steps(tmp_path) == sorted({best, 5, 6})
    assert not list(tmp_path.glob(".tmp-*"))


def test_damaged_ones_of_later_steps_do_not_count_as_the_last(
    shapes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(shapes, 4, checkpoint_every=1, keep={"last": 1, "best": 0})
    train(settings, tmp_path)
    (tmp_path / "step-000004/ema.safetensors").write_bytes(b"")
    monkeypatch.setenv("FAILPOINT", "before-weights:4:raise")  # of its second save, of step 2
    with pytest.raises(RunError, match="step-000002: the checkpoint cannot be written"):
        train(settings, tmp_path)
    assert steps(tmp_path) == [1, 4]
    monkeypatch.delenv("FAILPOINT")
    train(settings, tmp_path)
    assert steps(tmp_path) == [4]


def test_a_checkpoint_of_another_version_is_refused(shapes: str, tmp_path: Path) -> None:
    train(small(shapes, 2), tmp_path)
    path = tmp_path / "step-000002/state.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"format": 2', '"format": 1'), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"step-000002 is of another version of mmdata\s+hint: use that version, or another --out"
    ):
        train(small(shapes, 2), tmp_path)


def test_a_figure_that_is_not_evaluated_is_no_reason_to_keep_any(shapes: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"`keep.metric` val/texts is no figure of the evaluation\s+hint: did you mean `val/text`"
    ):
        train(small(shapes, 2, keep={"metric": "val/texts"}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "was trained with another config: `seed` 0, now 1"),
        ({"model": {"width": 64, "layers": 1, "heads": 2}}, "another config: `model.width` 48, now 64"),
        ({"optim": {"lr": 1e-3}, "mask": "causal"}, "another config: `mask` span_bidir, now causal; `optim.lr` 0.003, now 0.001"),
    ],
)
def test_a_checkpoint_of_another_config_is_refused_by_what_differs(
    shapes: str, trained: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(small(shapes, 2, **changes), trained)


def test_a_checkpoint_of_another_corpus_or_tokenizer_is_refused(shapes: str, tmp_path: Path) -> None:
    train(small(shapes, 2), tmp_path / "out")
    other = make_corpus(tmp_path, num=12)
    with pytest.raises(ConfigError, match=r"was trained with another corpus [0-9a-f]{12}, now [0-9a-f]{12}\s+hint: use another"):
        train(small(other, 2, val_split=None).model_copy(update={"val_split": "val"}), tmp_path / "out")
    path = tmp_path / "out/step-000002/state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    state["identity"]["tokenizer"] = "0" * 64
    path.write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(ConfigError, match="was trained with another tokenizer 000000000000, now"):
        train(small(shapes, 2), tmp_path / "out")


def test_how_the_work_is_done_may_change_between_checkpoints(shapes: str, trained: Path) -> None:
    changed = small(shapes, 2, loader_threads=0, activation_checkpointing=True, keep={"last": 1}, optim={"micro_rows": 1})
    assert train(changed, trained).step == 2


def test_a_checkpoint_holds_whole_tensors_by_name(trained: Path) -> None:
    found = latest(trained)
    assert found is not None
    model, optim = found.tensors("model"), found.tensors("optim")
    assert set(model) == set(found.tensors("ema"))
    assert {name.rpartition("/")[0] for name in optim} == set(model)
    assert {name.rpartition("/")[2] for name in optim} == {"step", "exp_avg", "exp_avg_sq"}
    assert found.state["counters"]["samples"] == records(trained)[-1]["samples"]


def test_an_export_is_the_averaged_weights_and_what_they_are(trained: Path, tmp_path: Path) -> None:
    out = export_model(trained, tmp_path / "model")
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    facts = json.loads((out / "config.json").read_text(encoding="utf-8"))
    model = Transformer(TrainConfig.model_validate(facts["config"]), Sizes(**facts["sizes"]))
    model.load_state_dict(load_file(out / "model.safetensors"))
    found = latest(trained)
    assert found is not None
    assert all(torch.equal(value, found.tensors("ema")[name]) for name, value in model.state_dict().items())
    assert facts["step"] == 2


def test_an_export_takes_one_checkpoint_and_a_new_folder(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export("model", str(trained / "step-000002"), str(tmp_path / "model"))
    assert capsys.readouterr().out.strip() == str(tmp_path / "model")
    with pytest.raises(ConfigError, match="model is there already"):
        export("model", str(trained), str(tmp_path / "model"))
    with pytest.raises(ConfigError, match="no checkpoint is in it"):
        export("model", str(tmp_path), str(tmp_path / "other"))
