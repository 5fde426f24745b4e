"""Masks, packing, caches, towers and experts against what they must equal."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdata.loader import keyed
from mmdata.text.tokenizer import BOS, EOI
from mmdata.trainer.attention import Sight
from mmdata.trainer.batch import Batch, Inputs, fill
from mmdata.trainer.canvas import Canvas
from mmdata.trainer.layout import LATENT, Tokens
from mmdata.trainer.moe import Experts, end_step, experts_of, grouped
from mmdata.trainer.objectives import counts_of, loss_sums, token_losses, weighted
from mmdata.trainer.paths import path_of
from mmdata.trainer.reader import Reader
from mmdata.trainer.write import Writer
from tests.trainer.common import GRID, OBJECTIVES, SHARES, Small, batch_of, merged, picture, small, words

CAUSAL = ("ar", "transfusion")


def cell(folder: Path, objective: str, share: str = "dense", **changes: object) -> Small:
    return small(folder, OBJECTIVES[objective], SHARES[share], changes)


def test_the_mask_is_the_formula() -> None:
    random = keyed("masks")
    for _ in range(200):
        num = int(random.integers(1, 14))
        doc = np.sort(random.integers(-1, 3, num))
        span, veil = random.integers(-1, 3, num), random.integers(-1, 3, num)
        columns = [torch.from_numpy(column)[None] for column in (doc, span, veil)]
        found = Sight(*columns).dense()[0]
        for q, k in itertools.product(range(num), repeat=2):
            near = q >= k or (span[q] == span[k] >= 0)
            shown = veil[k] < 0 or veil[q] == veil[k]
            assert found[q, k] == (q == k or (doc[q] == doc[k] >= 0 and near and shown))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_flex_attention_sees_what_the_dense_mask_sees(tmp_path: Path, objective: str) -> None:
    from torch.nn.attention.flex_attention import create_mask

    one = cell(tmp_path, objective)
    sight = batch_of([one.tokens("ti"), one.tokens("it")], [one.tokens("tit")]).sight
    blocks = sight.blocks()
    length = sight.doc_BL.shape[1]
    found = create_mask(blocks.mask_mod, 2, 1, length, length, device="cpu")
    assert torch.equal(found[:, 0], sight.dense())


@pytest.mark.parametrize(("objective", "share"), GRID)
def test_packed_is_as_alone(tmp_path: Path, objective: str, share: str) -> None:
    one = cell(tmp_path, objective, share)
    samples = [one.tokens(order) for order in ("ti", "it", "tit")]
    together = one.states(batch_of(samples))[0]
    at = 0
    for sample in samples:
        alone = one.states(batch_of([sample]))[0, : len(sample)]
        assert (together[at : at + len(sample)] - alone).abs().max() < 1e-12
        at += len(sample)


def change(one: Small, tokens: Tokens, edit: Callable[[Inputs], Inputs]) -> torch.Tensor:
    """Return how much each token's state changes when what enters at some places does."""
    batch = batch_of([tokens])
    inputs, _ = fill(batch, one.encoders, path_of(one.config.image).mix, torch.float64)
    mask = batch.sight.mask()
    before, after = one.model(inputs, mask).states_BLD[0], one.model(edit(inputs), mask).states_BLD[0]
    moved: torch.Tensor = (before - after).abs().amax(-1)[: len(tokens)]
    return moved


def test_noise_is_seen_by_itself_alone(tmp_path: Path) -> None:
    one = cell(tmp_path, "transfusion")
    tokens = one.tokens("tit")
    noisy = torch.from_numpy(tokens.learnt_T)
    moved = change(
        one, tokens, lambda x: x._replace(values_NP=x.values_NP + (x.latents.at_N < noisy.nonzero().max() + 1)[:, None])
    )
    assert moved[~noisy].max() == 0
    assert moved[noisy].min() > 0


