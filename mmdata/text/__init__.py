"""Text: the tokenizer."""

from mmdata.text.tokenizer import SPECIALS, Tokenizer, train_tokenizer

__all__ = ["SPECIALS", "Tokenizer", "train_tokenizer"]
