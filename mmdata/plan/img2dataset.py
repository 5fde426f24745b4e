"""img2dataset's command line as a plan: every flag is honoured, told to mean less here, or refused with the reason.

Decided here: names and defaults are img2dataset's; what they become is one table a flag. A flag that would change the images
or the rows and cannot be honoured is refused; one that only changes how the work is done is told of and passed over.
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from mmdata.config import Document, Model, build
from mmdata.errors import ConfigError
from mmdata.plan.plan import Plan
from mmdata.shards.img2dataset import RESERVED, Layout
from mmdata.stages.download import Download
from mmdata.stages.url_list import InputFormat, UrlList

_FILTERS = {"bilinear": "linear", "bicubic": "cubic", "lanczos4": "lanczos"}
_DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
# Whether the download itself checks hashes; without that the export does, and knows SHA-256 alone.
_CHECKS = "verify_hash" in Download.model_fields
# Flags of how images are made that the download stage takes by the same name.
_IMAGE_FLAGS = (
    "image_size", "resize_mode", "resize_only_if_bigger", "encode_quality", "encode_format", "skip_reencode",
    "disable_all_reencoding", "min_image_size", "max_image_area", "max_aspect_ratio",
)  # fmt: skip


class Flags(Model):
    """The flags of `img2dataset`, with their defaults."""

    url_list: str
    image_size: int = 256
    output_folder: str = "images"
    processes_count: int = Field(default=1, ge=1)
    resize_mode: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "border"
    resize_only_if_bigger: bool = False
    upscale_interpolation: str = "lanczos"
    downscale_interpolation: str = "area"
    encode_quality: int = 95
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    skip_reencode: bool = False
    output_format: Literal["files", "webdataset", "parquet", "tfrecord", "dummy"] = "files"
    input_format: InputFormat = "txt"
    url_col: str = "url"
    caption_col: str | None = None
    bbox_col: str | None = None
    thread_count: int = Field(default=256, ge=1)
    number_sample_per_shard: int = Field(default=10_000, ge=1)
    extract_exif: bool = True
    save_additional_columns: tuple[str, ...] | None = None
    timeout: float = Field(default=10, gt=0)
    enable_wandb: bool = False
    wandb_project: str = "img2dataset"
    oom_shard_count: int = Field(default=5, ge=1)
    compute_hash: Literal["md5", "sha256", "sha512"] | None = "sha256"
    verify_hash: tuple[str, str] | None = None
    distributor: Literal["multiprocessing", "pyspark", "ray"] = "multiprocessing"
    subjob_size: int = 1000
    retries: int = Field(default=0, ge=0)
    disable_all_reencoding: bool = False
    min_image_size: int = 0
    max_image_area: float | None = None
    max_aspect_ratio: float | None = None
    incremental_mode: Literal["incremental", "overwrite", "extend"] = "incremental"
    max_shard_retry: int = 1
    user_agent_token: str | None = None
    disallowed_header_directives: tuple[str, ...] | None = None

    @field_validator("max_image_area", "max_aspect_ratio", mode="before")
    @classmethod
    def _no_limit(cls, value: object) -> object:
        return None if value == float("inf") else value

    @field_validator("save_additional_columns")
    @classmethod
    def _own_columns(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if name in RESERVED:
                raise ValueError(f"`{name}` is a column that the layout itself has")
        return names

    @property
    def layout(self) -> Layout:
        """The layout that is written."""
        fields = ("output_format", "encode_format", "oom_shard_count", "extract_exif", "compute_hash")
        return Layout.model_validate({name: getattr(self, name) for name in fields})

    @property
    def columns(self) -> dict[str, str]:
        """What stands before `url` in every row: names in the run and names in the layout, in img2dataset's order."""
        boxes = [self.bbox_col] if self.bbox_col is not None else []  # kept too, as there
        own = {name: name for name in (*(self.save_additional_columns or ()), *boxes)}
        caption = {"text": "caption"} if self.caption_col is not None else {}
        return own | caption | ({self.verify_hash[0]: self.verify_hash[1]} if self.verify_hash else {})

    def changed(self) -> dict[str, Any]:
        """Return the flags that differ from their defaults."""
        return self.model_dump(exclude_defaults=True)


# Flags that cannot be honoured, and what to do instead. The condition is on the flags.
_REFUSED: tuple[tuple[str, Any, str, str], ...] = (
    ("output_format", ("tfrecord",), "TFRecord files are not written", "write `webdataset`, `files` or `parquet`"),
    ("output_format", ("dummy",), "a download that stores nothing is not made", "measure with `--output_format webdataset`"),
    ("distributor", ("pyspark",), "there is no Spark executor", "`--distributor ray` runs on a Ray cluster"),
)  # fmt: skip
# Flags that mean nothing here; they change no result.
_PASSED_OVER: dict[str, str] = {
    "enable_wandb": "nothing is sent to Weights & Biases; `mmdata status` and `mmdata run --metrics` show the progress",
    "wandb_project": "nothing is sent to Weights & Biases",
    "subjob_size": "tasks are given out one by one",
    "max_shard_retry": "a failed task is tried again as often as the scheduler always does",
    "user_agent_token": "it is sent as the contact in our own user agent, `mmdata`, which X-Robots-Tag and robots.txt go by",
}


