"""MDS, for MosaicML Streaming: a folder a split, with its own `index.json`.

Read it with `StreamingDataset(local=OUT, split="train")`; `json` and `blocks` are texts that `json.loads` reads.
"""

from pathlib import Path

from mmdata.shards.corpus import Corpus
from mmdata.shards.counter import Counter
from mmdata.shards.export.records import Shape, flat, read_records, splits_of

SHARD_BYTES = 64 << 20
# Readers check it when they are asked to: `validate_hash="xxh3_64"`.
HASH = "xxh3_64"


def write(corpus: Corpus, folder: Path, counter: Counter) -> None:
    """Write every split with Streaming's own writer, in the order of the corpus."""
    from streaming import MDSWriter

    shape = Shape.of(corpus)
    columns = {name: kind.__name__ for name, kind in shape.columns().items()}
    for split, indexes in splits_of(corpus):
        with MDSWriter(out=str(folder / split), columns=columns, hashes=[HASH], size_limit=SHARD_BYTES) as writer:
            for record in read_records(corpus, indexes):
                writer.write(flat(record, shape))
                counter.add()
