"""The trainer against formulas: masks, packing, caches, losses, resume."""

import copy
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdata.config import parse_yaml
from mmdata.errors import ConfigError
from mmdata.loader import keyed, read_sample
from mmdata.shards import open_corpus
from mmdata.text import Tokenizer, train_tokenizer
from mmdata.text.tokenizer import BOI, BOS, EOI, EOS, NULL
from mmdata.trainer import TrainConfig, train
from mmdata.trainer.batch import Batch, attention_mask, collate
from mmdata.trainer.checkpoint import latest, open_checkpoint
from mmdata.trainer.log import TIMED
from mmdata.trainer.model import Transformer
from mmdata.trainer.objectives import is_low, loss_sums, velocity_to_clean, weighted
from mmdata.trainer.sampler import Reader, integrate, write_image, write_text
from mmdata.trainer.sequence import CAUSAL, EDGE, FULL, NO_TARGET, NOISE, Sequencer, Tokens, draw_time, from_patches, to_patches
from tests.corpus import draw, make_corpus


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def config(**changes: object) -> TrainConfig:
    base = {
        "name": "t", "corpus": ".", "image": {"size": 8, "patch": 4}, "model": {"width": 48, "layers": 2, "heads": 2},
        "layout": {"row_tokens": 96}, "text": {"vocab": 320}, "threads": 1,
    }  # fmt: skip
    return TrainConfig.model_validate(base | changes)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a red square", "a blue bar"] * 4, 320)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Transformer:
    torch.manual_seed(0)
    made = Transformer(config(), tokenizer.size).double()
    torch.nn.init.normal_(made.patch_out.weight, std=0.1)
    return made


def sequencer(tokenizer: Tokenizer, **changes: object) -> Sequencer:
    return Sequencer(config(**changes), tokenizer)


def lay_out(tokenizer: Tokenizer, order: str, **changes: object) -> Tokens:
    """`order` spells a document: t = text, i = image."""
    blocks = [
        tokenizer.encode(f"a red {place}") if kind == "t" else to_patches(draw("red", "bar"), config())
        for place, kind in enumerate(order)
    ]
    return sequencer(tokenizer, **changes).lay_out(blocks, drop_text=False, noise=keyed("noise", order))


def as_double(batch: Batch) -> Batch:
    return Batch(**{name: value.double() if value.is_floating_point() else value for name, value in vars(batch).items()})


def batch_of(rows: list[list[Tokens]]) -> Batch:
    return as_double(collate(rows, 96, bidirectional=True, isolated=True))


def hidden(model: Transformer, batch: Batch) -> torch.Tensor:
    out: torch.Tensor
    out, _ = model(batch.ids_BL, batch.patches_BLP, batch.grid_BL, batch.time_BL, batch.pos_BL, batch.mask_BLL)
    return out


def test_the_mask_is_the_formula() -> None:
    random = keyed("masks")
    for _ in range(200):
        num = int(random.integers(1, 14))
        doc = np.sort(random.integers(0, 3, num))
        split = np.cumsum(random.integers(0, 2, num)) + 100 * doc
        mode = random.integers(0, 4, num)
        found = attention_mask(doc, split, mode)
        for q, k in itertools.product(range(num), repeat=2):
            same = split[q] == split[k] and mode[q] in (FULL, NOISE) and mode[k] in (FULL, NOISE)
            noise = mode[k] == NOISE and not (split[q] == split[k] and mode[q] == NOISE)
            edge = mode[k] == EDGE and split[q] != split[k]
            expected = q == k or (doc[q] == doc[k] and (q >= k or same) and not noise and not edge)
            assert found[q, k] == expected


def test_a_caption_before_its_image(tokenizer: Tokenizer) -> None:
    tokens = lay_out(tokenizer, "ti")
    text = tokenizer.encode("a red 0")
    num = len(text)
    assert tokens.ids_T.tolist() == [BOS, *text, BOI, 0, 0, 0, 0, EOI, EOS]
    assert tokens.mode_T.tolist() == [CAUSAL] * (num + 2) + [NOISE] * 4 + [CAUSAL] * 2
    assert tokens.target_T.tolist() == [*text, BOI, NO_TARGET, *[NO_TARGET] * 4, EOS, NO_TARGET]
    assert len(set(tokens.pos_T[num + 1 : num + 7].tolist())) == 1  # boi, patches and eoi share a position
    assert tokens.grid_T[num + 2 : num + 6].tolist() == [0, 1, 2, 3]


