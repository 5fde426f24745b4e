"""`mmdata schema`."""

import json
from typing import Annotated

import typer

from mmdata.cli.options import say


def command(
    what: Annotated[str, typer.Argument(help="plan, train or catalog")] = "plan",
) -> None:
    """Print the JSON Schema of plans, training configs or catalogs, for editors."""
    from mmdata.report.schema import json_schema

    say(json.dumps(json_schema(what), indent=1))
