"""From a sample to tokens: which segments stand in which order, what is corrupted, and what is predicted where.

No picture is read here: a token says which image of the sample it shows and which place of it, and `batch.fill` puts the
numbers in. Who sees whom is three numbers a token: its document, its `span` (tokens of one span see each other both ways; -1:
only what came before) and its `veil` (hidden from tokens of another veil; -1: hidden from none).

Two kinds of documents:
- text predicted token by token: `bos block ... eos`. An image is generated where text stands before it, and given clean where
  it comes first. A corrupted image is behind a veil, and where something follows, its clean copy stands in its place, for
  sampling has that one (BAGEL).
- text behind masks (`mask: full`): `bos slot boi image eoi ...`, a slot being a text filled with eos. Which side is corrupted
  is drawn once a sample (D-DiT, MMaDA).
Positions: a text token advances by one, an image span (boi, image, eoi) shares one; a clean copy takes the corrupted one's.

All chance comes from the sample's own generator. Axes: T tokens, N tokens of an image, P numbers a token of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmdata.loader import Sample, TokenCounts
from mmdata.shards import KINDS
from mmdata.storage import digest_json
from mmdata.text.tokenizer import BOI, BOS, EOI, EOS, NULL, Tokenizer
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.corrupt import LEAST, Masks, draw_masks, draw_time
from mmdata.trainer.sizes import Sizes
from mmdata.trainer.vision import fit_square

TEXT, TIME, LATENT, CODE, FEATURE = range(5)
READ, MADE = 0, 1  # towers by task; by modality: text, image
NOBODY = -1
# Column: what a token has unless told otherwise, and its type.
_COLUMNS: dict[str, tuple[Any, type]] = {
    "ids": (0, np.int64), "kind": (TEXT, np.int8), "pos": (0, np.int32), "span": (-1, np.int32), "veil": (-1, np.int32),
    "tower": (0, np.int8), "image": (-1, np.int32), "grid": (-1, np.int32), "level": (0.0, np.float32),
    "masked": (False, np.bool_), "learnt": (False, np.bool_), "weight": (1.0, np.float32),
}  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """The tokens of one sample.

    ids_T    text ids; codes come later        kind_T    TEXT, TIME, LATENT (numbers), CODE or FEATURE
    pos_T    position id                       span_T, veil_T   who sees it, see above
    tower_T  whose weights it uses             image_T, grid_T  which image it shows and where, or -1
    level_T  noise time, or share of masks, of its segment; 0 = clean
    masked_T its id is hidden from the model   learnt_T  its numbers are predicted here
    aim_T    place of the token whose id is predicted here, or -1      weight_T  weight of what is predicted here
    noise_NP noise of all LATENTs with a level above 0, in order
    images   the images, (size, size, 3) uint8
    counts   tokens a family's loss is divided by
    pairs    pairs of tokens of which one sees the other
    """

    ids_T: np.ndarray
    kind_T: np.ndarray
    pos_T: np.ndarray
    span_T: np.ndarray
    veil_T: np.ndarray
    tower_T: np.ndarray
    image_T: np.ndarray
    grid_T: np.ndarray
    level_T: np.ndarray
    masked_T: np.ndarray
    learnt_T: np.ndarray
    aim_T: np.ndarray
    weight_T: np.ndarray
    noise_NP: np.ndarray
    images: tuple[np.ndarray, ...]
    counts: dict[str, int]
    pairs: int
    source: str = ""

    def __len__(self) -> int:
        return len(self.ids_T)


Block = list[int] | np.ndarray  # ids of a text, or an image


class Sequencer:
    """Lays samples out as a config says: the trainer's transform."""

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer, sizes: Sizes) -> None:
        self.config, self.tokenizer, self.sizes = config, tokenizer, sizes
        self.version = digest_json([config.digest, tokenizer.digest, sizes.facts])

    def counts(self) -> TokenCounts:
        """Return the lengths of samples as this layout lays them out, counted once a corpus."""
        config = self.config
        facts = [
            self.tokenizer.digest, self.sizes.facts, config.layout.max_text_tokens, config.layout.clean_copy, config.mask,
            config.time.cond, config.image.objective,
        ]  # fmt: skip
        return TokenCounts(digest_json(facts), self._count)

    def _count(self, sample: Sample) -> int:
        images = int((sample.corpus.blocks_of(sample.index)["kind"] == KINDS.index("image")).sum())
        return self.length([len(self.tokenizer.encode(text)) for text in sample.texts], images)

    def length(self, text_tokens: list[int], num_images: int) -> int:
        """Return the most tokens that a sample takes: a function of its blocks alone, whatever is drawn for it."""
        config, layout, sizes = self.config, self.config.layout, self.sizes
        image = sizes.tokens + 2 + (config.time.cond == "token" and config.image.continuous)
        if config.mask == "full":
            return 1 + len(text_tokens) * layout.max_text_tokens + num_images * image
        texts = sum(min(num, layout.max_text_tokens) for num in text_tokens)
        pair = len(text_tokens) <= 1 and num_images <= 1
        again = image if layout.clean_copy and not pair and config.image.objective != "ar" else 0
        read = sizes.und_tokens + 2 if sizes.und_dim else 0
        return 2 + texts + num_images * (max(image, read) if pair else image + again + read)

    def __call__(self, sample: Sample, random: np.random.Generator) -> Tokens:
        """Return the tokens of a sample."""
        blocks: list[Block] = [
            self.fit(block.image) if block.image is not None else self.encode_text(block.text or "") for block in sample.blocks
        ]
        return self.lay_out(blocks, random, source=sample.source)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text, cut at the longest that the layout takes."""
        return self.tokenizer.encode(text)[: self.config.layout.max_text_tokens]

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Return an image fitted into the square, (size, size, 3) uint8."""
        return fit_square(image, self.config.image.size)

    def lay_out(self, blocks: list[Block], random: np.random.Generator, *, source: str = "") -> Tokens:
        """Lay blocks out for training: order, dropped conditions, corruption are drawn."""
        blocks = self._piece(blocks, random)
        if self.config.mask == "full":
            return _Full(self.config, self.sizes, random).document(blocks, source)
        if len(blocks) == 2:
            first = random.random() < self.config.layout.p_caption_first and self.config.image.objective != "none"
            blocks = sorted(blocks, key=lambda block: isinstance(block, np.ndarray) == first)
        return _Causal(self.config, self.sizes, random).document(blocks, source)

    def canvas(self, blocks: list[Block], hit: set[int], drop: set[int]) -> Tokens:
        """Lay a document out whose blocks in `hit` are to be sampled, with `mask: full`; those in `drop` are hidden."""
        return _Full(self.config, self.sizes, np.random.Generator(np.random.Philox(0))).canvas(blocks, hit, drop)

    def _piece(self, blocks: list[Block], random: np.random.Generator) -> list[Block]:
        """Cut a piece out of a document, as often as `decompose` says: text to image, image to text, both to image."""
        if len(blocks) <= 2 or random.random() >= self.config.layout.decompose:
            return blocks
        num = int(random.integers(2, 4))
        start = int(random.integers(0, len(blocks) - num + 1))
        return blocks[start : start + num]


