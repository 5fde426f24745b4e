"""From dataset catalogs to multimodal pretraining corpora, and from those to a trained model.

The public names below are loaded when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmdata.engine import Runner, RunResult
    from mmdata.errors import ConfigError, MmdataError, PartitionError, RecordError, RunError
    from mmdata.executors import open_executor
    from mmdata.plan import Plan, load_plan
    from mmdata.shards import Corpus, open_corpus

_HOMES = {
    "ConfigError": "mmdata.errors",
    "Corpus": "mmdata.shards",
    "MmdataError": "mmdata.errors",
    "PartitionError": "mmdata.errors",
    "Plan": "mmdata.plan",
    "RecordError": "mmdata.errors",
    "RunError": "mmdata.errors",
    "RunResult": "mmdata.engine",
    "Runner": "mmdata.engine",
    "load_plan": "mmdata.plan",
    "open_corpus": "mmdata.shards",
    "open_executor": "mmdata.executors",
}

__all__ = [
    "ConfigError", "Corpus", "MmdataError", "PartitionError", "Plan", "RecordError", "RunError", "RunResult", "Runner",
    "load_plan", "open_corpus", "open_executor",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"mmdata has no public name `{name}`")
    return getattr(import_module(_HOMES[name]), name)
