"""LitData's chunks: a folder a split, with its own `index.json`.

Read it with `litdata.StreamingDataset(OUT/train)`; `json` and `blocks` are texts that `json.loads` reads. Written by the
writer that `litdata.optimize` hands its items to, without its worker processes: they would change the order.
"""

from pathlib import Path

from mmdata.shards.corpus import Corpus
from mmdata.shards.counter import Counter
from mmdata.shards.export.records import Shape, flat, read_records, splits_of

CHUNK_BYTES = 64 << 20


def write(corpus: Corpus, folder: Path, counter: Counter) -> None:
    """Write every split with LitData's own writer, in the order of the corpus."""
    from litdata.streaming.serializers import StringSerializer
    from litdata.streaming.writer import BinaryWriter

    class Text(StringSerializer):  # type: ignore[misc]
        """LitData's own leaves a text that names a file to a serializer of files, and captions are strangers'."""

        def can_serialize(self, data: object) -> bool:
            return isinstance(data, str)

    shape = Shape.of(corpus)
    for split, indexes in splits_of(corpus):
        writer = BinaryWriter(str(folder / split), chunk_bytes=CHUNK_BYTES, serializers={"str": Text()})
        for place, record in enumerate(read_records(corpus, indexes)):
            writer.add_item(place, flat(record, shape))
            counter.add()
        writer.done()
        writer.merge()
