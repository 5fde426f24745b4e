"""`clip_score`: what is scored, with which numbers, and what is refused before a run."""

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmdata.engine import Runner, RunStore
from mmdata.engine.task import Task, TaskReport
from mmdata.engine.worker import run_task
from mmdata.errors import ConfigError, MmdataError
from mmdata.executors import InlineExecutor
from mmdata.media import Jail, Jails, decode
from mmdata.models import TINY_CLIP_FOLDER, OpenClip, ScorerSpec
from mmdata.models.numerics import choose_dtype, native_bfloat16
from mmdata.models.openclip import OpenClipTowers, tokens_of
from mmdata.plan import load_plan
from mmdata.stages.clip_score import ClipScore
from mmdata.stages.verbs import Resources
from tests.conftest import write_yaml
from tests.scores.small import plan_of, rows, run, write_images, write_model

Open = Callable[..., OpenClipTowers]


@pytest.fixture(scope="module")
def opened() -> Open:
    """Open a model, once for each way to."""
    found: dict[OpenClip, OpenClipTowers] = {}

    def get(**fields: Any) -> OpenClipTowers:  # noqa: ANN401 - of a spec
        spec = OpenClip(**fields)
        if spec not in found:
            with spec.open("cpu", 1) as towers:
                found[spec] = towers
        return found[spec]

    return get


def some_images() -> list[np.ndarray]:
    """Photos would do as well: smooth, with edges, of many shapes and sizes, one smaller than any model's input."""
    draw = np.random.default_rng(7)
    sizes = [(300, 200), (120, 480), (64, 64), (20, 31), (333, 127)]
    return [
        np.asarray(Image.fromarray(draw.integers(0, 255, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC))
        for size in sizes
    ]


PREPROCESSING = {
    "shortest": {}, "squash": {"resize_mode": "squash", "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
    "longest": {"resize_mode": "longest", "interpolation": "bilinear", "fill_color": 128},
}  # fmt: skip


@pytest.mark.parametrize("mode", PREPROCESSING)
def test_scores_are_those_of_open_clips_own_transform(tmp_path: Path, mode: str) -> None:
    import open_clip

    folder = write_model(tmp_path / mode, preprocess_cfg=PREPROCESSING[mode])
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    images, texts = some_images(), [f"number {number}" for number in range(5)]
    with torch.inference_mode():
        left = model.eval().encode_image(torch.stack([preprocess(Image.fromarray(image)) for image in images]), normalize=True)
        right = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(texts), normalize=True)
    with OpenClip(model=str(folder), batch=4).open("cpu", 1) as towers:
        scores = towers.score(images, texts)
    assert np.abs(scores - (left * right).sum(-1).numpy()).max() < 1e-5  # 1e-3 is what is asked


def test_bf16_scores_are_near_those_of_fp32(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "vit", vision={"layers": 3, "width": 64})
    texts = ["a tree", "a red car", "two birds", "a house by the sea", "a flag"]
    scores = {}
    for dtype in ("float32", "bfloat16"):
        with OpenClip(model=str(folder), dtype=dtype, batch=5).open("cpu", 1) as towers:
            scores[dtype] = towers.score(some_images(), texts)
            assert towers.profile["dtype"] == dtype
    assert 0 < np.abs(scores["float32"] - scores["bfloat16"]).max() < 0.01


def test_auto_takes_bf16_only_where_the_processor_has_it_and_the_model_bears_it(opened: Open, tmp_path: Path) -> None:
    flags = {word for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() for word in line.split()}
    has_it = bool({"avx512_bf16", "amx_bf16", "bf16"} & flags)
    assert native_bfloat16("cpu") == has_it
    assert choose_dtype("auto", "cpu", torch.nn.LayerNorm(2)) == (torch.bfloat16 if has_it else torch.float32)
    assert choose_dtype("auto", "cpu", torch.nn.BatchNorm2d(2)) == torch.float32
    assert opened(batch=4).profile["dtype"] == "float32"


def test_a_caption_beyond_the_context_is_cut_there(opened: Open) -> None:
    image = some_images()[0]
    words = " ".join(f"{word} tree" for word in ("red", "green", "blue") * 20)  # 120 tokens, of which 30 fit
    scores = opened(batch=4).score([image] * 3, [words, words + " and a ship at sea", "and a ship " + words])
    assert scores[0] == scores[1]
    assert scores[0] != scores[2]


def test_null_empty_and_blank_captions_have_no_score_and_are_kept(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 5, {1: None, 2: "", 3: " \n\t"})
    result = run(plan_of(images, ClipScore(scorer=ScorerSpec(fake=True))), tmp_path / "run")
    assert [row["clip_score"] is None for row in rows(tmp_path / "run", "clip_score")] == [False, True, True, True, False]
    assert result.funnel["kept"] == 5


def test_scores_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "open_clip_config.json").write_bytes((TINY_CLIP_FOLDER / "open_clip_config.json").read_bytes())
    weights = load_file(TINY_CLIP_FOLDER / "open_clip_model.safetensors")
    weights["text_projection"][0, 0] = float("nan")
    save_file(weights, folder / "open_clip_model.safetensors")
    stage = ClipScore(scorer=ScorerSpec(open_clip=OpenClip(model=str(folder), batch=4)))
    result = run(plan_of(write_images(tmp_path / "images", 6, {2: None}), stage, sink=False), tmp_path / "run")
    assert result.funnel["dropped"] == {"scorer_error": 5}
    assert [row["reason"] for row in rows(tmp_path / "run")].count(None) == 1  # without a caption nothing was scored


