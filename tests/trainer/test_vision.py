"""Image tokenizers: round trips, quantizers against brute force and closed forms, training, folders that are damaged."""

import itertools
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdata.cli.main import main
from mmdata.errors import ConfigError, RunError
from mmdata.loader import Batch, Loader, keyed
from mmdata.shards import open_corpus
from mmdata.trainer.vision import (
    ImageTokenizer,
    TokenizerConfig,
    fit_square,
    load_tokenizer,
    load_tokenizer_config,
    make_tokenizer,
    train_image_tokenizer,
)
from mmdata.trainer.vision.autoencoders import Autoencoder, KlTokenizer
from mmdata.trainer.vision.clusters import lloyd, nearest, seeds
from mmdata.trainer.vision.config import LossConfig
from mmdata.trainer.vision.fit import Fit, reconstruction_loss
from mmdata.trainer.vision.images import Squares, all_images
from mmdata.trainer.vision.measure import measure
from mmdata.trainer.vision.pixels import from_patches, to_patches, to_unit
from mmdata.trainer.vision.quantize import Codebook, Fsq, straight_through
from tests.conftest import write_yaml
from tests.corpus import draw, make_corpus

ROOT = Path(__file__).parents[2]
SPECS: dict[str, dict[str, Any]] = {
    "patches": {"factor": 4},
    "kmeans": {"factor": 4, "codes": 12, "num_patches": 600},
    "vq": {"factor": 4, "width": 8, "codes": 16, "dim": 4},
    "fsq": {"factor": 4, "width": 8, "levels": [5, 3, 3]},
    "kl": {"factor": 4, "width": 8, "channels": 3},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Coloured shapes of 32 pixels, a quarter of them held out."""
    return make_corpus(tmp_path_factory.mktemp("shapes"), num=64, val=0.25)


def config(corpus: str, kind: str, **changes: object) -> TokenizerConfig:
    base: dict[str, Any] = {
        "name": kind,
        "corpus": corpus,
        "size": 16,
        "device": "cpu",
        "tokenizer": {"kind": kind, **SPECS[kind]},
    }
    if kind not in ("patches", "kmeans"):
        base["fit"] = {"steps": 30, "batch": 8, "lr": 4e-3, "warmup": 3, "ema": 0.8}
    return TokenizerConfig.model_validate(base | changes)


def made(kind: str) -> ImageTokenizer:
    torch.manual_seed(0)
    tokenizer = make_tokenizer(config(".", kind).tokenizer)
    for name, value in tokenizer.named_buffers():
        if "codebook" in name:
            value.normal_()
    return tokenizer.eval()


def noise(*shape: int) -> Tensor:
    return torch.from_numpy(keyed("pixels", shape).integers(0, 256, shape, dtype=np.uint8))


def psnr(tokenizer: ImageTokenizer, corpus: str, split: str = "val") -> float:
    figures, _ = measure(tokenizer, all_images(open_corpus(corpus), split, 16, batch=16), split)
    assert figures.psnr_db is not None
    return figures.psnr_db


class TestPixels:
    def test_an_image_is_fitted_whole_with_white_borders(self) -> None:
        fitted = fit_square(np.zeros((20, 40, 3), np.uint8), 16)
        assert fitted.shape == (16, 16, 3)
        assert (fitted[:4] == 255).all()
        assert (fitted[4:12] == 0).all()
        assert (fitted[12:] == 255).all()

    def test_patches_lie_in_raster_order(self) -> None:
        images_BHWC = noise(2, 8, 12, 3)
        patches_BNP = to_patches(images_BHWC, 4)
        for row, column in itertools.product(range(2), range(3)):
            square = images_BHWC[1, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert torch.equal(patches_BNP[1, 3 * row + column], square.flatten())
        assert torch.equal(from_patches(patches_BNP, (2, 3), 4), images_BHWC)

    def test_the_images_of_a_sample_are_squares_and_one_of_them_is_drawn(self, corpus: str) -> None:
        with Loader(corpus) as loader:
            sample = next(loader).items[0]
        for single in (True, False):
            (square,) = Squares(16, single=single)(sample, keyed("x"))
            assert np.array_equal(square, fit_square(sample.blocks[0].image, 16))  # type: ignore[arg-type]

    def test_the_loss_is_of_pixels_and_of_edges(self) -> None:
        images_BHWC = torch.zeros(1, 2, 2, 1)
        made_BHWC = torch.tensor([[[[1.0], [3.0]], [[0.0], [0.0]]]])
        # Pixels: (1 + 3) / 4. Edges: down |-1|, |-3|, mean 2; across |2|, |0|, mean 1.
        assert float(reconstruction_loss(made_BHWC, images_BHWC, LossConfig(pixels="l1", edges=0.5))) == 1 + 0.5 * 3
        assert float(reconstruction_loss(made_BHWC, images_BHWC, LossConfig(pixels="mse", edges=0))) == 10 / 4


class TestEveryKind:
    @pytest.mark.parametrize("kind", SPECS)
    def test_any_size_that_is_a_multiple_of_the_factor(self, kind: str) -> None:
        tokenizer, pixels_BHWC = made(kind), noise(2, 8, 12, 3)
        tokens = tokenizer.encode(pixels_BHWC)
        if tokenizer.codes:
            assert tokens.shape == (2, 6)
            assert tokens.dtype == torch.int64
            assert 0 <= int(tokens.min()) <= int(tokens.max()) < tokenizer.codes
        else:
            assert tokens.shape == (2, 6, tokenizer.channels)
            assert tokens.dtype == torch.float32
        again_BHWC = tokenizer.decode(tokens, (2, 3))
        assert again_BHWC.shape == pixels_BHWC.shape
        assert again_BHWC.dtype == torch.uint8
        assert torch.equal(tokenizer.decode(tokens[1:], (2, 3)), again_BHWC[1:])

    @pytest.mark.parametrize("kind", SPECS)
    def test_a_saved_tokenizer_is_the_same(self, kind: str, tmp_path: Path) -> None:
        tokenizer = made(kind)
        tokenizer.save(tmp_path / "t")
        again = load_tokenizer(tmp_path / "t")
        assert again.digest == tokenizer.digest
        assert again.spec == tokenizer.spec
        assert torch.equal(again.encode(noise(1, 8, 8, 3)), tokenizer.encode(noise(1, 8, 8, 3)))
        assert not any(value.requires_grad for value in again.parameters())

    def test_a_size_that_the_factor_does_not_divide_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="an image of 12 x 10 pixels cannot be cut into tokens of 4 x 4") as caught:
            made("fsq").encode(noise(1, 10, 12, 3))
        assert "multiples of 4" in str(caught.value.hint)

    def test_what_is_not_rgb_bytes_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"takes RGB bytes, not 3 channels of torch\.float32"):
            made("fsq").encode(torch.zeros(1, 8, 8, 3))
        with pytest.raises(ConfigError, match=r"takes RGB bytes, not 4 channels"):
            made("fsq").encode(noise(1, 8, 8, 4))

    def test_patches_give_every_byte_back(self) -> None:
        every_BHWC = torch.arange(256, dtype=torch.uint8).reshape(1, 8, 32, 1).expand(1, 8, 32, 3)
        tokenizer = made("patches")
        tokens_BNC = tokenizer.encode(every_BHWC)
        assert float(tokens_BNC.min()) == -1
        assert float(tokens_BNC.max()) == 1
        assert torch.equal(tokenizer.decode(tokens_BNC, (2, 8)), every_BHWC)

    def test_the_digest_covers_the_spec_and_every_tensor(self) -> None:
        tokenizer = made("vq")
        before = tokenizer.digest
        for value in tokenizer.state_dict().values():
            kept = value.clone()
            value.view(-1)[0] += 1
            assert tokenizer.digest != before
            value.copy_(kept)
        assert tokenizer.digest == before
        assert make_tokenizer(config(".", "patches").tokenizer).digest != before


class TestFsq:
    @pytest.mark.parametrize("levels", [(5, 3, 3), (8, 4, 2), (7,), (2, 2)])
    def test_codes_and_vectors_are_one_to_one(self, levels: tuple[int, ...]) -> None:
        fsq = Fsq(levels)
        codes_K = torch.arange(fsq.num)
        vectors_KD = fsq.vectors(codes_K)
        assert len(torch.unique(vectors_KD, dim=0)) == fsq.num == int(np.prod(levels))
        assert torch.equal(fsq.codes(vectors_KD), codes_K)
        assert float(vectors_KD.abs().max()) <= 1

    @pytest.mark.parametrize("levels", [(5, 3, 3), (8, 4, 2)])
    def test_every_code_is_reached_and_no_other(self, levels: tuple[int, ...]) -> None:
        fsq = Fsq(levels)
        line = torch.cat([torch.linspace(-4, 4, 81), torch.tensor([-1e9, 1e9])])
        z_ND = torch.cartesian_prod(line, line, line)
        quantized_ND = fsq(z_ND)
        codes_N = fsq.codes(quantized_ND)
        assert torch.equal(torch.unique(codes_N), torch.arange(fsq.num))
        assert torch.allclose(fsq.vectors(codes_N), quantized_ND, atol=1e-6)
        assert torch.equal(fsq(torch.zeros(1, 3)), torch.zeros(1, 3))

    def test_the_gradient_is_that_of_the_bounded_number(self) -> None:
        fsq = Fsq((5, 8))
        z_ND = torch.tensor([[0.3, -0.7]], requires_grad=True)
        fsq(z_ND).sum().backward()
        assert z_ND.grad is not None
        # tanh(z + shift) * half, over the middle level: 5 levels have no shift.
        half = torch.tensor([4, 7]) * (1 + 1e-3) / 2
        shift = torch.atanh(torch.tensor([0, 0.5]) / half)
        wanted_ND = (1 - torch.tanh(z_ND.detach() + shift).square()) * half / torch.tensor([2, 4])
        assert torch.allclose(z_ND.grad, wanted_ND, rtol=1e-6)


class TestClusters:
    def test_the_nearest_code_is_that_of_brute_force(self) -> None:
        random = keyed("points")
        points_ND, codes_KD = (torch.from_numpy(random.standard_normal((num, 7))).float() for num in (9000, 40))
        distance_NK = np.linalg.norm(points_ND.double().numpy()[:, None] - codes_KD.double().numpy()[None], axis=-1)
        assert np.array_equal(nearest(points_ND, codes_KD).numpy(), distance_NK.argmin(-1))

    def test_separate_heaps_are_found(self) -> None:
        centres_KD = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0], [500.0, 500.0]])
        offsets_MD = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
        points_ND = (centres_KD[:, None] + offsets_MD).flatten(0, 1)
        errors: list[float] = []
        codes_KD = lloyd(points_ND, seeds(points_ND, 5, keyed("heaps")), 10, lambda _, error: errors.append(error))
        assert {tuple(code) for code in codes_KD.tolist()} == {tuple(centre) for centre in centres_KD.tolist()}
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] == 0.5  # a squared distance of 1 over two numbers

    def test_each_round_lowers_the_error_and_no_code_stays_empty(self) -> None:
        points_ND = torch.from_numpy(keyed("cloud").standard_normal((500, 3))).float()
        errors: list[float] = []
        codes_KD = lloyd(points_ND, seeds(points_ND, 60, keyed("cloud")), 15, lambda _, error: errors.append(error))
        assert errors == sorted(errors, reverse=True)
        assert len(torch.unique(nearest(points_ND, codes_KD))) == 60

    def test_more_codes_than_different_points(self) -> None:
        points_ND = torch.tensor([[1.0], [1.0], [2.0]])
        chosen_KD = seeds(points_ND, 5, keyed("few"))
        assert chosen_KD.shape == (5, 1)
        assert {float(value) for value in chosen_KD[:2]} == {1.0, 2.0}
        assert torch.isfinite(lloyd(points_ND, chosen_KD, 3, lambda *_: None)).all()


class TestCodebook:
    def test_the_gradient_passes_straight_through(self) -> None:
        z_ND = torch.randn(3, 2, requires_grad=True)
        out_ND = straight_through(z_ND, torch.round(z_ND))
        assert torch.equal(out_ND.detach(), torch.round(z_ND).detach())
        weights_ND = torch.randn(3, 2)
        (out_ND * weights_ND).sum().backward()  # type: ignore[no-untyped-call]
        assert z_ND.grad is not None
        assert torch.equal(z_ND.grad, weights_ND)

    def test_a_step_moves_the_averages_as_the_formula_says(self) -> None:
        book = Codebook(2, 1, decay=0.75, restart_below=0.01)
        book.vectors_KD.copy_(torch.tensor([[0.0], [10.0]]))
        book.counts_K.copy_(torch.tensor([2.0, 2.0]))
        book.sums_KD.copy_(torch.tensor([[0.0], [20.0]]))
        quantized_ND = book(torch.tensor([[1.0], [2.0], [3.0], [12.0]]), keyed("step"))
        assert quantized_ND.flatten().tolist() == [0, 0, 0, 10]
        assert book.counts_K.tolist() == [0.75 * 2 + 0.25 * 3, 0.75 * 2 + 0.25 * 1]
        assert book.sums_KD.flatten().tolist() == [0.25 * 6, 0.75 * 20 + 0.25 * 12]
        assert book.vectors_KD.flatten().tolist() == pytest.approx([1.5 / 2.25, 18 / 1.75])

    def test_a_dead_code_starts_anew_where_the_codebook_fits_worst(self) -> None:
        book = Codebook(3, 2, decay=0.9, restart_below=0.1)
        book.vectors_KD.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [1e6, 1e6]]))
        book.counts_K.copy_(torch.tensor([30.0, 30.0, 1.0]))
        book.sums_KD.copy_(book.vectors_KD * book.counts_K[:, None])
        # Half of the vectors lie on the first two codes; the rest, far away, has a chance by its squared distance.
        z_ND = torch.tensor([[0.0, 0.0]] * 45 + [[1.0, 1.0]] * 44 + [[50.0, -50.0]])
        book(z_ND, keyed("dead"))
        assert book.vectors_KD[2].tolist() == [50, -50]
        assert float(book.counts_K[2]) == len(z_ND) / 3
        assert book.codes(torch.tensor([[49.0, -49.0]])).tolist() == [2]

    def test_a_codebook_starts_on_the_first_vectors_and_is_used(self) -> None:
        book = Codebook(8, 2, decay=0.9, restart_below=0.1)
        corners_ND = torch.cartesian_prod(torch.tensor([-1.0, 1.0]), torch.tensor([0.0, 5.0, 10.0, 20.0]))
        assert torch.equal(book(corners_ND, keyed("start")), corners_ND)
        assert len(torch.unique(book.codes(corners_ND))) == 8

    def test_vectors_that_are_not_finite_leave_it_as_it_is(self) -> None:
        book = Codebook(2, 1, decay=0.9, restart_below=0.1)
        assert not torch.isfinite(book(torch.tensor([[torch.inf], [0.0]]), keyed("inf"))).any()
        assert not book.counts_K.any()


class TestKl:
    def test_the_penalty_is_the_divergence_from_a_unit_gaussian(self) -> None:
        tokenizer = made("kl")
        assert isinstance(tokenizer, KlTokenizer)
        images_BHWC = to_unit(noise(2, 8, 8, 3))
        _, penalty = tokenizer.reconstruct(images_BHWC, keyed("kl"))
        z_BNC = tokenizer.encoder(images_BHWC.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        mean_BNC, logvar_BNC = z_BNC.chunk(2, -1)
        posterior = torch.distributions.Normal(mean_BNC, (logvar_BNC / 2).exp())
        wanted = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(-1).mean()
        assert torch.allclose(penalty, tokenizer.kl_weight * wanted, rtol=1e-5)

    def test_the_scale_gives_zero_mean_and_unit_variance_and_the_same_images(self) -> None:
        tokenizer, pixels_BHWC = made("kl"), noise(4, 16, 16, 3)
        assert isinstance(tokenizer, KlTokenizer)
        before_BNC = tokenizer.encode(pixels_BHWC)
        images_BHWC = tokenizer.decode(before_BNC, (4, 4))
        for _ in range(2):  # what is scaled already stays
            tokenizer.scale_to(tokenizer.encode(pixels_BHWC).flatten(0, 1))
            tokens_MC = tokenizer.encode(pixels_BHWC).flatten(0, 1)
            assert torch.allclose(tokens_MC.mean(0), torch.zeros(3), atol=1e-5)
            assert torch.allclose(tokens_MC.std(0, correction=0), torch.ones(3), atol=1e-5)
        again_BHWC = tokenizer.decode(tokenizer.encode(pixels_BHWC), (4, 4))
        assert int((again_BHWC.int() - images_BHWC.int()).abs().max()) <= 1


class TestTraining:
    @pytest.mark.parametrize("kind", SPECS)
    def test_it_lowers_the_error_and_writes_a_report(self, kind: str, corpus: str, tmp_path: Path) -> None:
        job = config(corpus, kind)
        result = train_image_tokenizer(job, tmp_path / "t")
        tokenizer, figures = load_tokenizer(tmp_path / "t"), result.figures
        assert tokenizer.digest == result.digest
        report = json.loads((tmp_path / "t/report.json").read_text(encoding="utf-8"))
        assert report["figures"] == figures.as_json()
        assert (tmp_path / "t/samples.png").read_bytes().startswith(b"\x89PNG")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["t"]
        assert figures.split == "val"
        assert figures.num_images > 5
        assert figures.tokens_per_image == 16
        if kind == "patches":
            assert figures.psnr_db is None
            assert "exact" in figures.as_text()
        else:
            assert psnr(tokenizer, corpus) == figures.psnr_db
            assert figures.psnr_db is not None
            assert figures.psnr_db > psnr(made(kind), corpus) + 3
        if tokenizer.codes:
            assert figures.bits_per_token == pytest.approx(np.log2(tokenizer.codes))
            assert 0 < figures.codes_used <= 1  # type: ignore[operator]
            assert 1 < figures.perplexity <= tokenizer.codes  # type: ignore[operator]

    def test_the_latents_of_a_trained_one_have_unit_variance(self, corpus: str, tmp_path: Path) -> None:
        train_image_tokenizer(config(corpus, "kl"), tmp_path / "t")
        tokenizer = load_tokenizer(tmp_path / "t")
        images = all_images(open_corpus(corpus), "train", 16, batch=16)
        tokens_MC = torch.cat([tokenizer.encode(pixels_BHWC).flatten(0, 1) for pixels_BHWC in images])
        assert torch.allclose(tokens_MC.mean(0), torch.zeros(3), atol=1e-4)
        assert torch.allclose(tokens_MC.var(0, correction=0), torch.ones(3), atol=1e-4)

    @pytest.mark.parametrize("kind", ["kmeans", "vq", "kl"])
    def test_the_same_seed_gives_the_same_bytes(self, kind: str, corpus: str, tmp_path: Path) -> None:
        short = {} if kind == "kmeans" else {"fit": {"steps": 4, "batch": 4}}
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            torch.manual_seed(ord(name))  # the generator of the process is not asked, and not moved
            before = torch.get_rng_state()
            train_image_tokenizer(config(corpus, kind, seed=seed, **short), tmp_path / name)
            assert torch.equal(torch.get_rng_state(), before)
        one, again, other = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc")
        assert one == again
        assert one["weights.safetensors"] != other["weights.safetensors"]

    @pytest.mark.parametrize("kind", ["vq", "kl"])
    def test_a_stopped_one_goes_on_and_gives_the_same(self, kind: str, corpus: str, tmp_path: Path) -> None:
        job = config(corpus, kind, fit={"steps": 5, "batch": 4, "save_every": 2})
        straight, stopped, resumed = (made(kind) for _ in range(3))
        _fit(straight, job, tmp_path / "straight").run()
        with pytest.raises(_Stopped):
            _fit(stopped, job, tmp_path / "t.unfinished", stop=3).run()
        fit = _fit(resumed, job, tmp_path / "t.unfinished")
        assert fit.step == 2
        fit.run()
        assert resumed.digest == straight.digest

    def test_an_unfinished_one_of_something_else_is_refused(self, corpus: str, tmp_path: Path) -> None:
        job = config(corpus, "vq", fit={"steps": 3, "batch": 4, "save_every": 1})
        _fit(made("vq"), job, tmp_path / "t.unfinished").run()
        with pytest.raises(ConfigError, match=r"t\.unfinished: the unfinished training of another config or corpus"):
            train_image_tokenizer(job, tmp_path / "t")
        (tmp_path / "t.unfinished").write_bytes(b"nothing")
        with pytest.raises(ConfigError, match=r"t\.unfinished: damaged") as caught:
            train_image_tokenizer(job, tmp_path / "t")
        assert caught.value.hint == "remove it: the training starts anew"

    def test_the_same_command_again_finds_what_it_made(self, corpus: str, tmp_path: Path) -> None:
        first = train_image_tokenizer(config(corpus, "kmeans"), tmp_path / "t")
        assert train_image_tokenizer(config(corpus, "kmeans", threads=1), tmp_path / "t") == first
        with pytest.raises(ConfigError, match="holds a tokenizer of another config or corpus") as caught:
            train_image_tokenizer(config(corpus, "kmeans", seed=3), tmp_path / "t")
        assert "another --out" in str(caught.value.hint)

    def test_a_folder_of_something_else_is_left_alone(self, corpus: str, tmp_path: Path) -> None:
        (tmp_path / "t").mkdir()
        (tmp_path / "t/thesis.txt").write_text("mine", encoding="utf-8")
        for write in (
            lambda: train_image_tokenizer(config(corpus, "vq"), tmp_path / "t"),
            lambda: made("vq").save(tmp_path / "t"),
        ):
            with pytest.raises(ConfigError, match="there is something else already"):
                write()
        assert [path.name for path in (tmp_path / "t").iterdir()] == ["thesis.txt"]

    @pytest.mark.parametrize("point", ["before-weights", "after-settle", "before-rename"])
    def test_a_disk_that_fails_leaves_nothing(self, point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / ".tmp-of-somebody-who-died").write_bytes(b"half")
        monkeypatch.setenv("FAILPOINT", f"{point}:1:raise")
        with pytest.raises(RunError, match=r"t: the tokenizer cannot be written: .*fail-point") as caught:
            made("vq").save(tmp_path / "t")
        assert "make room on the disk" in str(caught.value.hint)
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there_is_missed(self, corpus: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="torch finds no GPU"):
            train_image_tokenizer(config(corpus, "vq", device="cuda"), tmp_path / "t")

    @pytest.mark.parametrize("kind", ["vq", "kl"])
    def test_a_loss_that_is_not_finite_ends_it(self, kind: str, corpus: str, tmp_path: Path) -> None:
        job = config(corpus, kind, fit={"steps": 20, "batch": 4, "lr": 1e30, "warmup": 0})
        with pytest.raises(RunError, match=r"step \d+: the loss or its gradient is not finite") as caught:
            train_image_tokenizer(job, tmp_path / "t")
        assert "lower `fit.lr`" in str(caught.value.hint)
        assert not list(tmp_path.iterdir())

    def test_a_corpus_that_holds_nothing_out_is_measured_on_what_it_has(self, corpus: str, tmp_path: Path) -> None:
        assert train_image_tokenizer(config(corpus, "kmeans", val_split=None), tmp_path / "t").figures.split == "train"

    def test_a_split_that_is_not_there_and_too_many_codes_are_refused(self, corpus: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="the corpus has no split `trian`"):
            train_image_tokenizer(config(corpus, "vq", split="trian"), tmp_path / "t")
        many = {"kind": "kmeans", "factor": 16, "codes": 500, "num_patches": 1000}
        with pytest.raises(ConfigError, match=r"patches in `train`, fewer than 500 `codes`"):
            train_image_tokenizer(config(corpus, "kmeans", tokenizer=many), tmp_path / "t")


class TestMeasure:
    def test_the_use_of_a_codebook_and_the_psnr(self) -> None:
        tokenizer = make_tokenizer(config(".", "kmeans", tokenizer={"kind": "kmeans", "factor": 2, "codes": 4}).tokenizer)
        codebook_KP = torch.tensor([-1.0, 1.0, 0.5, -0.5])[:, None].expand(4, 12)
        tokenizer.load_state_dict({"codebook_KP": codebook_KP})
        image_HWC = torch.zeros(2, 8, 3, dtype=torch.uint8)
        image_HWC[:, 2:4], image_HWC[:, 4:] = 255, 10  # black, white, and two patches that become black
        figures, _ = measure(tokenizer, [image_HWC[None], image_HWC[None]], "val")
        assert figures.codes_used == 0.5
        assert figures.perplexity == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
        assert figures.psnr_db == pytest.approx(10 * np.log10(255**2 / (10**2 / 2)))
        assert "codes used       50.0% of 4" in figures.as_text()


class TestFolders:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        made("vq").save(tmp_path / "t")
        return tmp_path / "t"

    def test_a_flipped_bit_is_found(self, folder: Path) -> None:
        data = bytearray((folder / "weights.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "weights.safetensors").write_bytes(data)
        with pytest.raises(ConfigError, match=r"t/weights\.safetensors: damaged: its SHA-256") as caught:
            load_tokenizer(folder)
        assert "train it anew: `mmdata tokenizer train" in str(caught.value.hint)

    def test_what_is_missing_is_named(self, folder: Path, tmp_path: Path) -> None:
        (folder / "weights.safetensors").unlink()
        with pytest.raises(ConfigError, match=r"weights\.safetensors: No such file"):
            load_tokenizer(folder)
        with pytest.raises(ConfigError, match=r"nowhere/tokenizer\.json: No such file .* not the folder of an image tokenizer"):
            load_tokenizer(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "damaged: Expecting"),
            ("[]", "not the facts of an image tokenizer"),
            ('{"version": "1.0", "model": {}}', "not the facts of an image tokenizer"),  # a text tokenizer's file
            ('{"format": 9, "files": {}}', "format 9, not 1"),
        ],
    )
    def test_facts_that_are_none(self, folder: Path, text: str, message: str) -> None:
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=rf"t/tokenizer\.json: {message}"):
            load_tokenizer(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"kind": "unknown"}, "does not fit weights.safetensors"),
            ({"codes": 17}, "does not fit weights.safetensors"),
            ({"commit": 9.0}, "its digest is not that of the spec and the weights"),
        ],
    )
    def test_a_spec_that_was_changed(self, folder: Path, change: dict[str, object], message: str) -> None:
        facts = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        facts["spec"] |= change
        (folder / "tokenizer.json").write_text(json.dumps(facts), encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            load_tokenizer(folder)

    def test_a_folder_can_be_moved(self, folder: Path, tmp_path: Path) -> None:
        shutil.move(folder, tmp_path / "elsewhere")
        assert load_tokenizer(tmp_path / "elsewhere").digest == made("vq").digest


class TestConfig:
    def test_mistakes_name_the_line(self, tmp_path: Path) -> None:
        text = "name: t\ncorpus: c\ntokenizer:\n  kind: fsq\n  lvels: [8, 5]\n"
        with pytest.raises(ConfigError, match=r"plan\.yaml:5: `tokenizer` has no key `lvels`") as caught:
            load_tokenizer_config(write_yaml(tmp_path, text))
        assert caught.value.hint == "did you mean `levels`?"
        with pytest.raises(ConfigError, match=r"plan\.yaml:4: no kind of tokenizer is called `fqs`") as caught:
            load_tokenizer_config(write_yaml(tmp_path, text.replace("fsq", "fqs")))
        assert caught.value.hint == "did you mean `fsq`?"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"size": 18}, "`size` 18 is no multiple of `tokenizer.factor` 4"),
            ({"tokenizer": {"kind": "vq", "factor": 6}}, "a power of 2"),
            ({"tokenizer": {"kind": "vq", "width": 12}}, "multiple of 8"),
            ({"tokenizer": {"kind": "fsq", "levels": [256, 256, 256]}}, "`levels` make 16,777,216 codes"),
            ({"tokenizer": {"kind": "kmeans", "num_patches": 10}}, "`num_patches` 10 are fewer than `codes` 512"),
            ({"tokenizer": {"kind": "patches"}, "fit": {"steps": 3}}, "`patches` takes no steps"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, change: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            config(".", "vq", **change)

    @pytest.mark.parametrize("path", sorted((ROOT / "pipelines/tokenizer").glob("*.yaml")), ids=lambda path: path.stem)
    def test_the_presets_are_configs(self, path: Path) -> None:
        preset = load_tokenizer_config(path)
        assert preset.name == path.stem
        assert make_tokenizer(preset.tokenizer).factor == 8


def test_the_command_trains_and_prints_a_table(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"name: t\ncorpus: {corpus}\nsize: 16\ndevice: cpu\nfit: {{steps: 3, batch: 4}}\n"
    text += "tokenizer: {kind: fsq, factor: 4, width: 8}\n"
    command = ["mmdata", "tokenizer", "train", str(write_yaml(tmp_path, text)), "--out", str(tmp_path / "made/t")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="0"):
        main()
    out, err = capsys.readouterr()
    assert "tokens an image  16" in out
    assert "bits a token     9.97" in out
    assert load_tokenizer(tmp_path / "made/t").digest in out
    assert "tokenizer: 3 of 3 (100%), loss" in err
    assert "images/s" in err
    write_yaml(tmp_path, text.replace("size: 16", "size: 15"))
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "`size` 15 is no multiple" in capsys.readouterr().err


def test_the_example_of_the_page_works(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tokenizers.md").read_text(encoding="utf-8"), re.DOTALL)
    made("fsq").save(tmp_path / "t")
    space: dict[str, Any] = {"FOLDER": tmp_path / "t", "pixels": noise(2, 32, 32, 3)}
    exec(example, space)
    assert space["tokens"].shape == (2, 64)
    assert space["images"].shape == (2, 32, 32, 3)


class _Stopped(Exception):
    """Somebody pulled the plug."""


class _Stopping(Loader[list[np.ndarray]]):
    """A loader that ends its process's work before a step."""

    stop: int | None = None

    def __next__(self) -> Batch[list[np.ndarray]]:
        if self.step == self.stop:
            raise _Stopped
        return super().__next__()


def _fit(tokenizer: ImageTokenizer, job: TokenizerConfig, unfinished: Path, stop: int | None = None) -> Fit:
    from mmdata.loader import Options

    assert isinstance(tokenizer, Autoencoder)
    loader = _Stopping(job.corpus, options=Options(batch_size=job.fit.batch, threads=0), transform=Squares(16, single=True))
    loader.stop = stop
    return Fit(tokenizer, job.fit, loader, 0, unfinished, "these")


def test_shapes_are_drawn_as_the_corpus_has_them(corpus: str) -> None:
    """The images that come are those that went in, fitted."""
    known = {
        fit_square(draw(color, shape), 16).tobytes() for color in ("red", "green", "blue", "black") for shape in ("square", "bar")
    }
    for pixels_BHWC in all_images(open_corpus(corpus), "train", 16, batch=16):
        assert {image.numpy().tobytes() for image in pixels_BHWC} <= known
