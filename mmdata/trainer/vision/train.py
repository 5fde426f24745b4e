"""One call from a config to a tokenizer's folder: read, fit, measure on the held-out split, write.

Axes: B images, N patches, P numbers in a patch, M tokens, C channels.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmdata.errors import ConfigError, RunError
from mmdata.loader import keyed
from mmdata.shards import Corpus, open_corpus
from mmdata.storage import digest_json
from mmdata.trainer.vision.autoencoders import Autoencoder, KlTokenizer
from mmdata.trainer.vision.base import ImageTokenizer
from mmdata.trainer.vision.clusters import lloyd
from mmdata.trainer.vision.config import KmeansSpec, TokenizerConfig
from mmdata.trainer.vision.fit import Fit
from mmdata.trainer.vision.folder import FACTS, check_vacant, load_tokenizer, make_tokenizer, read_beside, write_tokenizer
from mmdata.trainer.vision.images import all_images, check_images, drawn, next_images, num_images
from mmdata.trainer.vision.measure import Figures, measure
from mmdata.trainer.vision.patches import KmeansTokenizer
from mmdata.trainer.vision.pixels import to_patches, to_unit
from mmdata.trainer.vision.progress import Progress

REPORT, SHEET = "report.json", "samples.png"
MOST_SCALED = 4096  # images that the latents' scale is measured on
_BATCH = 32


@dataclass(frozen=True)
class TokenizerResult:
    """A trained tokenizer's folder, its digest and what it is worth."""

    folder: Path
    digest: str
    figures: Figures


def train_image_tokenizer(config: TokenizerConfig, out: Path) -> TokenizerResult:
    """Train a tokenizer and write it to `out`, with `report.json` and `samples.png` beside it.

    A folder that this config and corpus made already is returned as it is; a training that was stopped goes on from
    `OUT.unfinished`. Raises ConfigError for what is wrong before the start, RunError for a loss that is not finite, memory that
    does not suffice or a disk that is full.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    corpus = open_corpus(config.corpus)
    made_of = digest_json([config.digest, corpus.digest])
    if (out / FACTS).exists():
        return _found(out, made_of)
    check_vacant(out)
    check_images(corpus, config.split)
    job = _Job(config, corpus, _device(config.device), made_of, out.absolute().with_name(f"{out.absolute().name}.unfinished"))
    try:
        tokenizer = job.tokenizer()
    except torch.OutOfMemoryError as error:
        raise RunError("the device's memory does not hold a batch", hint="lower `fit.batch` or `tokenizer.width`") from error
    figures, sheet = measure(tokenizer, job.images(job.measured), job.measured)
    report = {
        "made_of": made_of, "digest": tokenizer.digest, "figures": figures.as_json(), "corpus": corpus.digest,
        "config": config.model_dump(mode="json", exclude={"corpus", "device", "threads"}),
    }  # fmt: skip
    write_tokenizer(tokenizer, out, {REPORT: json.dumps(report, indent=1).encode(), SHEET: sheet})
    job.unfinished.unlink(missing_ok=True)
    return TokenizerResult(out, tokenizer.digest, figures)


def _found(out: Path, made_of: str) -> TokenizerResult:
    tokenizer = load_tokenizer(out)
    report = json.loads(read_beside(out, REPORT))
    if report["made_of"] != made_of:
        raise ConfigError(f"{out}: holds a tokenizer of another config or corpus", hint="use another --out, or remove the folder")
    return TokenizerResult(out, tokenizer.digest, Figures(**report["figures"]))


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("`device: cuda`: torch finds no GPU", hint="set `device: auto`, or install a torch with CUDA")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class _Job:
    """One training: what to make, of what, and where."""

    config: TokenizerConfig
    corpus: Corpus
    device: torch.device
    made_of: str
    unfinished: Path

    @property
    def measured(self) -> str:
        """The held-out split, or the training split where nothing is held out."""
        held_out = self.config.val_split
        return held_out if held_out is not None and num_images(self.corpus, held_out) else self.config.split

    def images(self, split: str) -> Iterator[Tensor]:
        """Yield all images of a split on the device, (B, H, W, 3) uint8."""
        for pixels_BHWC in all_images(self.corpus, split, self.config.size, batch=_BATCH):
            yield pixels_BHWC.to(self.device)

    def tokenizer(self) -> ImageTokenizer:
        """Make the tokenizer and fit it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            tokenizer = make_tokenizer(self.config.tokenizer).to(self.device)
        if isinstance(tokenizer, KmeansTokenizer):
            self._cluster(tokenizer)
        if isinstance(tokenizer, Autoencoder):
            self._train(tokenizer)
        if isinstance(tokenizer, KlTokenizer):
            tokenizer.scale_to(self._tokens(tokenizer))
        return tokenizer.eval()

    def _train(self, tokenizer: Autoencoder) -> None:
        config, fit = self.config, self.config.fit
        with drawn(self.corpus, config.split, config.size, batch=fit.batch, seed=config.seed) as loader:
            Fit(tokenizer, fit, loader, config.seed, self.unfinished, self.made_of).run()

    def _cluster(self, tokenizer: KmeansTokenizer) -> None:
        spec = self.config.tokenizer
        assert isinstance(spec, KmeansSpec)
        progress = Progress(spec.rounds)
        codebook_KP = lloyd(
            self._patches(spec), spec.codes, spec.rounds, keyed(self.config.seed, "k-means"),
            lambda done, error: progress.tell(done, f"mean squared error {error:.5f}"),
        )  # fmt: skip
        tokenizer.codebook_KP.copy_(codebook_KP)

    def _patches(self, spec: KmeansSpec) -> Tensor:
        """Return `num_patches` patches of the training split, an equal number of each image, or all there are; (N, P)."""
        config, each = self.config, (self.config.size // spec.factor) ** 2
        num = check_images(self.corpus, config.split)
        if num * each < spec.codes:
            raise ConfigError(
                f"{self.corpus.store.url}: {num * each:,} patches in `{config.split}`, fewer than {spec.codes:,} `codes`",
                hint="lower `tokenizer.codes` or `tokenizer.factor`, or give a larger corpus",
            )
        taken = min(each, -(-spec.num_patches // num))
        random, parts, found = keyed(config.seed, "patches"), [], 0
        with drawn(self.corpus, config.split, config.size, batch=_BATCH, seed=config.seed) as loader:
            while found < min(spec.num_patches, num * taken):
                for patches_NP in to_patches(to_unit(next_images(loader)), spec.factor):
                    parts.append(patches_NP[torch.from_numpy(random.permutation(each)[:taken])])
                    found += taken
        return torch.cat(parts)[: spec.num_patches].to(self.device)

    def _tokens(self, tokenizer: ImageTokenizer) -> Tensor:
        """Return the tokens of the training split's images, of the first `MOST_SCALED` or so of them; (M, C)."""
        parts, num = [], 0
        for pixels_BHWC in self.images(self.config.split):
            parts.append(tokenizer.encode(pixels_BHWC).flatten(0, 1))
            num += len(pixels_BHWC)
            if num >= MOST_SCALED:
                break
        return torch.cat(parts)
