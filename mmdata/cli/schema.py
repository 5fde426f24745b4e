"""`mmdata schema`."""

import json
from typing import Annotated

import typer

from mmdata.cli.options import say


def command(
    what: Annotated[str, typer.Argument(help="plan, train or catalog")] = "plan",
) -> None:
    """Print the JSON Schema of plans, training configs or catalogs, for editors."""
    if what == "train":
        from mmdata.trainer.config import TrainConfig

        found = TrainConfig.model_json_schema()
    else:
        from mmdata.report.schema import json_schema

        found = json_schema(what)
    say(json.dumps(found, indent=1))
