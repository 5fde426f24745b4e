"""Files that others published and rules depend on: what each is called, its SHA-256, and where it is to be had.

Decided here: a file that bears a published name must be that file, or it is refused. Under another name it is somebody's own,
and whoever uses it says so (`Asset.published`).
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmdata.errors import ConfigError
from mmdata.storage import digest_file

_FASTTEXT = "fastText's language identification page, https://fasttext.cc/docs/en/language-identification.html"
_DATACOMP = "release v0.1.0-alpha of https://github.com/sagadre/datacomp_baseline_assets"

# By name: SHA-256, and where it comes from.
PUBLISHED: dict[str, tuple[str, str]] = {
    "lid.176.bin": ("7e69ec5451bc261cc7844e49e4792a85d7f09c06789ec800fc4a44aec362764e", _FASTTEXT),
    "lid.176.ftz": ("8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83", _FASTTEXT),
    "imagenet21k_wordnet_ids.txt": ("66362bdedf36d933382edca5493fc562dcc17128ce36403c9e730a75f48cb2f2", _DATACOMP),
    "in1k_clip_vit_l14_0.pt": ("304990fd492f40ba90072b80af78d6e8edcab9d042476ef513e03441cf53743b", _DATACOMP),
    "in1k_clip_vit_l14_1.pt": ("72f008e6aa3bfb54174fa322963215337f843fc90fd642a9dccc815dd9e7ee76", _DATACOMP),
    "in1k_clip_vit_l14_2.pt": ("83c3cc6503b8a50a22cac7023ca6cd61b130ab9725db2a7519f1bec5cabf5493", _DATACOMP),
    "in1k_clip_vit_l14_3.pt": ("83faa289f847799ddcd438e5b74df1cb5973c345674896d10ba31ea48bc63804", _DATACOMP),
    "in1k_clip_vit_l14_4.pt": ("067a45f4a140a93371876510a2fd9198a89ac1d194ae4063a51b45a6da69cadf", _DATACOMP),
    "small_centroids_l14.pt": ("23c66a05e49ad77283c1e2b33355c7eb088ac332a944c97ff85d5dfd48a5b251", _DATACOMP),
    "medium_centroids_l14.pt": ("028b1721b1d0f139c565b6b0ac99f8a1756f4bae89c36b0ec6d1c6ea9b6f112d", _DATACOMP),
    "large_centroids_l14.pt": ("04eeab1069d3540c246cf7ce69323147351a474017fc472e4c50a018ca32240b", _DATACOMP),
    "xlarge_centroids_l14.pt": ("3f62e5f8ae3a715ce84e422846fcfce1536d184455ea234790c4a6465c4c6726", _DATACOMP),
}


@dataclass(frozen=True)
class Asset:
    """A file at hand; `published` says that it is the one of that name that others use."""

    path: Path
    sha256: str
    published: bool


def asset_of(path: Path) -> Asset:
    """Return a file with its digest; raise ConfigError when it is missing, or is not what its name says."""
    known = PUBLISHED.get(path.name)
    try:
        stat = path.stat()
        digest = _digest(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    except OSError as error:
        hint = f"get it from {known[1]}" if known else "paths are relative to where the command runs"
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", hint=hint) from error
    if known is not None and digest != known[0]:
        raise ConfigError(
            f"{path}: its SHA-256 is {digest}, but that of the published file is {known[0]}",
            hint=f"get it again from {known[1]}; a file of your own needs a name of its own",
        )
    return Asset(path, digest, known is not None)


@lru_cache(maxsize=64)
def _digest(path: Path, _size: int, _time_ns: int, _inode: int) -> str:
    return digest_file(path)
