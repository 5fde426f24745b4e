"""Which sample when (pure functions), and reading it: plan, then read."""

from mmdata.loader.batch import Batch, Draw
from mmdata.loader.cache import Cache
from mmdata.loader.lengths import TokenCounts
from mmdata.loader.loader import Loader
from mmdata.loader.mixture import Mixture, mixture_of
from mmdata.loader.options import Options, Transform
from mmdata.loader.order import places
from mmdata.loader.pack import pack
from mmdata.loader.plan import WINDOW, Cursor, Plan, Start
from mmdata.loader.sample import Block, Sample, read_sample
from mmdata.loader.seeds import keyed
from mmdata.loader.source import Lengths, Reading, Source, part_of, sources_of
from mmdata.loader.state import LoaderState
from mmdata.loader.stats import Stats

__all__ = [
    "WINDOW", "Batch", "Block", "Cache", "Cursor", "Draw", "Lengths", "Loader", "LoaderState", "Mixture", "Options", "Plan",
    "Reading", "Sample", "Source", "Start", "Stats", "TokenCounts", "Transform", "keyed", "mixture_of", "pack", "part_of",
    "places", "read_sample", "sources_of",
]  # fmt: skip