def test_images_are_seen_whole_and_by_later_text_but_not_by_earlier(tmp_path: Path) -> None:
    one = cell(tmp_path, "transfusion", layout={"p_caption_first": 0.0})
    tokens = one.tokens("it")
    places = np.flatnonzero(tokens.kind_T == LATENT)
    edit = torch.zeros(len(places), 1, dtype=torch.float64)
    edit[-1] = 1
    moved = change(one, tokens, lambda x: x._replace(values_NP=x.values_NP + edit))
    assert moved[places[0]] > 0  # the first patch sees the last
    assert moved[len(tokens) - 1] > 0  # so does the text after it
    assert moved[: places[0]].max() == 0  # bos and boi do not


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    ("objective", "extra"),
    [
        ("transfusion", {}), ("transfusion", {"time": {"cond": "token"}}), ("ar", {}),
        ("ar", {"layout": {"positions": "raster"}}), ("transfusion", {"time": {"cond": "adaln"}}),
        ("transfusion", {"mask": "causal"}),
        ("transfusion", {"layout": {"positions": "raster"}}), ("transfusion", {"params": {"route_by": "task"}}),
        ("ar", {"image": {"repr": {"und": "pixel_patch"}}}),
        ("ar", {"image": {"objective": "mdm"}, "mask": "span_bidir"}),
    ],
)  # fmt: skip
def test_text_after_a_generated_image_is_as_sampling_sees_it(
    tmp_path: Path, objective: str, extra: dict[str, Any], share: str
) -> None:
    """Cached equals uncached over text, image and text."""
    one = small(tmp_path, OBJECTIVES[objective], SHARES[share], extra)
    tokens = one.tokens("tit")
    batch = batch_of([tokens])
    family = None if objective == "ar" and one.config.image.objective == "ar" else "text"
    whole = one.model.logits(one.states(batch)[0], family)
    reader = Reader(one.model.eval(), 1)
    reader.text([[BOS, *words().encode("a red 0")]])
    pixels = torch.from_numpy(picture(1))[None]
    logits = [reader.image(one.encoders.encode(pixels), made=True)]
    if one.encoders.sizes.und_dim:
        logits = [reader.features(one.encoders.understand(pixels))]
    logits += [reader.text([[index]]) for index in words().encode("a red 2")]
    last_eoi = int(np.flatnonzero(tokens.ids_T == EOI)[-1])
    for place, found in enumerate(logits):
        assert (whole[last_eoi + place] - found[0]).abs().max() < 1e-12


def test_a_stale_cache_is_noticed(tmp_path: Path) -> None:
    one = cell(tmp_path, "transfusion")
    found = []
    for add in (0.0, 0.5):
        reader = Reader(one.model, 1)
        reader.text([[BOS]])
        found.append(reader.image(one.encoders.encode(torch.from_numpy(picture(0))[None]) + add, made=True))
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("extra", [{}, {"time": {"cond": "token"}}, {"time": {"cond": "adaln"}}, {"mask": "causal"}])
def test_what_the_head_gives_while_sampling_is_that_of_training(tmp_path: Path, extra: dict[str, Any]) -> None:
    one = small(tmp_path, OBJECTIVES["transfusion"], extra, layout={"p_caption_first": 1.0, "p_drop_text": 0.0})
    tokens = one.tokens("ti")
    batch = batch_of([tokens])
    inputs, _ = fill(batch, one.encoders, path_of(one.config.image).mix, torch.float64)
    trained = one.model.patch_out(one.states(batch)[0][torch.from_numpy(tokens.learnt_T).nonzero()[:, 0]])
    reader = Reader(one.model, 1)
    reader.text([[BOS, *words().encode("a red 0")]])
    reader.edge(3)
    time = float(tokens.level_T[tokens.learnt_T][0])
    sampled = reader.numbers(inputs.values_NP[None], time)[0]
    assert (trained - sampled).abs().max() < 1e-12