def test_an_image_before_its_caption_is_clean(tokenizer: Tokenizer) -> None:
    tokens = lay_out(tokenizer, "it")
    assert set(tokens.mode_T.tolist()) == {CAUSAL, FULL}
    assert not tokens.time_T.any()


def test_a_generated_image_within_a_document_has_a_clean_copy_in_its_place(tokenizer: Tokenizer) -> None:
    tokens = lay_out(tokenizer, "tit")
    noisy, clean = tokens.mode_T == NOISE, tokens.mode_T == FULL
    assert noisy.sum() == clean.sum() == 4
    assert set(tokens.pos_T[noisy]) == set(tokens.pos_T[clean])  # sampling puts the clean image where the noise was


@pytest.mark.parametrize("order", ["ti", "it", "tit", "tiit", "itit", "t", "tt"])
def test_length_bounds_what_is_laid_out(tokenizer: Tokenizer, order: str) -> None:
    texts = [len(tokenizer.encode(f"a red {place}")) for place, kind in enumerate(order) if kind == "t"]
    assert len(lay_out(tokenizer, order)) <= sequencer(tokenizer).length(texts, order.count("i"))


def test_a_dropped_caption_is_null_and_not_learnt(tokenizer: Tokenizer) -> None:
    words = tokenizer.encode("a red bar")
    blocks: list[list[int] | np.ndarray] = [words, to_patches(draw("red", "bar"), config())]
    tokens = sequencer(tokenizer).lay_out(blocks, drop_text=True, noise=keyed(0))
    num = len(words)
    assert tokens.ids_T[1 : num + 1].tolist() == [NULL] * num
    assert tokens.target_T[:num].tolist() == [NO_TARGET] * num
    assert (tokens.mode_T == NOISE).any()


def test_packed_is_as_alone(tokenizer: Tokenizer, model: Transformer) -> None:
    samples = [lay_out(tokenizer, order) for order in ("ti", "it", "tit")]
    together = hidden(model, batch_of([samples]))[0]
    at = 0
    for sample in samples:
        alone = hidden(model, batch_of([[sample]]))[0, : len(sample)]
        assert (together[at : at + len(sample)] - alone).abs().max() < 1e-12
        at += len(sample)


def test_noise_is_seen_by_itself_alone(tokenizer: Tokenizer, model: Transformer) -> None:
    tokens = lay_out(tokenizer, "tit")
    noisy = tokens.mode_T == NOISE
    other = copy.deepcopy(tokens)
    other.patches_TP[noisy] += 1.0
    change = (hidden(model, batch_of([[tokens]])) - hidden(model, batch_of([[other]])))[0, : len(tokens)].abs().amax(-1)
    assert change[torch.from_numpy(~noisy)].max() == 0
    assert change[torch.from_numpy(noisy)].min() > 0


def test_images_are_seen_whole_and_by_later_text(tokenizer: Tokenizer, model: Transformer) -> None:
    tokens = lay_out(tokenizer, "it")
    other = copy.deepcopy(tokens)
    last = int(np.flatnonzero(tokens.mode_T == FULL)[-1])
    other.patches_TP[last] += 1.0
    change = (hidden(model, batch_of([[tokens]])) - hidden(model, batch_of([[other]])))[0].abs().amax(-1)
    assert change[2] > 0  # the first patch sees the last
    assert change[len(tokens) - 1] > 0  # so does the text after it
    assert change[:2].max() == 0  # bos and boi do not


def test_cached_is_as_uncached(tokenizer: Tokenizer, model: Transformer) -> None:
    tokens = lay_out(tokenizer, "it")
    reader = Reader(model)
    reader.text([BOS])
    patches = torch.from_numpy(to_patches(draw("red", "bar"), config())).double()
    logits = [reader.image(patches)]
    text = tokenizer.encode("a red 1")
    logits += [reader.text([index]) for index in text]
    whole = model.text_head(hidden(model, batch_of([[tokens]])))[0]
    first = int(np.flatnonzero(tokens.ids_T == EOI)[0])
    for place, found in enumerate(logits):
        assert (whole[first + place] - found).abs().max() < 1e-12


