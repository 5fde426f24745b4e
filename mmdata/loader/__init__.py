"""Which sample when (pure functions), and reading it: plan, then read."""

from mmdata.loader.loader import Loader, LoaderState, Row
from mmdata.loader.plan import WINDOW, RowPlan, pack
from mmdata.loader.read import Block, Sample, read_sample
from mmdata.loader.seeds import keyed

__all__ = ["WINDOW", "Block", "Loader", "LoaderState", "Row", "RowPlan", "Sample", "keyed", "pack", "read_sample"]
