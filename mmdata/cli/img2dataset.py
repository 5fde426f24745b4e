"""`mmdata img2dataset`: img2dataset's own command line.

Decided here: the run folder lies in `_mmdata/` of the output folder, so that the folder's own listing is what img2dataset's
is. Flags are read as img2dataset reads them, by the library that it uses for that.
"""

from typing import Any

import typer

from mmdata.cli.options import Allow, say, tell

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}
_WORDS = {"true": True, "false": False, "none": None}


def command(context: typer.Context, allow: Allow = None) -> None:
    """Download a list of urls with img2dataset's own flags: --url_list, --image_size, --output_folder and all others.

    The same command again resumes. Which flags mean something else here is told before the work starts.
    """
    from mmdata.config import Document, build
    from mmdata.executors import open_executor
    from mmdata.plan.img2dataset import Flags, check
    from mmdata.report.like_img2dataset import Job

    flags = build(Flags, Document("img2dataset", parse(context.args)))
    for line in check(flags):
        tell(line)
    job = Job(flags, tuple(allow or ()))
    executor = "ray" if flags.distributor == "ray" else "processes"
    pool = open_executor(executor, flags.processes_count)
    try:
        result, exported = job.run(pool)
    finally:
        pool.close()
    say(exported.as_text())
    if result.failed:
        tell(f"{len(result.failed)} shards were given up; the same command tries them again. The first:")
        tell("  " + next(iter(result.failed.values())))
        raise typer.Exit(3)


def parse(arguments: list[str]) -> dict[str, Any]:
    """Return flags by name: `--name value`, `--name=value`, `--name` and `--noname`; the first bare word is the list."""
    found: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            found.setdefault("url_list", word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if equals:
            found[name] = value_of(value)
        elif words and not words[0].startswith("--"):
            found[name] = value_of(words.pop(0))
        else:
            found[name.removeprefix("no")] = not name.startswith("no")
    return found


def value_of(text: str) -> Any:  # noqa: ANN401 - whatever a flag holds
    """Return what a word means: a number, a flag, a list in brackets, or itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    from fire.parser import DefaultParseValue

    return float(text) if text.lower() in ("inf", "infinity") else DefaultParseValue(text)
