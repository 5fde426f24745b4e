"""Texts that share runs of words with a reference, such as the captions or questions of an eval set.

The way of GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C: runs of 13 words, fewer for short tasks), PaLM (Chowdhery et
al. 2022, arXiv:2204.02311: contaminated where 70 % of the runs of 8 words are known) and the Llama reports. Decided here: what
counts is the share of a text's own runs that the reference has; the caller says from which share on a text goes. A text of
fewer words than a run counts as a whole: it meets a text of the reference that has the same words and no others. Words are
those of `mmdata.dedupe.words`, a run is known by 64 bits: among 10^8 runs of a reference one of 1.8 x 10^11 is met by chance.
"""

import numpy as np

WORDS = 8  # a run
LEAST_WORDS = 3  # "a dog" is no copy of "a dog"


def most_met(text_M: np.ndarray, place_M: np.ndarray, num: int) -> np.ndarray:
    """Return the place that each of `num` texts meets most often, the first of several, (N,) int64; -1 where it meets none."""
    num_places = int(place_M.max(initial=0)) + 1
    both, count = np.unique(text_M * num_places + place_M, return_counts=True)
    text, place = both // num_places, both % num_places
    worst_first = np.lexsort((-place, count, text))  # of a text's places the best is written last
    found = np.full(num, -1, np.int64)
    found[text[worst_first]] = place[worst_first]
    return found
