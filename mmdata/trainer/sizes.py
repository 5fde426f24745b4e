"""The sizes that layout and model agree on: ids, codes, numbers and tokens of an image."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """What a tokenizer and the image encoders fix.

    vocab       ids of the text, special tokens included; codes come after them
    tokens      tokens of a generated image, a square in raster order
    dim         numbers of such a token; 0 for codes          codes   codes there are; 0 for numbers
    und_tokens, und_dim   the same of an image to be understood; 0 where it is the same as a generated one
    digest      SHA-256 of the encoders
    """

    vocab: int
    tokens: int
    dim: int
    codes: int
    und_tokens: int = 0
    und_dim: int = 0
    digest: str = ""

    @property
    def ids(self) -> int:
        """Ids of text and codes together."""
        return self.vocab + self.codes

    @property
    def facts(self) -> list[object]:
        """What a layout depends on."""
        return [self.tokens, self.dim, self.codes, self.und_tokens, self.und_dim, self.digest]