def test_text_after_a_generated_image_is_as_sampling_sees_it(tokenizer: Tokenizer, model: Transformer) -> None:
    tokens = lay_out(tokenizer, "tit")
    whole = model.text_head(hidden(model, batch_of([[tokens]])))[0]
    reader = Reader(model)
    reader.text([BOS, *tokenizer.encode("a red 0")])
    logits = [reader.image(torch.from_numpy(to_patches(draw("red", "bar"), config())).double())]
    logits += [reader.text([index]) for index in tokenizer.encode("a red 2")]
    clean_eoi = int(np.flatnonzero(tokens.ids_T == EOI)[-1])
    for place, found in enumerate(logits):
        assert (whole[clean_eoi + place] - found).abs().max() < 1e-12


def test_the_end_of_a_noisy_copy_predicts_nothing(tokenizer: Tokenizer) -> None:
    tokens = lay_out(tokenizer, "tit")
    noisy_eoi, clean_eoi = np.flatnonzero(tokens.ids_T == EOI)
    assert tokens.target_T[noisy_eoi] == NO_TARGET
    assert tokens.target_T[clean_eoi] == tokenizer.encode("a red 2")[0]


def test_a_stale_cache_is_noticed(tokenizer: Tokenizer, model: Transformer) -> None:
    patches = torch.from_numpy(to_patches(draw("red", "bar"), config())).double()
    found = []
    for image in (patches, patches + 0.5):
        reader = Reader(model)
        reader.text([BOS])
        found.append(reader.image(image))
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("predict", ["velocity", "clean"])
def test_the_velocity_while_sampling_is_that_of_training(tokenizer: Tokenizer, model: Transformer, predict: str) -> None:
    model.config = config(image={"size": 8, "patch": 4, "predict": predict})
    tokens = lay_out(tokenizer, "ti")
    noisy = tokens.mode_T == NOISE
    batch = batch_of([[tokens]])
    trained = model.velocity(
        hidden(model, batch)[batch.noisy_BL], batch.patches_BLP[batch.noisy_BL], batch.time_BL[batch.noisy_BL]
    )
    reader = Reader(model)
    reader.text([BOS, *tokenizer.encode("a red 0")])
    reader.text([BOI], pos=reader.pos)
    sampled = reader.patches(torch.from_numpy(tokens.patches_TP[noisy]).double(), float(tokens.time_T[noisy][0]), keep=False)
    assert (trained - sampled).abs().max() < 1e-12


def grads(model: Transformer, parts: list[Batch], whole: Batch) -> list[torch.Tensor]:
    model.zero_grad()
    for part in parts:
        weighted(loss_sums(model, part), whole.num_text, whole.num_image, config()).backward()  # type: ignore[no-untyped-call]
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_micro_batches_give_the_gradient_of_one_batch(tokenizer: Tokenizer, model: Transformer) -> None:
    rows = [[lay_out(tokenizer, "ti"), lay_out(tokenizer, "it")], [lay_out(tokenizer, "tit")], [lay_out(tokenizer, "t")]]
    whole = batch_of(rows)
    once = grads(model, [whole], whole)
    thrice = grads(model, [whole.rows(n, n + 1) for n in range(3)], whole)
    assert len(once) == len(thrice) == len(list(model.parameters()))
    assert max(float((a - b).abs().max()) for a, b in zip(once, thrice, strict=True)) < 1e-12


def test_a_batch_without_images_gives_zero_and_not_no_gradient(tokenizer: Tokenizer, model: Transformer) -> None:
    batch = batch_of([[lay_out(tokenizer, "t")]])
    grads(model, [batch], batch)
    gradient = model.patch_out.weight.grad
    assert gradient is not None
    assert gradient.abs().max() == 0


