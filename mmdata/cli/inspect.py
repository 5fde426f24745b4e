"""`mmdata inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from mmdata.cli.options import CorpusFolder, corpus_of, say, tell


def command(
    folder: CorpusFolder,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with pictures and histograms to this file", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON")] = False,
) -> None:
    """Print what is in a corpus: splits, kinds, formats, sizes, lengths, scores, sources, licences, the funnel."""
    import json

    from mmdata.report.inspect import inspect_corpus
    from mmdata.report.inspect_text import inspection_text

    found = inspect_corpus(corpus_of(folder))
    say(json.dumps(found.as_json(), indent=1, ensure_ascii=False) if as_json else inspection_text(found))
    if html is not None:
        from mmdata.report.inspect_page import write_inspection

        write_inspection(html, found)
        tell(f"wrote {html}")
