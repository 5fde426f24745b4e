"""Closed lists of words and marks that statistics count; the lists are data, their sources beside them."""

# Rae et al. 2021 (Gopher), A1.1: a document holds at least two of these.
GOPHER_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")

# Function words of English: articles, pronouns, prepositions, conjunctions, auxiliaries, and common adverbs of place and
# degree. OBELICS counts such words by a list of its own; the cutoffs are its, the list is ours.
_FUNCTION_WORDS = """
a about above across after again against all almost along already also although always am among an and another any anybody
anyone anything are aren't around as at away back be became because become becomes been before behind being below between both
but by came can can't cannot come could couldn't did didn't do does doesn't doing don't done down during each either else
enough even ever every everybody everyone everything few for from further get gets give given go goes going gone got had
hadn't has hasn't have haven't having he he's her here here's hers herself him himself his how however i i'd i'll i'm i've if
in indeed into is isn't it it's its itself just keep last least less let let's like many may maybe me might mine more most
much must my myself near need neither never next no nobody none nor not nothing now of off often on once one only onto or
other others ought our ours ourselves out over own part per perhaps quite rather really same say says see seem seemed seems
several shall she she's should shouldn't since so some somebody someone something sometimes somewhere still such take than
that that's the their theirs them themselves then there there's therefore these they they'd they'll they're they've thing
things this those though through throughout thus to together too toward towards under unless until up upon us very was wasn't
way we we'd we'll we're we've well went were weren't what what's whatever when whenever where whether which while who who's
whole whom whose why will with within without won't would wouldn't yet you you'd you'll you're you've your yours yourself
yourselves
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())

# Marks that OBELICS' punctuation ratio counts, as a pattern.
PUNCTUATION = r"[.,!?:;()\[\]\"\u201C\u201D\u2018\u2026\u2013\u2014\-/\u3002\uFF0C\uFF01\uFF1F]"