def test_the_flow_loss_of_the_best_velocity_is_the_closed_form() -> None:
    # x ~ N(1.5, 0.5^2): v*(x_t, t) = ((t - (1-t) s^2) / V)(x_t - (1-t) mu) - mu with V = (1-t)^2 s^2 + t^2; loss s^2 / V.
    mu, s, random = 1.5, 0.5, keyed("gauss")
    x, eps = mu + s * random.standard_normal(400_000), random.standard_normal(400_000)
    for t, expected in ((0.1, 1.1765), (0.5, 0.8), (0.9, 0.3077)):
        variance = (1 - t) ** 2 * s**2 + t**2
        x_t = (1 - t) * x + t * eps
        best = (t - (1 - t) * s**2) / variance * (x_t - (1 - t) * mu) - mu
        assert np.square(best - (eps - x)).mean() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1.8), ("heun", 3.4)])
def test_solvers_converge_at_their_order(solver: str, order: float) -> None:
    mu, s = 1.5, 0.5

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        variance = (1 - t) ** 2 * s**2 + t**2
        return (t - (1 - t) * s**2) / variance * (x - (1 - t) * mu) - mu

    def error(evaluations: int) -> float:
        settings = config(sampler={"steps": evaluations, "solver": solver})
        start = torch.tensor([1.0], dtype=torch.float64)
        return abs(float(integrate(velocity, start, settings)) - (mu + s * 1.0))

    factor = 2 if solver == "heun" else 1
    assert error(50 * factor) / error(100 * factor) > order


def test_velocity_points_to_the_clean_image() -> None:
    x, eps, t = torch.tensor([0.3]), torch.tensor([-1.2]), 0.7
    assert torch.allclose(velocity_to_clean((1 - t) * x + t * eps, eps - x, t), x)


@pytest.mark.parametrize("how", ["logit_normal", "uniform"])
def test_noise_times_lie_inside_and_shift_up(how: str) -> None:
    plain = [draw_time(keyed(n), config(time={"draw": how})) for n in range(500)]
    shifted = [draw_time(keyed(n), config(time={"draw": how, "shift": 3.0})) for n in range(500)]
    assert 0 < min(plain) < max(plain) < 1
    assert np.mean(plain) == pytest.approx(0.5, abs=0.05)
    assert np.mean(shifted) > 0.6


def test_patches_and_back() -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(from_patches(to_patches(image, config()), config()), image)


def test_chance_is_the_generators_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    sample = read_sample(open_corpus(make_corpus(tmp_path, num=1)), 0)
    first, second = (sequencer(tokenizer)(sample, keyed(3)) for _ in range(2))
    assert np.array_equal(first.patches_TP, second.patches_TP)
    noises = {sequencer(tokenizer)(sample, keyed(epoch)).patches_TP.tobytes() for epoch in range(8)}
    assert len(noises) > 2


def test_guidance_of_one_is_the_condition_alone(tokenizer: Tokenizer, model: Transformer) -> None:
    ids = tokenizer.encode("a red bar")
    images = {}
    for scale in (0.0, 1.0, 2.0):
        guided = copy.deepcopy(model)
        guided.config = config(sampler={"steps": 4, "cfg": scale})
        images[scale] = write_image(guided, ids, keyed("x"))
    assert not np.array_equal(images[1.0], images[2.0])
    assert not np.array_equal(images[0.0], images[1.0])


