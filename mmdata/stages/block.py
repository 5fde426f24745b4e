"""Drop rows that lists name: by url, by domain, by what their text says."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from mmdata.errors import ConfigError
from mmdata.stages.deny import Deny, DenyLists, entries_of, list_file
from mmdata.stages.hosts import each_host, hosts_of
from mmdata.stages.verbs import QUICK, Batch, Filter, FilterFn, Resources, WorkerContext, first_reason
from mmdata.storage import digest_file

if TYPE_CHECKING:
    import polars as pl


class Block(Filter):
    """Drop rows whose url, domain or text is on a list: text files, one entry a line; `#` begins a comment.

    urls     whole urls             domains  names; their sub-domains are meant too
    phrases  texts, looked for in `text` in lower case
    match    `words`: a phrase must stand between other characters than letters, digits and marks, of which any run counts
             as one space. `anywhere`: also within a word, as languages without spaces need it

    `deny` of `download` is asked before anything is fetched, and follows redirects; these lists judge rows that are there.
    """

    name: ClassVar[str] = "block"
    cheap: ClassVar[bool] = True
    not_in_key: ClassVar[set[str]] = {"resources", "urls", "domains", "phrases"}  # what they hold is: `inputs`

    resources: Resources = QUICK
    urls: str | None = None
    domains: str | None = None
    phrases: str | None = None
    match: Literal["words", "anywhere"] = "words"

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.urls is None and self.domains is None and self.phrases is None:
            raise ValueError("give `urls`, `domains` or `phrases`, each the path of a list")
        return self

    def reads(self) -> tuple[str, ...]:
        """Read what the lists are about."""
        url = ("url",) if self.urls is not None or self.domains is not None else ()
        return (*url, *(("text",) if self.phrases is not None else ()))

    def reasons(self) -> tuple[str, ...]:
        """Return one reason a list."""
        lists = {"url": self.urls, "domain": self.domains, "phrase": self.phrases}
        return tuple(f"{kind}_blocked" for kind, path in lists.items() if path is not None)

    def inputs(self) -> tuple[str, ...]:
        """Return the SHA-256 of every list, by its kind."""
        lists = {"urls": self.urls, "domains": self.domains, "phrases": self.phrases}
        return tuple(f"{kind} {digest_file(_path(path))}" for kind, path in lists.items() if path is not None)

    def check(self, fields: dict[str, pa.Field]) -> None:
        """Refuse lists that are not there or hold nothing to look for."""
        for path in (self.urls, self.domains, self.phrases):
            if path is not None and not entries_of(str(_path(path))):
                raise ConfigError(f"block list {path}: it holds no entry", hint="one entry a line; `#` begins a comment")
        if self.phrases is not None:
            _phrases(self.phrases, self.match, "")

    def located(self, home: Path) -> "Block":
        """Return itself with absolute paths."""
        paths = {name: getattr(self, name) for name in ("urls", "domains", "phrases")}
        return self.model_copy(update={name: str(home / path) for name, path in paths.items() if path is not None})

    def open(self, ctx: WorkerContext) -> FilterFn:
        """Read the lists and return the judging function."""
        lists = Deny(urls=self.urls, domains=self.domains).open()
        phrases = () if self.phrases is None else _phrases(self.phrases, self.match, digest_file(_path(self.phrases)))
        urls = pa.array(sorted(lists.urls), pa.string())
        return lambda batch: self._judge(batch, lists, urls, phrases)

    def _judge(self, batch: Batch, lists: DenyLists, urls: pa.Array, phrases: tuple[str, ...]) -> pa.Table:
        table, rules = batch.table, []
        if self.urls is not None:
            rules.append(("url_blocked", pc.is_in(table.column("url"), urls).to_numpy()))
        if self.domains is not None:
            said = each_host(hosts_of(table.column("url")), lambda host: host if lists.lists_host(host) else None)
            rules.append(("domain_blocked", said.is_valid().to_numpy(zero_copy_only=False)))
        if self.phrases is not None:
            rules.append(("phrase_blocked", _says(table.column("text"), phrases, self.match)))
        num = table.num_rows
        return pa.table({"reason": first_reason(rules, num), "value": pa.nulls(num, pa.float32())})


def _path(name: str) -> Path:
    return list_file("block list", name)


@lru_cache(maxsize=4)
def _phrases(path: str, match: str, _digest: str) -> tuple[str, ...]:
    """Return what is looked for, in the form in which texts are looked through."""
    import polars as pl

    entries = entries_of(path)
    plain = _plain(pl.Series([entry for _, entry in entries], dtype=pl.String), match)
    for (line, entry), form in zip(entries, plain, strict=True):
        if not form.strip():
            raise ConfigError(f"{path}:{line}: `{entry}` holds no letter or digit", hint="`match: anywhere` looks for any text")
    return tuple(sorted(set(plain)))


def _plain(texts: "pl.Series", match: str) -> "pl.Series":
    lower = texts.str.to_lowercase()
    if match == "anywhere":
        return lower
    return " " + lower.str.replace_all(r"[^\p{L}\p{N}\p{M}]+", " ").str.strip_chars(" ") + " "


def _says(texts: pa.ChunkedArray, phrases: tuple[str, ...], match: str) -> np.ndarray:
    import polars as pl

    plain = _plain(pl.Series(pl.from_arrow(texts.combine_chunks())), match)
    found: np.ndarray = plain.str.contains_any(list(phrases)).fill_null(False).to_numpy()
    return found
