"""The entry point: commands by name, errors for people, exit codes that tell the truth.

0 done · 1 the run stopped · 2 nothing was started because something asked for is wrong · 130 interrupted
"""

import sys

import typer

from mmdata.cli import demo, explain, plan, run, sample, schema, status, train
from mmdata.errors import MmdataError, printable

app = typer.Typer(
    name="mmdata",
    help="From dataset catalogs to multimodal pretraining corpora, and from those to a trained model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (run, plan, status, explain, train, sample, demo, schema):
    app.command(module.__name__.rsplit(".", 1)[-1])(module.command)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except MmdataError as error:
        sys.stderr.write(printable(f"error: {error}\n"))
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command resumes\n")
        raise SystemExit(130) from None
