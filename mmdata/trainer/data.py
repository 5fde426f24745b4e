"""From a corpus to packed batches: the tokenizer, token counts, and the loader over them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmdata.errors import ConfigError
from mmdata.loader import Loader, Options, part_of, read_sample
from mmdata.shards import KINDS, Corpus, open_corpus
from mmdata.text import Tokenizer, train_tokenizer
from mmdata.trainer.batch import Batch, collate
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.dist import World
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.layout import Sequencer, Tokens


@dataclass
class Data:
    """An open corpus, and how its samples become tokens."""

    config: TrainConfig
    corpus: Corpus
    tokenizer: Tokenizer
    encoders: Encoders
    world: World

    @property
    def sequencer(self) -> Sequencer:
        """What lays samples out."""
        return Sequencer(self.config, self.tokenizer, self.encoders.sizes)

    def loader(self) -> Loader[Tokens]:
        """Return the loader of this rank's rows of the training split."""
        return self._loader(self.config.split, self.config.optim.rows, self.world)

    @property
    def identity(self) -> dict[str, str]:
        """Digests of what training reads, by name: a checkpoint belongs to them."""
        images = self.encoders.sizes.digest
        return {"corpus": self.corpus.digest, "tokenizer": self.tokenizer.digest, "image encoders": images}

    def batch(self, rows: list[list[Tokens]]) -> Batch:
        """Pack rows."""
        return collate(rows, self.config.layout.row_tokens)

    def validation(self) -> Iterator[list[list[Tokens]]]:
        """Return the rows of the validation split, in micro-batches, the same at every call and on every rank."""
        if self.config.val_split is None or self.config.val_split not in self.corpus.splits:
            return
        if not part_of(self.corpus, self.config.val_split).num:
            return
        with self._loader(self.config.val_split, self.config.optim.micro_rows, World(), epochs=1) as loader:
            for batch in loader:
                yield [list(row) for row in batch.rows]

    def _loader(self, split: str, rows: int, world: World, epochs: int | None = None) -> Loader[Tokens]:
        options = Options(
            split=split,
            batch_size=rows,
            row_tokens=self.config.layout.row_tokens,
            seed=self.config.seed,
            epochs=epochs,
            threads=self.config.loader_threads,
            rank=world.rank,
            world=world.size,
        )
        return Loader(self.corpus, options=options, transform=self.sequencer, lengths=self.sequencer.counts())


def open_data(config: TrainConfig, world: World = World(), tokenizer: Tokenizer | None = None) -> Data:  # noqa: B008 - it cannot be changed
    """Open the corpus of a config; the first rank trains a tokenizer on its captions unless one is given."""
    corpus = world.together(lambda: _opened(config))
    if tokenizer is None:
        told = world.gather(lambda: _trained(config, corpus).data if world.first else None)
        tokenizer = Tokenizer(told[0])
    encoders = world.together(lambda: Encoders(config, tokenizer.size, str(world.device)))
    return Data(config, corpus, tokenizer, encoders, world)


def _opened(config: TrainConfig) -> Corpus:
    """Open the corpus; refuse one that has not what the config trains on."""
    corpus = open_corpus(config.corpus)
    if config.split not in corpus.splits or not part_of(corpus, config.split).num:
        raise ConfigError(
            f"{config.corpus}: no samples of split `{config.split}`; it has {', '.join(corpus.splits) or 'none'}",
            hint="set `split` to one of these",
        )
    there = {KINDS[number] for number in np.unique(corpus.blocks["kind"])}
    if missing := ({"text"} if config.image.objective == "none" else {"text", "image"}) - there:
        raise ConfigError(
            f"{config.corpus}: no {' and no '.join(sorted(missing))} in it: {', '.join(sorted(there)) or 'nothing'} alone",
            hint="the trainer wants text and images together: give a corpus of pairs or documents (`mmdata inspect` shows one)",
        )
    if "video" in there:
        raise ConfigError(f"{config.corpus}: has videos, which the trainer does not read", hint="take frames out of them first")
    return corpus


def _trained(config: TrainConfig, corpus: Corpus) -> Tokenizer:
    part = part_of(corpus, config.split)
    samples = (read_sample(corpus, index) for index in range(part.first, part.first + part.num))
    return train_tokenizer((text for sample in samples for text in sample.texts), config.text.vocab)
