"""Rules on texts that papers published, by name: which statistic must lie where.

Both ends belong to a range. Sets whose statistics need a list of words end in `_words`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmdata.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Rule:
    """A range that a statistic must lie in."""

    statistic: str
    at_least: float | None = None
    at_most: float | None = None

    def reasons(self) -> tuple[str, ...]:
        """Return the names of the ways to break it."""
        ends = ((self.at_least, "below"), (self.at_most, "above"))
        return tuple(f"{self.statistic}_{word}" for end, word in ends if end is not None)


@dataclass(frozen=True)
class RuleSet:
    """Rules of one paper, and where it says them."""

    source: str
    rules: tuple[Rule, ...]


RULES: dict[str, RuleSet] = {
    "gopher_quality": RuleSet(
        "Rae et al. 2021, Scaling Language Models: Methods, Analysis & Insights from Training Gopher, arXiv:2112.11446, A1.1",
        (
            Rule("num_words", 50, 100_000),
            Rule("mean_word_length", 3, 10),
            Rule("symbol_ratio", at_most=0.1),
            Rule("bullet_lines", at_most=0.9),
            Rule("ellipsis_lines", at_most=0.3),
            Rule("alphabetic_words", at_least=0.8),
            Rule("num_stop_words", at_least=2),
        ),
    ),
    "gopher_repetition": RuleSet(
        "Rae et al. 2021, arXiv:2112.11446, Table A1",
        (
            Rule("duplicate_lines", at_most=0.30),
            Rule("duplicate_paragraphs", at_most=0.30),
            Rule("duplicate_line_chars", at_most=0.20),
            Rule("duplicate_paragraph_chars", at_most=0.20),
            Rule("top_2gram_chars", at_most=0.20),
            Rule("top_3gram_chars", at_most=0.18),
            Rule("top_4gram_chars", at_most=0.16),
            Rule("duplicate_5gram_chars", at_most=0.15),
            Rule("duplicate_6gram_chars", at_most=0.14),
            Rule("duplicate_7gram_chars", at_most=0.13),
            Rule("duplicate_8gram_chars", at_most=0.12),
            Rule("duplicate_9gram_chars", at_most=0.11),
            Rule("duplicate_10gram_chars", at_most=0.10),
        ),
    ),
    "c4": RuleSet(
        "Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, "
        "arXiv:1910.10683, 2.2: pages",
        (Rule("c4_sentences", at_least=3), Rule("lorem_ipsum", at_most=0), Rule("curly_brackets", at_most=0)),
    ),
    "c4_line": RuleSet(
        "Raffel et al. 2020, arXiv:1910.10683, 2.2: lines, for texts of which every line must be one that C4 keeps",
        (Rule("c4_lines", at_least=1), Rule("lorem_ipsum", at_most=0), Rule("curly_brackets", at_most=0)),
    ),
    "obelics_paragraph": RuleSet(
        "Laurencon et al. 2023, OBELICS: An Open Web-Scale Filtered Dataset of Interleaved Image-Text Documents, "
        "arXiv:2306.16527, A.1.4: cutoffs for paragraphs",
        (
            Rule("num_plain_words", 4, 1000),
            Rule("char_repetition", at_most=0.1),
            Rule("word_repetition", at_most=0.1),
            Rule("special_chars", at_most=0.3),
            Rule("stop_words", at_least=0.3),
            Rule("paragraph_punctuation", at_least=0.001),
        ),
    ),
    "obelics_paragraph_words": RuleSet(
        "Laurencon et al. 2023, arXiv:2306.16527, A.1.4: cutoffs for paragraphs that need lists of words",
        (Rule("flagged_words", at_most=0.01), Rule("common_words", at_least=0.8)),
    ),
    "obelics_document": RuleSet(
        "Laurencon et al. 2023, arXiv:2306.16527, A.1.4: cutoffs for documents (its two others are a `language_score` of 0.8 "
        "and a perplexity of 1,500 under a language model)",
        (
            Rule("num_plain_words", 10, 2000),
            Rule("char_repetition", at_most=0.1),
            Rule("word_repetition", at_most=0.2),
            Rule("special_chars", at_most=0.275),
            Rule("stop_words", at_least=0.35),
            Rule("punctuation", at_least=0.03),
        ),
    ),
    "obelics_document_words": RuleSet(
        "Laurencon et al. 2023, arXiv:2306.16527, A.1.4: cutoffs for documents that need lists of words",
        (Rule("flagged_words", at_most=0.01), Rule("common_words", at_least=0.9)),
    ),
}


def rules_of(names: Iterable[str]) -> tuple[Rule, ...]:
    """Return the rules of sets, in order; raise ConfigError for a name that is none."""
    found: list[Rule] = []
    for name in names:
        if name not in RULES:
            raise ConfigError(f"no rules are called `{name}`", hint=did_you_mean(name, RULES))
        found += RULES[name].rules
    return tuple(dict.fromkeys(found))


def statistics_of(rules: Iterable[Rule]) -> tuple[str, ...]:
    """Return the statistics that rules ask for."""
    return tuple(dict.fromkeys(rule.statistic for rule in rules))


def judge(rules: Sequence[Rule], values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return of each text the name of the first way in which it breaks a rule, and the value that did.

    values   statistics by name, each (N,) float64; NaN breaks nothing
    returns  (N,) object, text or null; (N,) float64, NaN where no rule is broken
    """
    num = len(values[rules[0].statistic]) if rules else 0
    reasons, found = np.full(num, None, object), np.full(num, np.nan)
    left = np.full(num, True)
    for rule in rules:
        value = values[rule.statistic]
        for end, broken, word in ((rule.at_least, np.less, "below"), (rule.at_most, np.greater, "above")):
            if end is not None:
                here = left & broken(value, end)
                reasons[here], found[here] = f"{rule.statistic}_{word}", value[here]
                left &= ~here
    return reasons, found
