"""A shard's bytes, its indexes and the corpus manifest; the only code that knows tar."""

from mmdata.shards.corpus import BLOCK_DTYPE, KINDS, SAMPLE_DTYPE, Corpus, open_corpus
from mmdata.shards.indexing import Indexed, index_folder
from mmdata.shards.reshard import Resharded, reshard_corpus
from mmdata.shards.stream import stream_samples
from mmdata.shards.tar import TarFile, member_bytes
from mmdata.shards.verify import Problem, Verdict, verify

__all__ = [
    "BLOCK_DTYPE", "KINDS", "SAMPLE_DTYPE", "Corpus", "Indexed", "Problem", "Resharded", "TarFile", "Verdict", "index_folder",
    "member_bytes", "open_corpus", "reshard_corpus", "stream_samples", "verify",
]  # fmt: skip
