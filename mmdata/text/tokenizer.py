"""A byte-level BPE tokenizer: every text has tokens, and decoding gives it back."""

from collections.abc import Iterable
from functools import cached_property

from tokenizers import Tokenizer as _Tokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from mmdata.storage import digest_bytes

SPECIALS = ("<pad>", "<bos>", "<eos>", "<boi>", "<eoi>", "<null>", "<mask>")
PAD, BOS, EOS, BOI, EOI, NULL, MASK = range(len(SPECIALS))


class Tokenizer:
    """A trained tokenizer; the special tokens are ids 0 to 6."""

    def __init__(self, data: str) -> None:
        self.data = data
        self._inner = _Tokenizer.from_str(data)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tokenizer's definition; token counts are named by it."""
        return digest_bytes(self.data.encode())

    @property
    def size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self._inner.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens; their names in the text are just text."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; special tokens vanish."""
        text: str = self._inner.decode([index for index in ids if index >= len(SPECIALS)], skip_special_tokens=False)
        return text


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Train byte-level BPE on texts; the same texts in the same order give the same tokenizer."""
    inner = _Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    # Special tokens are placed by the layout alone: a caption that spells one must not become it.
    plain = _Tokenizer(inner.model)
    plain.pre_tokenizer, plain.decoder = inner.pre_tokenizer, inner.decoder
    return Tokenizer(plain.to_str())
