"""Every row of the matrix has its test, and no test claims a row that is none."""

import ast
from pathlib import Path

from tests.fire.matrix import ROWS

HERE = Path(__file__).parent


def claimed() -> set[str]:
    """Return the ids that tests carry as `@pytest.mark.fault(...)`, or as a test's own `pytestmark`."""
    found: set[str] = set()
    for path in (*HERE.glob("test_*.py"), *HERE.parent.glob("loader/test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fault":
                found |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
                if any(isinstance(arg, ast.Starred) for arg in node.args):  # W01 to W11, spelt by their number
                    found |= {f"W{number:02d}" for number in range(1, 12)}
    return found


def test_every_row_has_its_test() -> None:
    assert sorted(set(ROWS) - claimed()) == []


def test_every_claim_is_a_row() -> None:
    assert sorted(claimed() - set(ROWS)) == []