def test_the_tokenizer_gives_texts_back(tokenizer: Tokenizer) -> None:
    for text in ("a red square", "日本 🙂 <bos> \n", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert BOS not in tokenizer.encode("<bos>")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: t\ncorpus: x\nmask: full\n", r"c.yaml:3: `mask`: Input should be 'span_bidir' or 'causal'"),
        ("name: t\ncorpus: x\nimage: {objective: ar}\n", r"c.yaml:3: `image.objective`: Input should be 'flow'"),
        ("name: t\ncorpus: x\nimage: {size: 30, patch: 4}\n", r"c.yaml:3: `image`: `size` 30 is no multiple of `patch` 4"),
        ("name: t\ncorpus: x\nimage: {patch: 8}\n", r"`image.patch` 8 makes 192 numbers a patch, above `model.width` 128"),
        ("name: t\ncorpus: x\nnoise_isolated: false\n", r"c.yaml:1: `TrainConfig`: `layout.clean_copy` is for isolated noise"),
        (
            "name: t\ncorpus: x\noptim:\n  stepz: 4\n",
            r"c.yaml:4: `trainconfig` has no key `optim.stepz`[\s\S]*did you mean `steps`",
        ),
    ],
)
def test_wrong_configs_name_their_line(text: str, message: str) -> None:
    from mmdata.config import build

    with pytest.raises(ConfigError, match=message):
        build(TrainConfig, parse_yaml(text, "c.yaml"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("shapes"), num=48, val=0.2)


def small(corpus: str, steps: int, **changes: object) -> TrainConfig:
    optim = {"steps": steps, "rows": 2, "micro_rows": 1, "warmup": 5, "lr": 3e-3}
    return config(corpus=corpus, optim=optim, checkpoint_every=5, eval_every=5, **changes)


def losses(out: Path) -> list[str]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [repr({key: value for key, value in record.items() if key not in TIMED}) for record in records]


def test_training_resumed_is_bitwise_training_uninterrupted(shapes: str, tmp_path: Path) -> None:
    train(small(shapes, 14), tmp_path / "whole")
    whole = losses(tmp_path / "whole")
    assert len(whole) == 14
    # Stop after 5, 10 and 14 steps by ending the process's work at a checkpoint: the longer run resumes from it.
    for stop in (5, 10):
        broken = tmp_path / f"broken-{stop}"
        train(small(shapes, 14), broken)
        for path in broken.glob("step-*"):
            if int(path.name.split("-")[1]) > stop:
                for file in path.iterdir():
                    file.unlink()
                path.rmdir()
        train(small(shapes, 14), broken)
        assert losses(broken) == whole
        ours, theirs = latest(broken), latest(tmp_path / "whole")
        assert ours is not None
        assert theirs is not None
        assert ours.state["files"] == theirs.state["files"]


def test_a_finished_training_is_left_alone(shapes: str, tmp_path: Path) -> None:
    first = train(small(shapes, 5), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert train(small(shapes, 5), tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_damaged_checkpoint_is_passed_over(shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(small(shapes, 10), tmp_path)
    weights = result.checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 5
    assert "model.safetensors: missing or damaged; using the one before" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="missing or damaged"):
        open_checkpoint(result.checkpoint)


def test_another_config_is_refused(shapes: str, tmp_path: Path) -> None:
    train(small(shapes, 5), tmp_path)
    with pytest.raises(ConfigError, match="was trained with another config"):
        train(small(shapes, 5, seed=1), tmp_path)


def test_the_model_learns_both_ways(shapes: str, tmp_path: Path) -> None:
    settings = config(
        corpus=shapes, image={"size": 16, "patch": 4}, model={"width": 64, "layers": 2, "heads": 2}, layout={"row_tokens": 256},
        optim={"steps": 400, "rows": 2, "micro_rows": 2, "warmup": 20, "lr": 3e-3}, checkpoint_every=400, eval_every=400,
    )  # fmt: skip
    result = train(settings, tmp_path)
    records = [json.loads(line) for line in result.metrics.read_text(encoding="utf-8").splitlines()]
    start, end = records[0], records[-1]
    assert start["loss/text"] > math.log(150)
    assert end["val/text"] < 0.8  # "a red square": the colour and the shape are to be read from the image
    assert end["val/latents"] < 0.4
    checkpoint = open_checkpoint(result.checkpoint)
    model, words = checkpoint.model(), checkpoint.tokenizer
    pairs = [(color, shape) for color in ("red", "green", "blue", "black") for shape in ("square", "bar")]
    made = [words.decode(write_text(model, to_patches(draw(*pair), settings), keyed(0))) for pair in pairs]
    assert sum(text == f"a {color} {shape}" for text, (color, shape) in zip(made, pairs, strict=True)) >= 7
    templates = np.stack([to_patches(draw(*pair), settings) for pair in pairs])
    right = 0
    for place, (color, shape) in enumerate(pairs):
        image = write_image(model, words.encode(f"a {color} {shape}"), keyed(place))
        right += int(np.square(templates - image).mean((1, 2)).argmin() == place)
    assert right >= 6


def test_automatic_precision_is_float32_where_bfloat16_is_emulated() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split() if Path("/proc/cpuinfo").exists() else []
    native = any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    assert is_low("auto", "cpu") == native
    assert (is_low("bfloat16", "cpu"), is_low("float32", "cpu")) == (True, False)
