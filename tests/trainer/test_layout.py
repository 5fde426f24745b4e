"""Which segments a sample becomes, what is corrupted, and what is predicted where; and which configs are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdata.config import build, parse_yaml
from mmdata.errors import ConfigError
from mmdata.loader import keyed, read_sample
from mmdata.shards import open_corpus
from mmdata.text.tokenizer import BOI, BOS, EOI, EOS, NULL
from mmdata.trainer import TrainConfig, load_config
from mmdata.trainer.layout import CODE, FEATURE, LATENT, NOBODY, TIME, Tokens
from tests.corpus import make_corpus
from tests.trainer.common import OBJECTIVES, Small, merged, small, words

MADE = {"layout": {"p_caption_first": 1.0, "p_drop_text": 0.0}}
READ = {"layout": {"p_caption_first": 0.0, "p_drop_text": 0.0}}


def laid(folder: Path, objective: str, order: str, *extra: dict[str, Any]) -> tuple[Small, Tokens]:
    one = small(folder, OBJECTIVES[objective], *extra)
    return one, one.tokens(order)


def predicted(tokens: Tokens) -> dict[int, int]:
    """Return which token predicts which."""
    return {int(place): int(aim) for place, aim in enumerate(tokens.aim_T) if aim != NOBODY}


def test_a_caption_before_its_image(tmp_path: Path) -> None:
    _, tokens = laid(tmp_path, "transfusion", "ti", MADE)
    text = words().encode("a red 0")
    num = len(text)
    assert tokens.ids_T.tolist() == [BOS, *text, BOI, 0, 0, 0, 0, EOI, EOS]
    assert tokens.learnt_T.tolist() == [False] * (num + 2) + [True] * 4 + [False] * 2
    assert predicted(tokens) == {**{place: place + 1 for place in range(num + 1)}, num + 6: num + 7}
    assert len(set(tokens.pos_T[num + 1 : num + 7].tolist())) == 1  # boi, patches and eoi share a position
    assert tokens.grid_T[num + 2 : num + 6].tolist() == [0, 1, 2, 3]
    assert tokens.counts == {"text": num + 2, "codes": 0, "latents": 4}


def test_codes_are_predicted_one_by_one_and_end_in_eoi(tmp_path: Path) -> None:
    _, tokens = laid(tmp_path, "ar", "it", READ)
    assert (tokens.kind_T == CODE).sum() == 4
    assert predicted(tokens) == {place: place + 1 for place in range(len(tokens) - 1)}
    assert tokens.counts["codes"] == 4


def test_an_image_before_its_caption_is_clean(tmp_path: Path) -> None:
    _, tokens = laid(tmp_path, "transfusion", "ti", READ)
    assert tokens.kind_T[2] == LATENT
    assert not tokens.level_T.any()
    assert not tokens.learnt_T.any()


def test_a_generated_image_within_a_document_has_a_clean_copy_in_its_place(tmp_path: Path) -> None:
    _, tokens = laid(tmp_path, "transfusion", "tit")
    noisy, clean = tokens.learnt_T, (tokens.kind_T == LATENT) & ~tokens.learnt_T
    assert noisy.sum() == clean.sum() == 4
    assert set(tokens.pos_T[noisy]) == set(tokens.pos_T[clean])  # sampling puts the clean image where the noise was
    assert (tokens.ids_T == EOI).sum() == 1
    assert tokens.aim_T[np.flatnonzero(tokens.ids_T == EOI)[0]] != NOBODY


def test_masked_codes_are_predicted_in_their_place(tmp_path: Path) -> None:
    _, tokens = laid(tmp_path, "masked", "ti", MADE)
    masked = np.flatnonzero(tokens.masked_T)
    assert predicted(tokens) == {int(place): int(place) for place in masked}
    assert set(tokens.kind_T[masked]) == {CODE}
    assert tokens.counts["codes"] == len(masked)


def test_a_likelihood_counts_what_was_not_masked_too(tmp_path: Path) -> None:
    one, tokens = laid(tmp_path, "masked", "ti", READ)
    slot = one.config.layout.max_text_tokens
    assert tokens.counts == {"text": slot, "codes": 0, "latents": 0}
    assert tokens.weight_T[tokens.masked_T] == pytest.approx(1 / tokens.level_T[tokens.masked_T])
    assert tokens.ids_T[1 : slot + 1].tolist() == [*words().encode("a red 0"), *[EOS] * slot][:slot]


def test_both_sides_are_corrupted_together_when_asked(tmp_path: Path) -> None:
    one = small(tmp_path, OBJECTIVES["dual"], {"time": {"joint": "shared_t"}, "text": {"masking": "likelihood"}})
    tokens = one.tokens("ti")
    levels = {float(level) for level in tokens.level_T if level > 0}
    assert tokens.counts["text"] > 0 < tokens.counts["latents"]
    assert max(levels) - min(levels) < 2e-3  # one time; the share of masks is held above 0.001
    other = small(tmp_path, OBJECTIVES["dual"], {"time": {"joint": "independent_t"}}).tokens("ti")
    assert len({round(float(level), 2) for level in other.level_T if level > 0}) == 2


def test_a_dropped_caption_is_null_and_not_learnt(tmp_path: Path) -> None:
    _, tokens = laid(tmp_path, "transfusion", "ti", merged(MADE, {"layout": {"p_drop_text": 1.0}}))
    num = len(words().encode("a red 0"))
    assert tokens.ids_T[1 : num + 1].tolist() == [NULL] * num
    assert not any(place < num for place in predicted(tokens))
    assert tokens.learnt_T.any()


def test_images_before_a_generated_one_are_dropped_when_asked(tmp_path: Path) -> None:
    _, tokens = laid(tmp_path, "transfusion", "iti", {"layout": {"p_drop_image": 1.0, "p_drop_text": 0.0}})
    assert (tokens.kind_T == LATENT).sum() == 4  # the generated one
    assert (tokens.ids_T == NULL).sum() == 4
    assert (tokens.ids_T == BOI).sum() == 2


def test_an_image_that_comes_first_is_learnt_with_little_noise_when_asked(tmp_path: Path) -> None:
    cap = {"layout": {"und_noise_cap": 0.3, "p_caption_first": 0.0, "clean_copy": False}, "noise_isolated": False}
    _, tokens = laid(tmp_path, "transfusion", "ti", cap)
    assert tokens.learnt_T.sum() == 4
    assert 0 < tokens.level_T.max() <= 0.3
    assert (tokens.veil_T == NOBODY).all()


def test_a_second_encoder_shows_images_to_be_understood(tmp_path: Path) -> None:
    janus = {"image": {"repr": {"und": "pixel_patch"}}}
    _, tokens = laid(tmp_path, "ar", "ti", janus, READ)
    assert (tokens.kind_T == FEATURE).sum() == 4
    assert not (tokens.kind_T == CODE).any()
    _, tokens = laid(tmp_path, "ar", "tit", janus)
    assert (tokens.kind_T == CODE).sum() == (tokens.kind_T == FEATURE).sum() == 4


def test_a_time_token_stands_before_its_image(tmp_path: Path) -> None:
    _, tokens = laid(tmp_path, "transfusion", "ti", MADE, {"time": {"cond": "token"}})
    place = int(np.flatnonzero(tokens.kind_T == TIME)[0])
    assert tokens.kind_T[place + 1] == LATENT
    assert tokens.level_T[place] == tokens.level_T[place + 1] > 0


def test_documents_are_cut_into_pieces_when_asked(tmp_path: Path) -> None:
    one = small(tmp_path, OBJECTIVES["transfusion"], {"layout": {"decompose": 1.0}})
    whole = len(small(tmp_path, OBJECTIVES["transfusion"]).tokens("titit"))
    assert all(len(one.tokens("titit", key)) < whole for key in range(10))


@pytest.mark.parametrize("order", ["ti", "it", "tit", "tiit", "itit", "t", "tt", "i"])
@pytest.mark.parametrize(
    ("objective", "extra"),
    [
        *((objective, {}) for objective in OBJECTIVES), ("transfusion", {"time": {"cond": "token"}}),
        ("ar", {"image": {"repr": {"und": "pixel_patch"}}}), ("transfusion", {"layout": {"p_drop_image": 1.0}}),
        ("transfusion", {"layout": {"decompose": 0.5}}),
    ],
)  # fmt: skip
def test_length_bounds_what_is_laid_out(tmp_path: Path, objective: str, extra: dict[str, Any], order: str) -> None:
    one = small(tmp_path, OBJECTIVES[objective], extra)
    texts = [len(words().encode(f"a red {place}")) for place, kind in enumerate(order) if kind == "t"]
    bound = one.sequencer.length(texts, order.count("i"))
    assert all(len(one.tokens(order, key)) <= bound for key in range(6))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_chance_is_the_generators_alone(tmp_path: Path, objective: str) -> None:
    one = small(tmp_path, OBJECTIVES[objective])
    sample = read_sample(open_corpus(make_corpus(tmp_path, num=1)), 0)

    def drawn(key: int) -> bytes:
        tokens = one.sequencer(sample, keyed(key))
        return tokens.noise_NP.tobytes() + tokens.masked_T.tobytes() + tokens.kind_T.tobytes()

    assert drawn(3) == drawn(3)
    assert len({drawn(key) for key in range(8)}) >= 2


PIPELINES = Path(__file__).parents[2] / "pipelines" / "train"


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_is_the_point_that_it_says(path: Path) -> None:
    points = {
        "chameleon": ("ar", "ar", "vq", "same_as_gen", "causal", "dense"),
        "mot": ("ar", "ar", "vq", "same_as_gen", "causal", "mot"),
        "janus": ("ar", "ar", "vq", "clip", "causal", "dense"),
        "showo": ("ar", "mdm", "vq", "same_as_gen", "span_bidir", "dense"),
        "transfusion": ("ar", "ddpm_eps", "vae", "same_as_gen", "span_bidir", "dense"),
        "bagel": ("ar", "flow", "vae", "clip", "span_bidir", "mot"),
        "mmada": ("mdm", "mdm", "vq", "same_as_gen", "full", "dense"),
        "ddit": ("mdm", "flow", "vae", "same_as_gen", "full", "mot"),
    }  # fmt: skip
    asked = load_config(path)
    image = asked.image
    found = (asked.text.objective, image.objective, image.repr.gen, image.repr.und, asked.mask, asked.params.share)
    assert found == points[asked.name]
    assert path.stem == asked.name
    assert path.read_text(encoding="utf-8").splitlines()[1].startswith("#")  # what differs from the paper


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mask: ful\n", r"c.yaml:3: `mask`: Input should be 'causal', 'span_bidir' or 'full'"),
        ("image: {objective: ar}\n", r"`image.objective: ar` predicts codes, and `image.repr.gen: pixel_patch` has none"),
        ("image: {repr: {gen: vq}, tokenizer: x}\n", r"`image.objective: flow` adds noise to numbers, and codes are none"),
        ("image: {repr: {gen: vae}}\n", r"`image.repr.gen: vae` needs `image.tokenizer`"),
        ("image: {tokenizer: x}\n", r"`image.tokenizer` is given, and `image.repr.gen: pixel_patch` uses none"),
        ("image: {objective: none, predict: clean}\n", r"`image.predict` is for `flow` and `ddpm_eps`"),
        ("mask: full\n", r"`mask: full` shows `text.objective: ar` the token that it is to predict"),
        ("text: {objective: mdm}\n", r"fills masks from both sides, which `mask: span_bidir` does not let it see"),
        (
            "image: {objective: ar, repr: {gen: vq}, tokenizer: x}\n",
            r"`mask: span_bidir` shows `image.objective: ar` the code that it is to predict",
        ),
        ("time: {joint: shared_t}\n", r"corrupts text and image together, which needs `mask: full`"),
        ("noise_isolated: false\n", r"c.yaml:1: `TrainConfig`: `layout.clean_copy` is for isolated noise"),
        ("layout: {und_noise_cap: 0.5}\n", r"`layout.und_noise_cap` lets later text see an image with a little noise"),
        (
            "mask: causal\ntime: {cond: add}\nimage: {objective: mdm, repr: {gen: vq}, tokenizer: x}\n",
            r"`time.cond: add` tells of noise, and `image.objective: mdm` has none",
        ),
        (
            "mask: full\ntext: {objective: mdm}\nimage: {repr: {und: clip}}\n",
            r"`image.repr.und` other than `same_as_gen` gives an image twice",
        ),
        ("image: {size: 30, patch: 4}\n", r"`image.size` 30 is no multiple of `image.patch` 4"),
        ("image: {patch: 8}\n", r"`image.patch` 8 makes 192 numbers a patch, above `model.width` 128"),
        ("params: {share: moe, experts: 2, top_k: 3}\n", r"`params.top_k` 3 is above `params.experts` 2"),
        ("optim:\n  stepz: 4\n", r"c.yaml:4: `trainconfig` has no key `optim.stepz`[\s\S]*did you mean `steps`"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(TrainConfig, parse_yaml(f"name: t\ncorpus: x\n{text}", "c.yaml"))
