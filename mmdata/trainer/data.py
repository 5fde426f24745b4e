"""From a corpus to packed batches: the tokenizer, token counts, and the loader over them."""

from dataclasses import dataclass

from mmdata.loader import Loader, Options, part_of, read_sample
from mmdata.shards import Corpus, open_corpus
from mmdata.text import Tokenizer, train_tokenizer
from mmdata.trainer.batch import Batch, collate
from mmdata.trainer.config import TrainConfig
from mmdata.trainer.encoders import Encoders
from mmdata.trainer.layout import Sequencer, Tokens


@dataclass
class Data:
    """An open corpus, and how its samples become tokens."""

    config: TrainConfig
    corpus: Corpus
    tokenizer: Tokenizer
    encoders: Encoders

    @property
    def sequencer(self) -> Sequencer:
        """What lays samples out."""
        return Sequencer(self.config, self.tokenizer, self.encoders.sizes)

    def loader(self) -> Loader[Tokens]:
        """Return the loader of the training split."""
        return self._loader(self.config.split, self.config.optim.rows)

    def batch(self, rows: list[list[Tokens]]) -> Batch:
        """Pack rows."""
        return collate(rows, self.config.layout.row_tokens)

    def validation(self) -> list[Batch]:
        """Return the validation split in micro-batches, the same at every call; empty when there is none."""
        if self.config.val_split is None or self.config.val_split not in self.corpus.splits:
            return []
        if not part_of(self.corpus, self.config.val_split).num:
            return []
        size = self.config.optim.micro_rows
        with self._loader(self.config.val_split, 1, epochs=1) as loader:
            rows = [list(row) for batch in loader for row in batch.rows]
        return [self.batch(rows[start : start + size]) for start in range(0, len(rows), size)]

    def _loader(self, split: str, rows: int, epochs: int | None = None) -> Loader[Tokens]:
        options = Options(
            split=split,
            batch_size=rows,
            row_tokens=self.config.layout.row_tokens,
            seed=self.config.seed,
            epochs=epochs,
            threads=1,
        )
        return Loader(self.corpus, options=options, transform=self.sequencer, lengths=self.sequencer.counts())


def open_data(config: TrainConfig, tokenizer: Tokenizer | None = None) -> Data:
    """Open the corpus of a config; a tokenizer is trained on its captions unless one is given."""
    corpus = open_corpus(config.corpus)
    if tokenizer is None:
        part = part_of(corpus, config.split)
        samples = (read_sample(corpus, index) for index in range(part.first, part.first + part.num))
        tokenizer = train_tokenizer((text for sample in samples for text in sample.texts), config.text.vocab)
    return Data(config, corpus, tokenizer, Encoders(config, tokenizer.size))
