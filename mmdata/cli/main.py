"""The entry point: commands by name, errors for people, exit codes that tell the truth.

0 done · 1 the run stopped · 2 nothing was started because something asked for is wrong · 3 done, but partitions were given
up within the budget · 4 another run holds the folder · 130 interrupted · 143 terminated
"""

import signal
import sys
from types import FrameType

import typer

from mmdata.cli import (
    atlas,
    demo,
    duplicates,
    explain,
    export,
    failures,
    gc,
    img2dataset,
    index,
    inspect,
    plan,
    reference,
    reshard,
    retry,
    run,
    sample,
    schema,
    status,
    sweep,
    tokenizer,
    train,
    train_report,
    verify,
)
from mmdata.errors import MmdataError, printable

app = typer.Typer(
    name="mmdata",
    help="From dataset catalogs to multimodal pretraining corpora, and from those to a trained model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (
    run,
    plan,
    status,
    explain,
    failures,
    duplicates,
    reference,
    sweep,
    retry,
    index,
    verify,
    inspect,
    reshard,
    export,
    gc,
    train,
    train_report,
    atlas,
    sample,
    demo,
    schema,
):
    app.command(module.__name__.rsplit(".", 1)[-1].replace("_", "-"))(module.command)
app.add_typer(tokenizer.app, name="tokenizer")
app.command("img2dataset", context_settings=img2dataset.CONTEXT)(img2dataset.command)


class Stopped(BaseException):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, _frame: FrameType | None) -> None:
    raise Stopped(number)


def main() -> None:
    """Run the command line. Ctrl-C and SIGTERM let workers end and say how to go on; a second one does not wait."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except MmdataError as error:
        sys.stderr.write(printable(f"error: {error}\n"))
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None
    except Stopped as stopped:
        for number in (signal.SIGINT, signal.SIGTERM):  # one more while the interpreter ends must not change the exit code
            signal.signal(number, signal.SIG_IGN)
        word = "interrupted" if stopped.number == signal.SIGINT else "terminated"
        sys.stderr.write(f"\n{word}; what is done is kept, and the same command goes on from there\n")
        raise SystemExit(128 + stopped.number) from None
