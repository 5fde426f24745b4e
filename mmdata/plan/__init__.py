"""Plans: what to do, in order, checked before a byte moves."""

from mmdata.plan.plan import Budget, Plan, Segment, load_plan, parse_plan, spell
from mmdata.plan.walk import Step, written

__all__ = ["Budget", "Plan", "Segment", "Step", "load_plan", "parse_plan", "spell", "written"]
