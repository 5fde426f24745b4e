"""From a corpus to packed batches: the tokenizer, token counts, and the loader over them."""

from dataclasses import dataclass

import numpy as np

from mmdata.errors import ConfigError, did_you_mean
from mmdata.loader import Loader, RowPlan, read_sample
from mmdata.shards import KINDS, Corpus, open_corpus
from mmdata.text import Tokenizer, train_tokenizer
from mmdata.trainer.batch import Batch, collate
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.sequence import Sequencer, Tokens


@dataclass
class Data:
    """An open corpus, and how its samples become tokens."""

    config: TrainConfig
    corpus: Corpus
    tokenizer: Tokenizer

    @property
    def sequencer(self) -> Sequencer:
        """What lays samples out."""
        return Sequencer(self.config, self.tokenizer)

    def indexes(self, split: str) -> np.ndarray:
        """Return the indexes of a split's samples that hold an image."""
        if split not in self.corpus.splits:
            raise ConfigError(f"the corpus has no split `{split}`", hint=did_you_mean(split, self.corpus.splits))
        mine = self.corpus.samples["split"] == self.corpus.splits.index(split)
        return np.flatnonzero(mine)

    def loader(self) -> Loader[Tokens]:
        """Return the loader of the training split."""
        samples = self.indexes(self.config.split)
        plan = RowPlan(self._lengths(samples), samples, self.config.layout.row_tokens, self.config.seed)
        return Loader(self.corpus, plan, self.sequencer, config=self.config.digest + self.tokenizer.digest)

    def batch(self, rows: list[list[Tokens]]) -> Batch:
        """Pack rows as the config's mask wants them."""
        return collate(
            rows, self.config.layout.row_tokens,
            bidirectional=self.config.mask == "span_bidir", isolated=self.config.noise_isolated,
        )  # fmt: skip

    def validation(self) -> Batch | None:
        """Return the validation split as one batch, the same at every call; null when there is none."""
        if self.config.val_split is None or self.config.val_split not in self.corpus.splits:
            return None
        samples = self.indexes(self.config.val_split)
        if not len(samples):
            return None
        plan = RowPlan(self._lengths(samples), samples, self.config.layout.row_tokens, 0, window=len(samples))
        return self.batch([[self.sequencer(read_sample(self.corpus, index), 0) for _, index in row] for row in plan.rows(0)])

    def _lengths(self, samples: np.ndarray) -> np.ndarray:
        """Count the tokens of each sample. Texts are read once; images are counted from the index."""
        return np.asarray([self._length(int(index)) for index in samples], dtype=np.int32)

    def _length(self, index: int) -> int:
        texts = [len(self.tokenizer.encode(text)) for text in _texts(self.corpus, index)]
        num_images = int((self.corpus.blocks_of(index)["kind"] == KINDS.index("image")).sum())
        return self.sequencer.length(texts, num_images)


def open_data(config: TrainConfig, tokenizer: Tokenizer | None = None) -> Data:
    """Open the corpus of a config; a tokenizer is trained on its captions unless one is given."""
    corpus = open_corpus(config.corpus)
    if tokenizer is None:
        mine = np.flatnonzero(corpus.samples["split"] == corpus.splits.index(config.split))
        tokenizer = train_tokenizer((text for index in mine for text in _texts(corpus, int(index))), config.text.vocab)
    return Data(config, corpus, tokenizer)


def _texts(corpus: Corpus, index: int) -> list[str]:
    import json

    members = corpus.read(index)
    meta = json.loads(members["json"])
    if "blocks" in meta:
        return [block["text"] for block in meta["blocks"] if block["type"] == "text"]
    return [members["txt"].decode()]
