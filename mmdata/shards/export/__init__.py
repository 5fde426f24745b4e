"""A corpus in the formats of other loaders, each written by that format's own package.

Decided here: an export is made whole or not at all, on a local disk. Every sample is verified as it is read (tars that are
only linked are not read); its texts, its JSON and its media keep their bytes. `mmdata.json` beside the data says which corpus
it is and under which licences.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from mmdata.errors import ConfigError, did_you_mean
from mmdata.shards.corpus import Corpus, open_corpus
from mmdata.shards.counter import Counter, Progress
from mmdata.shards.export.place import finished_folder

# By name, which is also the extra's: the package that writes it.
FORMATS = {"energon": "megatron.energon", "mds": "streaming", "litdata": "litdata", "parquet": "pyarrow.parquet"}
ABOUT = "mmdata.json"

__all__ = ["FORMATS", "Exported", "export_corpus"]


@dataclass(frozen=True)
class Exported:
    """What was written: samples, files, and their bytes."""

    samples: int
    files: int
    bytes: int
    seconds: float


def export_corpus(form: str, url: str, out: str, progress: Progress | None = None) -> Exported:
    """Write a corpus to an empty folder in a format of FORMATS.

    progress   called every 5 s with the samples written and the samples of the corpus

    Raises ConfigError when there is no such format, its package is missing, the corpus is empty or `out` is not; RunError for a
    damaged sample, or what the disk says. Whatever is raised, `out` is then as it was.
    """
    write = _writer(form)
    corpus, started = open_corpus(url), time.monotonic()
    num = corpus.manifest.samples
    if not num:
        raise ConfigError(f"{url}: the corpus has no samples, so there is nothing to export", hint="give another corpus")
    with finished_folder(out) as folder:
        (folder / ABOUT).write_text(json.dumps(_about(corpus, form), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write(corpus, folder, Counter(num, progress))
    sizes = [path.stat().st_size for path in Path(out).rglob("*") if path.is_file()]
    return Exported(num, len(sizes), sum(sizes), time.monotonic() - started)


def _writer(form: str) -> Callable[[Corpus, Path, Counter], None]:
    if form not in FORMATS:
        raise ConfigError(f"no export is called `{form}`", hint=did_you_mean(form, FORMATS))
    try:
        import_module(FORMATS[form])
    except ImportError as error:
        raise ConfigError(
            f"the export `{form}` is written by `{FORMATS[form]}`, which cannot be used here: {error}",
            hint=f"pip install 'mmdata[{form}]'",
        ) from error
    write: Callable[[Corpus, Path, Counter], None] = import_module(f"mmdata.shards.export.{form}").write
    return write


def _about(corpus: Corpus, form: str) -> dict[str, object]:
    facts = {name: corpus.facts.get(name) for name in ("plan", "generation", "samples", "splits", "licences", "columns")}
    return {"format": form, "corpus": corpus.digest, **facts}
