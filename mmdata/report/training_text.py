"""What a training run has come to, as text for a terminal; the page says the same in its own words."""

from typing import Any

from mmdata.report.inspect_text import grid
from mmdata.report.spread import shown
from mmdata.report.training import Training

Table = tuple[tuple[str, ...], list[tuple[object, ...]]]


def training_text(found: Training) -> str:
    """Return the run, its last evaluation and the last value of all that it logs."""
    now = [(key, shown(curve.last[1]), int(curve.last[0])) for key, curve in found.curves.items() if not key.startswith("val/")]
    parts = ["\n".join(head(found)), grid(*evaluation(found)), grid(("logged", "last", "step"), now)]
    return "\n\n".join(part for part in parts if part)


def head(found: Training) -> list[str]:
    """Return lines: which run, which model, on what, how far."""
    lines = [f"{found.config.get('name', 'a training run')}: {found.home}", *_model(found.config), _size(found), _far(found)]
    if found.unread:
        lines.append(f"caution: {found.unread:,} lines of the log cannot be read and are not shown")
    return [line for line in lines if line]


def evaluation(found: Training) -> Table:
    """Return what was evaluated: its first, best-known and last value, the interval of the last, and over how many items."""
    rows: list[tuple[object, ...]] = []
    for name in found.evaluations():
        curve, interval, num = found.curves[f"val/{name}"], found.interval(name), found.curves.get(f"val/{name}/num")
        ends = "" if interval is None else f"{shown(interval[0])} to {shown(interval[1])}"
        items = "" if num is None else shown(int(num.last[1]))
        rows.append((name, shown(curve.last[1]), ends, items, shown(curve.points[0][1]), f"{curve.last[0]:,.0f}"))
    return ("evaluation", "last", "95 % interval", "items", "first", "step"), rows


def as_json(found: Training) -> dict[str, Any]:
    """Return the same as JSON."""
    return {
        "home": found.home, "config": found.config, "status": found.status, "step": found.step, "lines": found.lines,
        "unread": found.unread, "last": {key: curve.last[1] for key, curve in found.curves.items()},
        "steps": {key: int(curve.last[0]) for key, curve in found.curves.items()},
    }  # fmt: skip


def _model(config: dict[str, Any]) -> list[str]:
    """Return the axes of the config in two lines: what is learnt, and how the model is made."""
    names = (
        ("text", "text.objective"), ("image", "image.objective"), ("made as", "image.repr.gen"), ("read as", "image.repr.und"),
        ("mask", "mask"), ("weights", "params.share"), ("time", "time.cond"),
    )  # fmt: skip
    axes = [f"{word} {value}" for word, key in names if (value := _at(config, key)) is not None]
    sizes = [f"{_at(config, f'model.{key}')} {key}" for key in ("layers", "width", "heads") if _at(config, f"model.{key}")]
    side = _at(config, "image.size")
    made = [*sizes, *([f"images of {side} px"] if side else []), *([f"corpus {config['corpus']}"] if "corpus" in config else [])]
    return [", ".join(axes), ", ".join(made)]


def _size(found: Training) -> str:
    names = (("parameters", "parameters"), ("active_parameters", "active a token"))
    values = ((found.status.get(key), word) for key, word in names)
    return ", ".join(f"{value:,} {word}" for value, word in values if isinstance(value, int))


def _far(found: Training) -> str:
    total = found.status.get("of") or _at(found.config, "optim.steps")
    of = f" of {total:,}" if isinstance(total, int) else ""
    rest = [f"{curve.last[1]:,.0f} {key}" for key in ("samples", "tokens") if (curve := found.curves.get(key)) is not None]
    left = found.status.get("seconds_left")
    if isinstance(left, int | float) and isinstance(total, int) and found.step < total:
        rest.append(f"about {left:,.0f} s left when it last said")
    return ", ".join([f"step {found.step:,}{of}", *rest])


def _at(config: dict[str, Any], key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, str | int | float) else None