@dataclass
class _Builder:
    """Appends segments; `finish` makes the arrays."""

    config: TrainConfig
    sizes: Sizes
    random: np.random.Generator
    columns: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})
    images: list[np.ndarray] = field(default_factory=list)
    noise: list[np.ndarray] = field(default_factory=list)
    aims: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # places, and places of what they predict
    unmasked: dict[str, int] = field(default_factory=lambda: {"text": 0, "codes": 0})
    num: int = 0
    pos: int = 0
    segment: int = 0

    def add(self, num: int, **values: object) -> int:
        """Append tokens that have the given values; return the place of the first."""
        for name, (usual, kind) in _COLUMNS.items():
            self.columns[name].append(np.broadcast_to(np.asarray(values.get(name, usual), dtype=kind), (num,)))
        self.num += num
        return self.num - num

    def tower(self, *, made: bool) -> int:
        """Return the tower of an image's tokens."""
        params = self.config.params
        return 0 if params.share != "mot" else 1 if params.route_by == "modality" else (MADE if made else READ)

    def show(self, image: np.ndarray) -> int:
        """Return the number of an image."""
        self.images.append(image)
        return len(self.images) - 1

    def numbers(self, number: int, level: float, *, learnt: bool, **who: object) -> None:
        """Append the numbers of an image, and before it the token of its time, if time has one."""
        if self.config.time.cond == "token":
            self.add(1, kind=TIME, pos=self.pos, level=level, **who)
        if level > 0:
            self.noise.append(self.random.standard_normal((self.sizes.tokens, self.sizes.dim), dtype=np.float32))
        num = self.sizes.tokens
        self.add(num, kind=LATENT, pos=self.places(num), image=number, grid=np.arange(num), level=level, learnt=learnt, **who)

    def codes(self, number: int, **more: object) -> int:
        """Append the codes of an image; return the place of the first."""
        num = self.sizes.tokens
        return self.add(num, kind=CODE, pos=self.places(num), image=number, grid=np.arange(num), **more)

    def places(self, num: int) -> np.ndarray:
        """Return the positions of an image's tokens; what follows stands at the last of them."""
        places = self.pos + np.arange(num) * (self.config.layout.positions == "raster")
        self.pos = int(places[-1])
        return places

    def masks(self, family: str, masks: Masks, *, ahead: bool = False) -> dict[str, Any]:
        """Return the columns of the tokens that come next, of which some are masked and predicted in their place.

        ahead   a boi stands before them
        """
        places = self.num + ahead + np.flatnonzero(masks.masked)
        self.aims.append((places, places))
        # The likelihood's weights make up for tokens that are not masked, which count as well.
        self.unmasked[family] += masks.counted - len(places)
        return {"masked": masks.masked, "level": masks.level, "weight": masks.weight}

    def finish(self, source: str) -> Tokens:
        """Return the arrays."""
        made = {f"{name}_T": np.concatenate(parts) for name, parts in self.columns.items()}
        noise = np.concatenate(self.noise) if self.noise else np.zeros((0, self.sizes.dim), np.float32)
        made["aim_T"] = np.full(self.num, NOBODY, np.int32)
        for places, what in self.aims:
            made["aim_T"][places] = what
        aims = made["kind_T"][made["aim_T"][made["aim_T"] >= 0]]
        counts = {
            "text": int((aims == TEXT).sum()) + self.unmasked["text"],
            "codes": int((aims == CODE).sum()) + self.unmasked["codes"],
            "latents": int(made["learnt_T"].sum()),
        }
        pairs = _pairs(made["span_T"], made["veil_T"])
        return Tokens(**made, noise_NP=noise, images=tuple(self.images), counts=counts, pairs=pairs, source=source)


