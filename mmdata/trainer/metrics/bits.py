"""Likelihoods in bits. Only a likelihood, or a bound of one, is given in bits: the loss of flow matching is neither."""

import math

LEVELS = 256  # of a byte, which [-1, 1] is cut into


def bits_per_token(nats: float, tokens: int) -> float:
    """Return bits a token, >= 0, of a summed negative log-likelihood (or a bound: masked diffusion) in nats.

    A code of an image is a token too: a codebook of K codes that is guessed costs log2(K). Raises ValueError without tokens.
    """
    if tokens <= 0:
        raise ValueError("bits per token of no tokens")
    return nats / (tokens * math.log(2))


def bits_per_dimension(nats: float, dimensions: int, *, scaled: bool = False) -> float:
    """Return bits a number of an image (height x width x 3), of a summed negative log-likelihood in nats.

    scaled   the likelihood is a density of bytes scaled to [-1, 1] (with noise of one level, Theis et al., arXiv:1511.01844):
             log2(127.5) is added, for a density grows by what its numbers are divided by. Else it is of codes or bytes.
    """
    return bits_per_token(nats, dimensions) + (math.log2((LEVELS - 1) / 2) if scaled else 0.0)