def test_masked_codes_after_a_cached_prompt_are_those_of_training(tmp_path: Path) -> None:
    show_o = {"image": {"objective": "mdm", "repr": {"gen": "vq"}}, "layout": {"p_caption_first": 1.0, "p_drop_text": 0.0}}
    one = small(tmp_path, show_o)
    tokens = one.tokens("ti")
    batch = batch_of([tokens])
    inputs, _ = fill(batch, one.encoders, path_of(one.config.image).mix, torch.float64)
    at = inputs.codes.at_N
    trained = one.model.logits(one.states(batch)[0][at], "codes")
    reader = Reader(one.model, 1)
    reader.text([[BOS, *words().encode("a red 0")]])
    reader.edge(3)
    ids = inputs.ids_BL[0][at]
    masked = ids < one.encoders.sizes.vocab
    sampled = reader.codes((ids - one.encoders.sizes.vocab).clamp(min=0)[None], masked[None])[0]
    assert (trained - sampled).abs().max() < 1e-12


@pytest.mark.parametrize("objective", ["masked", "dual"])
@pytest.mark.parametrize("made", ["text", "image"])
def test_a_canvas_is_the_document_that_training_saw(tmp_path: Path, objective: str, made: str) -> None:
    one = cell(tmp_path, objective, layout={"p_caption_first": float(made == "image"), "p_drop_text": 0.0})
    tokens = one.tokens("ti")
    batch = batch_of([tokens], length=len(tokens))
    inputs, _ = fill(batch, one.encoders, path_of(one.config.image).mix, torch.float64)
    states = one.states(batch)[0]
    place = int(made == "image")
    canvas = Canvas(one.model, one.encoders, [one.sequencer.canvas(one.blocks("ti"), {place}, set())])
    if made == "image" and objective == "dual":
        time = float(tokens.level_T[tokens.learnt_T][0])
        assert (
            canvas.numbers(inputs.values_NP[None], time)[0] - one.model.patch_out(states[inputs.latents.at_N])
        ).abs().max() < 1e-12
        return
    at = canvas.predict
    ids, first = inputs.ids_BL[0][at], one.encoders.sizes.vocab if made == "image" else 0
    masked = torch.from_numpy(tokens.masked_T)[at]
    shown = (ids - first).clamp(min=0)[None]
    found = canvas.codes(shown, masked[None]) if made == "image" else canvas.text(shown, masked[None])
    expected = one.model.logits(states[at], "codes" if made == "image" else "text")
    same = torch.where(expected.isfinite(), (found[0] - expected).abs(), 0.0)
    assert same.max() < 1e-12