def _pairs(span_T: np.ndarray, veil_T: np.ndarray) -> int:
    """Return how many pairs of tokens see each other: all before, and both ways within a span; less what veils hide."""
    num = len(span_T)
    _, spans = np.unique(span_T[span_T >= 0], return_counts=True)
    hidden = 0
    for veil in np.unique(veil_T[veil_T >= 0]):
        places = np.flatnonzero(veil_T == veil)
        # From each, all later tokens that are not behind the same veil.
        hidden += int((num - 1 - places).sum()) - len(places) * (len(places) - 1) // 2
    return num * (num + 1) // 2 + int((spans * (spans - 1) // 2).sum()) - hidden


class _Causal(_Builder):
    """Documents whose text is predicted token by token."""

    def document(self, blocks: list[Block], source: str) -> Tokens:
        dropped = self._dropped(blocks)
        self.last = NOBODY  # the token that predicts the next one
        self.text([BOS], learn=False)
        told = blind = False
        for place, block in enumerate(blocks):
            if not isinstance(block, np.ndarray):
                self.text([NULL] * len(block) if place in dropped else block, learn=place not in dropped and not blind)
                told = True
            elif place in dropped:
                self.null_image()
            else:
                self.image(block, made=told, last=place == len(blocks) - 1)
                # Text after an image that it sees through much noise would learn to go without it.
                blind |= told and not self.config.noise_isolated and self.config.image.objective not in {"ar", "none"}
        self.text([EOS], learn=not blind)
        return self.finish(source)

    def _dropped(self, blocks: list[Block]) -> set[int]:
        """Draw which conditions of a generated image are dropped, of all that stand before it: texts, images, or both."""
        kinds = [isinstance(block, np.ndarray) for block in blocks]
        made = [place for place, image in enumerate(kinds) if image and not all(kinds[:place])]
        layout = self.config.layout
        drop_text, drop_image = self.random.random() < layout.p_drop_text, self.random.random() < layout.p_drop_image
        which = self.random.random()
        if not made or self.config.image.objective == "none":
            return set()
        return {place for place in range(made[int(which * len(made))]) if (drop_image if kinds[place] else drop_text)}

    def text(self, ids: list[int], *, learn: bool = True, **who: object) -> None:
        """Append text; each token is predicted by the one before, if there is one that may."""
        first = self.add(len(ids), ids=ids, pos=self.pos + np.arange(len(ids)), **who)
        self._learn(first, len(ids), learn=learn)
        self.pos += len(ids)

    def _learn(self, first: int, num: int, *, learn: bool) -> None:
        """Let tokens be predicted, each by the one before; the last will predict what comes next."""
        if learn and num:
            places = np.arange(first, first + num)
            before = np.concatenate([[self.last], places[:-1]])
            known = before != NOBODY
            self.aims.append((before[known], places[known]))
        if num:
            self.last = first + num - 1

    def edge(self, index: int, *, learn: bool = True, **who: object) -> None:
        """Append boi or eoi, which share the position of their image."""
        first = self.add(1, ids=index, pos=self.pos, **who)
        self._learn(first, 1, learn=learn)

    def image(self, image: np.ndarray, *, made: bool, last: bool) -> None:
        """Append an image, generated (`made`) or given, and what those that follow see of it."""
        config, number = self.config, self.show(image)
        if config.image.objective == "none" or (not made and self.sizes.und_dim):
            self._read(number)
            return
        copied = made and config.layout.clean_copy and config.noise_isolated and not last
        if config.image.objective == "ar":
            self._span(number, made=made)
        elif made:
            self._span(number, made=True, corrupted=True, copied=copied)
            if copied:
                self._span(number, made=True, again=True)
        else:
            self._span(number, made=False, corrupted=config.layout.und_noise_cap > 0)
        if made and not last and self.sizes.und_dim:
            self._read(number)

    def null_image(self) -> None:
        """Append an image span that shows nothing, as long as an image that is read."""
        num = self.sizes.und_tokens if self.sizes.und_dim else self.sizes.tokens
        self.edge(BOI, learn=False)
        self.add(num, ids=NULL, pos=self.places(num))
        self.last = NOBODY
        self.edge(EOI)
        self.pos += 1

    def _span(self, number: int, *, made: bool, corrupted: bool = False, copied: bool = False, again: bool = False) -> None:
        """Append boi, an image and eoi. `copied`: a clean copy follows, which has the eoi; `again`: this is that copy."""
        self.segment += 1
        start = self.pos
        # The corrupted tokens are behind a veil that only they share (with their boi, if a copy follows).
        veil = self.segment if corrupted and self.config.noise_isolated else NOBODY
        if again:
            self.last = NOBODY
        self.edge(BOI, learn=not again, veil=veil if copied else NOBODY)
        who = {"span": self.segment if self.config.mask == "span_bidir" else -1, "veil": veil, "tower": self.tower(made=made)}
        if self.sizes.dim:
            self._numbers(number, who, made=made, corrupted=corrupted)
        else:
            self._codes(number, who, corrupted=corrupted)
        if copied:
            self.pos = start  # the clean copy stands in this one's place
            return
        self.edge(EOI)
        self.pos += 1

    def _numbers(self, number: int, who: dict[str, Any], *, made: bool, corrupted: bool) -> None:
        cap = 1.0 if made else self.config.layout.und_noise_cap
        level = cap * draw_time(self.random, self.config) if corrupted else 0.0
        self.numbers(number, level, learnt=corrupted, **who)
        self.last = NOBODY

    def _codes(self, number: int, who: dict[str, Any], *, corrupted: bool) -> None:
        num = self.sizes.tokens
        if self.config.image.objective == "ar":
            self._learn(self.codes(number, **who), num, learn=True)
            return
        self.last = NOBODY
        if not corrupted:
            self.codes(number, **who)
            return
        masks = draw_masks(self.random, num, self.config.image.masking)
        self.codes(number, **who, **self.masks("codes", masks))

    def _read(self, number: int) -> None:
        """Append an image to be understood: its features, or itself."""
        if not self.sizes.und_dim:
            self._span(number, made=False)
            return
        self.segment += 1
        self.edge(BOI, learn=False)
        num = self.sizes.und_tokens
        self.add(
            num, kind=FEATURE, pos=self.places(num), image=number, grid=np.arange(num), tower=self.tower(made=False),
            span=self.segment if self.config.mask == "span_bidir" else -1,
        )  # fmt: skip
        self.last = NOBODY
        self.edge(EOI)
        self.pos += 1


