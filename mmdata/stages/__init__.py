"""Stages, one file each, and the one table of their names; other packages add theirs by entry point `mmdata.stages`."""

from functools import cache
from importlib.metadata import entry_points

from mmdata.stages.against import Against
from mmdata.stages.block import Block
from mmdata.stages.cap import Cap
from mmdata.stages.clip_score import ClipScore
from mmdata.stages.datacomp import DataComp
from mmdata.stages.datacomp_rules import (
    DataCompEntities,
    DataCompLanguage,
    DataCompText,
    DataCompTop,
)
from mmdata.stages.decontaminate import Decontaminate
from mmdata.stages.dedupe import Dedupe
from mmdata.stages.download import Download
from mmdata.stages.download_img2dataset import DownloadImg2dataset
from mmdata.stages.fingerprint import Fingerprint
from mmdata.stages.foreign import EmbeddedImages, Img2datasetFolder, WebdatasetTars
from mmdata.stages.keep import Keep
from mmdata.stages.language import Language
from mmdata.stages.match_texts import MatchTexts
from mmdata.stages.measure import Measure
from mmdata.stages.nearest_centroid import NearestCentroid
from mmdata.stages.pool import Pool
from mmdata.stages.reference import ReferenceSink
from mmdata.stages.sample import Sample
from mmdata.stages.score import Score
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Catalog, Folder
from mmdata.stages.split_captions import SplitCaptions
from mmdata.stages.subset import Subset
from mmdata.stages.text_quality import DocumentQuality, TextQuality
from mmdata.stages.text_rules import TextRules
from mmdata.stages.text_statistics import TextStatistics
from mmdata.stages.top import Top
from mmdata.stages.url_list import UrlList
from mmdata.stages.verbs import Definition, Sink, Source, Stage

__all__ = ["SINKS", "SOURCES", "STAGES", "engines_of", "named"]

STAGES: tuple[type[Stage], ...] = (
    Against, Block, Cap, ClipScore, DataComp, DataCompEntities, DataCompLanguage, DataCompText, DataCompTop, Decontaminate,
    Dedupe, DocumentQuality, Download, DownloadImg2dataset, Fingerprint, Keep, Language, MatchTexts, Measure,
    NearestCentroid, Sample, Score, SplitCaptions, TextQuality, TextRules, TextStatistics, Top,
)  # fmt: skip
SOURCES: tuple[type[Source], ...] = (
    Catalog, EmbeddedImages, Folder, Img2datasetFolder, Pool, UrlList, WebdatasetTars,
)  # fmt: skip
SINKS: tuple[type[Sink], ...] = (ReferenceSink, Shards, Subset)


@cache
def named(verb: type[Definition]) -> dict[str, type[Definition]]:
    """Return the classes of a verb (Stage, Source or Sink) by their YAML name, those of other packages included."""
    own: dict[str, type[Definition]] = {cls.name: cls for cls in (*STAGES, *SOURCES, *SINKS)}
    for point in entry_points(group="mmdata.stages"):
        cls = point.load()
        own.setdefault(cls.name, cls)  # by the name that plans are written with, whatever the entry point's
    return {name: cls for name, cls in sorted(own.items()) if issubclass(cls, verb)}


def engines_of(verb: type[Definition], name: str) -> dict[str, type[Definition]]:
    """Return who may do a stage's work, by what its `engine:` says; nothing for a stage that only one class does."""
    known = named(verb)
    others = {cls.engine_of[1]: cls for cls in known.values() if cls.engine_of is not None and cls.engine_of[0] == name}
    return {"mmdata": known[name], **others} if others else {}