def test_several_models_look_at_one_decoded_image_and_one_set_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path / "images", 10)
    specs = [ScorerSpec(open_clip=OpenClip(model=str(write_model(tmp_path / name)), batch=4)) for name in ("one", "other")]
    stages = [ClipScore(scorer=spec, column=f"by_{number}") for number, spec in enumerate(specs)]
    decoded: list[int] = []
    own = Jails.get

    def get(jails: Jails) -> Jail:
        decoded.append(1)
        return own(jails)

    monkeypatch.setattr(Jails, "get", get)
    tokens = tokens_of(f"local-dir:{specs[0].clip.model}")
    assert tokens is tokens_of(f"local-dir:{specs[1].clip.model}")
    before = tokens.cut
    plan = plan_of(images, *stages, sink=False)
    assert [segment.label for segment in plan.segments] == ["clip_score + clip_score"]
    run(plan, tmp_path / "run")
    assert len(decoded) == 10
    assert tokens.cut - before == 4  # different captions
    assert all(row["by_0"] != row["by_1"] for row in rows(tmp_path / "run", "by_0", "by_1"))


class Confined(InlineExecutor):
    """Tasks in this process, held to what their stages may use."""

    def submit(self, task: Task) -> Future[TaskReport]:
        future: Future[TaskReport] = Future()
        try:
            future.set_result(run_task(task))
        except MmdataError as error:
            future.set_exception(error)
        return future


def test_memory_that_is_too_small_halves_the_batch_and_does_the_partition_again(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 6)
    spec = OpenClip(model=str(write_model(tmp_path / "small")), batch=65_536)  # 192 MiB of pixels alone
    stage = ClipScore(scorer=ScorerSpec(open_clip=spec), resources=Resources(memory_mib=192))
    result = Runner(plan_of(images, stage), str(tmp_path / "run")).execute(Confined(), quiet=True)
    assert result.funnel["kept"] == 6
    store = RunStore(str(tmp_path / "run"))
    (profile,) = store.manifest(1)["profiles"]["clip_score"]
    facts = json.loads(profile)
    assert facts["batch"] in [2**power for power in range(7, 15)]
    assert facts["device"].startswith("cpu ")
    assert {"dtype", "threads", "torch"} <= set(facts)
    with spec.model_copy(update={"batch": 8}).open("cpu", 1) as towers:
        pixels = [decode(path.read_bytes()) for path in sorted(images.glob("*.png"))]
        expected = towers.score(pixels, [path.read_text() for path in sorted(images.glob("*.txt"))])
    found = np.asarray([row["clip_score"] for row in rows(tmp_path / "run", "clip_score")])
    assert np.abs(found - expected).max() < 1e-5


def test_a_batch_of_any_size_is_no_other_question(tmp_path: Path) -> None:
    keys = {
        json.dumps(ClipScore(scorer=ScorerSpec(open_clip=OpenClip(**fields))).asked())
        for fields in ({}, {"batch": 7}, {"dtype": "bfloat16"})
    }
    assert len(keys) == 1
    assert json.dumps(ClipScore(column="other").asked()) not in keys


REFUSED = {
    "{model: ViT-B-33, weights: openai}": r"plan.yaml:4: open_clip knows no `ViT-B-33`[\s\S]*did you mean `ViT-B-32`",
    "{model: ViT-B-32, weights: laion2b_s34b_b79}": r"plan.yaml:4: open_clip knows no `ViT-B-32` / [\s\S]*`laion2b_s34b_b79k`",
    "{model: ViT-B-32}": r"plan.yaml:4: open_clip model `ViT-B-32` is named without weights",
    "{model: ViT-B-32, weights: /nowhere/model.pt}": r"plan.yaml:4: /nowhere/model.pt: no such weights file",
    "{model: ./nowhere}": r"plan.yaml:4: ./nowhere: no model of open_clip lies there\n  hint: its folder holds `open_clip_",
    "{model: mmdata-tiny, weights: openai}": r"plan.yaml:4: `mmdata-tiny` brings its own weights",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_models_that_do_not_exist_are_refused_before_the_run(tmp_path: Path, spec: str) -> None:
    write_images(tmp_path / "images", 1)
    text = f"name: x\nsource: {{folder: {{path: images}}}}\nstages:\n  - clip_score: {{scorer: {{open_clip: {spec}}}}}\n"
    with pytest.raises(ConfigError, match=REFUSED[spec]):
        load_plan(write_yaml(tmp_path, text), base=tmp_path)


@pytest.mark.parametrize("spec", [{"model": "ViT-B-32", "weights": "laion2b_s34b_b79k"}, {"model": "hf-hub:nobody/no-model"}])
def test_without_a_hub_it_says_so_and_what_to_do(spec: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot be fetched: [\s\S]*hint: where no hub can be reached, copy the model here"):
        OpenClip(**spec).digests()


def test_weights_of_another_model_stop_the_run(tmp_path: Path) -> None:
    spec = OpenClip(model="ViT-B-32", weights=str(TINY_CLIP_FOLDER / "open_clip_model.safetensors"))
    with pytest.raises(ConfigError, match=r"the model ViT-B-32 .* cannot be loaded: "), spec.open("cpu", 1):
        pass


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="but no weights"):
        OpenClip(model=str(tmp_path)).digests()