class _Full(_Builder):
    """Documents in which everything sees everything.

    `hit` names the blocks that are corrupted and learnt, `drop` those that are hidden as a whole.
    """

    def document(self, blocks: list[Block], source: str) -> Tokens:
        """Draw what is corrupted, then lay all blocks out; a pair has its caption first."""
        if len(blocks) == 2:
            blocks = sorted(blocks, key=lambda block: isinstance(block, np.ndarray))
        hit, drop = self._sides(blocks)
        times = self._times()
        return self._all(blocks, hit, drop, lambda side: self._masks(side, times[side]), times["image"], source)

    def canvas(self, blocks: list[Block], hit: set[int], drop: set[int]) -> Tokens:
        """Lay blocks out for sampling: nothing is known of those in `hit`, nor of those in `drop`."""
        return self._all(blocks, hit, drop, lambda side: Masks(np.ones(self._num(side), np.bool_), 1.0, 1.0, 0), 1.0, "")

    def _all(
        self, blocks: list[Block], hit: set[int], drop: set[int], masks: Callable[[str], Masks], time: float, source: str
    ) -> Tokens:
        self.add(1, ids=BOS, span=0)
        self.pos = 1
        for place, block in enumerate(blocks):
            side = "image" if isinstance(block, np.ndarray) else "text"
            level = time if place in hit else float(place in drop)
            if place in hit and (side == "text" or self.sizes.codes):
                hidden = self.masks("text" if side == "text" else "codes", masks(side), ahead=side == "image")
            else:
                hidden = {"masked": place in drop, "level": float(place in drop)}
            if isinstance(block, np.ndarray):
                self._image(block, hidden, level, hit=place in hit)
            else:
                self._slot(block, hidden)
        return self.finish(source)

    def _num(self, side: str) -> int:
        return self.config.layout.max_text_tokens if side == "text" else self.sizes.tokens

    def _masks(self, side: str, time: float) -> Masks:
        masking = self.config.text.masking if side == "text" else self.config.image.masking
        return draw_masks(self.random, self._num(side), masking, time)

    def _sides(self, blocks: list[Block]) -> tuple[set[int], set[int]]:
        """Draw which side is corrupted, and whether the other is hidden as a whole; or both are corrupted."""
        layout, image = self.config.layout, self.config.image.objective != "none"
        places: dict[str, set[int]] = {"text": set(), "image": set()}
        for place, block in enumerate(blocks):
            places["image" if isinstance(block, np.ndarray) else "text"].add(place)
        side, other = ("image", "text") if self.random.random() < layout.p_caption_first else ("text", "image")
        drops = {"text": self.random.random() < layout.p_drop_text, "image": self.random.random() < layout.p_drop_image}
        if not image:
            return places["text"], set()
        if self.config.time.joint != "one_side_clean" or not places[side]:
            return places["text"] | places["image"], set()
        return places[side], places[other] if drops[other] else set()

    def _times(self) -> dict[str, float]:
        """Draw the times of both sides: two, or one for both, which is even, for the text's weights ask for that."""
        text, image = float(self.random.random()), draw_time(self.random, self.config)
        if self.config.time.joint == "shared_t":
            return {"text": text, "image": max(text, LEAST)}
        return {"text": text, "image": image if self.config.image.continuous else float(self.random.random())}

    def _slot(self, ids: list[int], hidden: dict[str, Any]) -> None:
        num = self.config.layout.max_text_tokens
        filled = [*ids, *[EOS] * num][:num]
        self.add(num, ids=filled, pos=self.pos + np.arange(num), span=0, **hidden)
        self.pos += num

    def _image(self, image: np.ndarray, hidden: dict[str, Any], level: float, *, hit: bool) -> None:
        number, who = self.show(image), {"span": 0, "tower": self.tower(made=hit)}
        self.add(1, ids=BOI, pos=self.pos, span=0)
        if self.sizes.codes:
            self.codes(number, **who, **hidden)
        else:
            self.numbers(number, level, learnt=hit, **who)
        self.add(1, ids=EOI, pos=self.pos, span=0)
        self.pos += 1
