"""DataComp's filtering baselines by name, to the row (Gadre et al. 2023, DataComp, arXiv:2304.14108, section 4.1 and appendix).

Decided here: a baseline is a recipe of stages over the metadata of a pool, each of which leaves its columns behind: the
language and the nearest centroid of a row are found once, however many thresholds follow. What is cheap comes first, which
changes no set. Quirks are kept: see `docs/datacomp.md`.
"""

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mmdata.stages.datacomp_rules import (
    DataCompEntities,
    DataCompLanguage,
    DataCompText,
    DataCompTop,
)
from mmdata.stages.keep import Keep
from mmdata.stages.language import Language
from mmdata.stages.nearest_centroid import NearestCentroid
from mmdata.stages.verbs import Recipe, Stage
from mmdata.text.language import GCLD3

SCORES = {"l14": "clip_l14_similarity_score", "b32": "clip_b32_similarity_score"}
LANGUAGE, LAION_LANGUAGE = "datacomp_language", "laion2b_language"
LAION_SCORE = 0.28
Name = Literal[
    "no_filter", "basic_filter", "text_based", "clip_score", "laion2b", "image_based", "image_based_intersect_clip_score"
]  # fmt: skip

# Which baseline needs which files; all others are refused with it, as DataComp's flags are.
_NEEDS: dict[str, tuple[str, ...]] = {
    "basic_filter": ("language_model",),
    "text_based": ("language_model", "wordnet", "entities"),
    "image_based": ("language_model", "centroids", "targets"),
    "image_based_intersect_clip_score": ("language_model", "centroids", "targets"),
}
_WHERE = {
    "language_model": "fastText's lid.176.bin",
    "wordnet": "a folder of WordNet 3.0's files, such as nltk_data/corpora/wordnet",
    "entities": "DataComp's imagenet21k_wordnet_ids.txt",
    "centroids": "DataComp's SCALE_centroids_l14.pt",
    "targets": "DataComp's in1k_clip_vit_l14_0.pt to in1k_clip_vit_l14_4.pt",
}


class DataComp(Recipe):
    """One of DataComp's baselines over the rows of a `pool`, by its name there.

    filter          no_filter, basic_filter, text_based, clip_score, laion2b, image_based or image_based_intersect_clip_score
    arch            whose CLIP score the two `..clip_score` ask about: l14 or b32
    threshold       keep rows with at least this score, or
    fraction        find the threshold that keeps this share of the whole pool. As in DataComp, it is the score of the row after
                    those, so that one more is kept, and all that are as good
    language_model  path of fastText's lid.176.bin, for all but no_filter, clip_score and laion2b (which asks gcld3)
    wordnet         folder of WordNet 3.0's files, and
    entities        DataComp's imagenet21k_wordnet_ids.txt, for text_based
    centroids       DataComp's SCALE_centroids_l14.pt, and
    targets         its in1k_clip_vit_l14_0.pt to _4.pt, for the two image_based; the pool must have `features: [l14_img]`

    resources       what a task that looks for centroids holds, such as `{gpus: 1}`

    A file that bears a published name is checked by its SHA-256; under another name it stands in, and the manifest says so.
    """

    name: ClassVar[str] = "datacomp"

    filter: Name
    arch: Literal["l14", "b32"] | None = None
    threshold: float | None = None
    fraction: Annotated[float | None, Field(gt=0, lt=1)] = None
    language_model: str | None = None
    wordnet: str | None = None
    entities: str | None = None
    centroids: str | None = None
    targets: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        needs = _NEEDS.get(self.filter, ())
        for key, what in _WHERE.items():
            given = bool(getattr(self, key))
            if key in needs and not given:
                raise ValueError(f"`{self.filter}` needs `{key}`: {what}")
            if given and key not in needs:
                raise ValueError(f"`{self.filter}` takes no `{key}`")
        if "resources" in self.model_fields_set and "centroids" not in needs:
            raise ValueError(f"`{self.filter}` takes no `resources`: they are those of `nearest_centroid`")
        scored = "clip_score" in self.filter
        if scored and (self.arch is None or (self.threshold is None) == (self.fraction is None)):
            raise ValueError(f"`{self.filter}` needs `arch`, and one of `threshold` and `fraction`")
        if not scored and any(given is not None for given in (self.arch, self.threshold, self.fraction)):
            raise ValueError(f"`{self.filter}` takes no `arch`, `threshold` or `fraction`")
        return self

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of the baseline."""
        baselines: dict[str, Callable[[], tuple[Stage, ...]]] = {
            "no_filter": tuple,
            "basic_filter": lambda: (DataCompText(rule="basic"), *self._english()),
            "text_based": lambda: (*self._english(), self._named()),
            "clip_score": self._scored,
            "laion2b": self._laion,
            "image_based": self._image,
            "image_based_intersect_clip_score": lambda: (*self._scored(), *self._image()),
        }
        return baselines[self.filter]()

    def _english(self) -> tuple[Stage, ...]:
        assert self.language_model is not None
        return (
            Language(model=self.language_model, column=LANGUAGE, blank="ask", published=True),
            DataCompLanguage(column=LANGUAGE, model=self.language_model),
        )

    def _named(self) -> Stage:
        assert self.wordnet is not None
        assert self.entities is not None
        return DataCompEntities(wordnet=self.wordnet, entities=self.entities)

    def _scored(self) -> tuple[Stage, ...]:
        assert self.arch is not None
        column = SCORES[self.arch]
        if self.threshold is not None:
            return (Keep(column=column, at_least=self.threshold),)
        assert self.fraction is not None
        return (DataCompTop(column=column, fraction=self.fraction, ties="datacomp", over="all"),)

    def _laion(self) -> tuple[Stage, ...]:
        by = Language(model=GCLD3, column=LAION_LANGUAGE, blank="ask", published=True)
        return (
            Keep(column=SCORES["b32"], at_least=LAION_SCORE),
            by,
            DataCompLanguage(column=LAION_LANGUAGE, model=GCLD3),
        )

    def _image(self) -> tuple[Stage, ...]:
        assert self.centroids is not None
        held = {"resources": self.resources} if "resources" in self.model_fields_set else {}
        nearest = NearestCentroid.model_validate({"centroids": self.centroids, "targets": self.targets, **held})
        return (DataCompText(rule="caption"), *self._english(), nearest, Keep(where="centroid_is_target", named="near_target"))
