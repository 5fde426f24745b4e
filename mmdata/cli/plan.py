"""`mmdata plan`."""

from mmdata.cli.options import PlanFile, say


def command(plan: PlanFile) -> None:
    """Check PLAN and print its stages, what each reads and writes, and what runs together."""
    from mmdata.plan import load_plan
    from mmdata.report.table import plan_text

    say(plan_text(load_plan(plan)))