def grads(one: Small, parts: list[Batch], counts: dict[str, int]) -> dict[str, torch.Tensor]:
    one.model.zero_grad()
    for part in parts:
        weighted(loss_sums(one.model, part, one.encoders).named, counts, one.config).backward()
    missing = [name for name, value in one.model.named_parameters() if value.grad is None]
    assert missing == []
    return {name: value.grad.clone() for name, value in one.model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(("objective", "share"), GRID)
def test_micro_batches_give_the_gradient_of_one_batch(tmp_path: Path, objective: str, share: str) -> None:
    balance = {"params": {"balance": "switch"}} if share == "moe" else {}
    one = small(tmp_path, OBJECTIVES[objective], SHARES[share], balance)
    rows = [[one.tokens("ti"), one.tokens("it")], [one.tokens("tit")], [one.tokens("t")]]
    whole = batch_of(*rows)
    counts = counts_of([whole])
    once = grads(one, [whole], counts)
    thrice = grads(one, [batch_of(row) for row in rows], counts)
    assert max(float((once[name] - thrice[name]).abs().max()) for name in once) < 1e-12


@pytest.mark.parametrize(("objective", "share"), GRID)
def test_a_batch_without_images_gives_zero_and_not_no_gradient(tmp_path: Path, objective: str, share: str) -> None:
    one = cell(tmp_path, objective, share)
    batch = batch_of([one.tokens("t")])
    found = grads(one, [batch], counts_of([batch]))
    if share == "mot":
        assert found["blocks.0.ffn.up.weight"][1].abs().max() == 0
        assert found["blocks.0.ffn.up.weight"][0].abs().max() > 0
    for name in ("patch_out.weight", "patch_in.weight", "place.weight"):
        assert name not in found or found[name].abs().max() == 0


@pytest.mark.parametrize("objective", ["masked", "dual"])
def test_a_batch_without_masked_text_has_a_loss(tmp_path: Path, objective: str) -> None:
    one = cell(tmp_path, objective, layout={"p_caption_first": 1.0})
    batch = batch_of([one.tokens("ti")])
    assert batch.predicted["text"] == 0
    assert all(bool(value.isfinite().all()) for value in grads(one, [batch], counts_of([batch])).values())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pairs_are_those_that_the_mask_allows(tmp_path: Path, objective: str) -> None:
    one = cell(tmp_path, objective)
    batch = batch_of([one.tokens("titi"), one.tokens("it")], [one.tokens("tit")])
    assert batch.pairs == int(batch.sight.dense().sum()) - (batch.ids_BL.numel() - batch.used)


@pytest.mark.parametrize(
    ("objective", "extra"), [("ar", {}), ("transfusion", {}), ("ar", {"image": {"repr": {"und": "pixel_patch"}}})]
)
@pytest.mark.parametrize("guided", [False, True])
def test_a_document_goes_on_as_if_its_image_had_been_given(
    tmp_path: Path, objective: str, extra: dict[str, Any], guided: bool
) -> None:
    """What follows an image that was made is what follows it where it is read: nothing of its making is left behind."""
    sampler = {"sampler": {"steps": 2, "max_text_tokens": 3, "cfg": 2.0 if guided else 1.0, "cfg_image": 1.5 if guided else 1.0}}
    one = small(tmp_path, OBJECTIVES[objective], sampler, extra)
    writer = Writer(one.model.eval(), one.encoders, one.sequencer)
    text = words().encode("a red 0")
    tracks = [writer._track([text], texts=True, images=True) for _ in range(1 + 2 * guided)]
    image = writer._image_in(tracks, [2.0, 1.5] if guided else [], keyed("document"))
    made, logits = tracks[0]
    given = Reader(one.model, 1)
    given.text([[BOS, *text]])
    values = one.encoders.encode(torch.from_numpy(image)[None])
    expected = given.image(values, made=True)
    if one.encoders.sizes.und_dim:
        expected = given.features(one.encoders.understand(torch.from_numpy(image)[None]))
    assert (made.length, made.pos) == (given.length, given.pos)
    if objective == "ar":  # numbers that were sampled are not rounded to bytes, as those of a picture are
        assert (logits - expected).abs().max() < 1e-12


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_towers_of_equal_weights_are_one_tower(tmp_path: Path, objective: str) -> None:
    tied, dense = cell(tmp_path, objective, "mot"), cell(tmp_path, objective)
    state = dense.model.state_dict()
    for name, value in tied.model.state_dict().items():
        value.copy_(state[name].expand_as(value))
    batch = batch_of([dense.tokens("tit"), dense.tokens("it")])
    assert (tied.states(batch) - dense.states(batch)).abs().max() < 1e-12


def test_one_expert_is_a_dense_layer(tmp_path: Path) -> None:
    experts, dense = cell(tmp_path, "transfusion", "moe", params={"experts": 1, "top_k": 1}), cell(tmp_path, "transfusion")
    state = dense.model.state_dict()
    for name, value in experts.model.state_dict().items():
        if name in state:
            value.copy_(state[name])
        elif name.rpartition(".")[2] in {"up", "down"}:
            value.copy_(state[f"{name}.weight"])
    batch = batch_of([dense.tokens("tit")])
    assert torch.equal(experts.states(batch), dense.states(batch))


def layer(**params: object) -> Experts:
    from tests.trainer.common import config

    torch.manual_seed(0)
    return Experts(config(merged(SHARES["moe"], {"params": params}))).double()


def test_equal_experts_are_one_expert() -> None:
    experts = layer(experts=8, top_k=2)
    for weight in (experts.up, experts.down):
        weight.data[:] = weight.data[:1]
    x = torch.randn(50, 48, dtype=torch.float64)
    out, _ = experts(x, torch.zeros(50, dtype=torch.long))
    gate, up = (x @ experts.up[0].T).chunk(2, -1)
    assert (out - (torch.nn.functional.silu(gate) * up) @ experts.down[0].T).abs().max() < 1e-12


def test_dispatch_is_the_weighted_sum_over_chosen_experts() -> None:
    experts = layer(experts=5, top_k=3)
    x = torch.randn(40, 48, dtype=torch.float64)
    chosen = torch.stack([torch.randperm(5)[:3] for _ in range(40)])
    gates = torch.rand(40, 3, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for row, place in itertools.product(range(40), range(3)):
        expert = chosen[row, place]
        gate, up = (experts.up[expert] @ x[row]).chunk(2)
        expected[row] += gates[row, place] * (experts.down[expert] @ (torch.nn.functional.silu(gate) * up))
    assert (experts.dispatch(x, chosen, gates) - expected).abs().max() < 1e-12


def test_an_expert_without_tokens_gets_a_zero_gradient() -> None:
    weight = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    grouped(torch.randn(6, 5, dtype=torch.float64), weight, torch.tensor([2, 0, 4])).square().sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad[1].abs().max() == 0
    assert weight.grad[0].abs().max() > 0


def test_the_switch_loss_of_an_even_router_is_one() -> None:
    experts = layer(balance="switch")
    experts.router.data.zero_()
    _, balance = experts(torch.randn(30, 48, dtype=torch.float64), torch.tensor([0] * 20 + [-1] * 10))
    assert float(balance.detach()) / 20 == pytest.approx(1.0, abs=1e-9)


@torch.no_grad()
def test_biases_even_out_a_skewed_router() -> None:
    experts = layer(experts=8, top_k=2, bias_rate=1e-3)
    experts.router.data.normal_(std=0.02).add_(torch.linspace(0, 0.03, 8, dtype=torch.float64)[:, None])
    torch.manual_seed(1)
    found = []
    for _ in range(60):
        experts(torch.randn(2048, 48, dtype=torch.float64) + 0.3, torch.zeros(2048, dtype=torch.long))
        load = experts.load_ME.sum(0)
        found.append(float(load.std() / load.mean()))
        end_step(experts, lambda load: load)
    assert found[0] > 1
    assert np.mean(found[-8:]) < 0.1


def test_loads_are_told_by_modality(tmp_path: Path) -> None:
    one = cell(tmp_path, "transfusion", "moe")
    one.model.train()
    batch = batch_of([one.tokens("tit")])
    one.states(batch)
    counted = sum(float(layer.load_ME.sum()) for layer in experts_of(one.model))
    assert counted == batch.used * one.config.params.top_k * one.config.model.layers  # padding is not counted
    told = end_step(one.model, lambda load: load)
    for modality in ("text", "image"):
        assert sum(value for name, value in told.items() if modality in name) == pytest.approx(1.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_chunked_logits_give_the_same_losses_and_gradients(tmp_path: Path, objective: str) -> None:
    one = cell(tmp_path, objective)
    batch = batch_of([one.tokens("ti"), one.tokens("tit")], [one.tokens("it")])
    whole = grads(one, [batch], counts_of([batch]))
    chunked = copy.deepcopy(one)
    chunked.model.config = chunked.model.config.model_copy(update={"loss": one.config.loss.model_copy(update={"chunk": 3})})
    parts = grads(chunked, [batch], counts_of([batch]))
    assert max(float((whole[name] - parts[name]).abs().max()) for name in whole) < 1e-12


def test_losses_of_tokens_sum_to_the_families(tmp_path: Path) -> None:
    one = cell(tmp_path, "dual")
    batch = batch_of([one.tokens("ti", key) for key in range(3)])
    sums = loss_sums(one.model, batch, one.encoders)
    losses, _, _ = token_losses(one.model, batch, one.encoders)
    for found in losses:
        assert torch.allclose((found.loss_M * found.weight_M).sum(), sums.named[found.family])
    buckets = sum(float(total) for name, (total, _) in sums.detail.items() if name.startswith("latents/t"))
    assert buckets == pytest.approx(float(sums.named["latents"].detach()))