def check(flags: Flags) -> list[str]:
    """Return what to tell of flags that mean less here; raise ConfigError, with the reason, for what cannot be honoured."""
    for name, values, why, instead in _REFUSED:
        if getattr(flags, name) in values:
            raise ConfigError(f"--{name} {getattr(flags, name)}: {why}", hint=instead)
    _check_hash(flags)
    if "://" in flags.url_list:
        raise ConfigError(f"--url_list {flags.url_list}: lists are read from a local disk", hint="copy it here")
    for word in flags.disallowed_header_directives or ():
        if word not in _DIRECTIVES:
            raise ConfigError(
                f"--disallowed_header_directives: `{word}` is not looked for", hint=f"known: {', '.join(_DIRECTIVES)}"
            )
    told = [f"--{name}: {why}" for name, why in _PASSED_OVER.items() if name in flags.changed()]
    told += [f"--disallowed_header_directives: `{word}` is not obeyed; the manifest says so" for word in _switched_off(flags)]
    every = "every other opt-out" if _switched_off(flags) else "every opt-out"
    return [*told, f"robots.txt and {every} are obeyed, and hosts are asked politely; img2dataset does neither"]


def _switched_off(flags: Flags) -> list[str]:
    """Return the directives that a user took off the list, by leaving them out."""
    given = flags.disallowed_header_directives
    return [] if given is None else [word for word in _DIRECTIVES if word not in given]


def _check_hash(flags: Flags) -> None:
    """Refuse a hash that nobody works out. One that the list holds and the download checks is known without that."""
    if flags.verify_hash is not None and flags.verify_hash[1] != flags.compute_hash:
        raise ConfigError(
            f"--verify_hash {flags.verify_hash[1]}: not the hash of --compute_hash", hint="img2dataset asks for both"
        )
    if flags.compute_hash in ("md5", "sha512") and (flags.verify_hash is None or not _CHECKS):
        raise ConfigError(
            f"--compute_hash {flags.compute_hash}: the run records SHA-256 of what was downloaded, no other hash",
            hint="leave it at sha256, give None, or check it against a column of the list with --verify_hash",
        )


def plan_of(flags: Flags) -> Plan:
    """Return the plan that the flags ask for; raise ConfigError for what the download stage cannot do."""
    columns = [*(flags.save_additional_columns or ()), *([flags.verify_hash[0]] if flags.verify_hash else [])]
    boxes = (flags.bbox_col,) if flags.bbox_col is not None else ()
    source = UrlList(
        path=flags.url_list, format=flags.input_format, url=flags.url_col, caption=flags.caption_col,
        columns=tuple(name for name in columns if name not in boxes), boxes=boxes, partition_rows=flags.number_sample_per_shard,
    )  # fmt: skip
    plan = Plan(name="img2dataset", source=(source,), stages=(build(Download, Document("img2dataset", _download(flags))),))
    plan.check()
    return plan


def _download(flags: Flags) -> dict[str, Any]:
    """Return the fields of the download stage."""
    asked = flags.changed()
    always = ("image_size", "resize_mode", "resize_only_if_bigger", "encode_quality", "encode_format")
    fields = {name: getattr(flags, name) for name in _IMAGE_FLAGS if name in always or name in asked}
    if flags.encode_format == "png" and "encode_quality" not in asked:
        del fields["encode_quality"]  # for png it says how hard to compress, and has a default of its own
    if flags.verify_hash is not None and _CHECKS:
        fields["verify_hash"] = dict(zip(("column", "kind"), flags.verify_hash, strict=True))
    for name in fields:
        if name not in Download.model_fields:
            raise ConfigError(f"--{name}: the download stage cannot do this", hint="`engine: img2dataset` in a plan can")
    for name in ("upscale_interpolation", "downscale_interpolation"):
        fields[name] = _FILTERS.get(getattr(flags, name).lower(), getattr(flags, name).lower())
    seconds = min(flags.timeout, 3600)
    limits = {"connect_s": seconds, "headers_s": seconds, "idle_s": seconds, "retries": min(flags.retries, 10)}
    contact = {"contact": flags.user_agent_token} if flags.user_agent_token else {}
    fields |= {"bbox_col": flags.bbox_col} if flags.bbox_col is not None else {}
    fields |= {"signals": dict.fromkeys(off, False)} if (off := _switched_off(flags)) else {}
    return {**fields, "limits": limits, "connections": min(flags.thread_count, 4096), **contact}
