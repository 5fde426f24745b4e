"""Processes that tests start do without pandas: PyArrow loads it for its first array where it is installed.

This package asks for no pandas; it comes with other packages of the test environment, and would cost each of a thousand
processes 0.4 s. The process of the tests itself has it, and so do img2dataset, which asks for it, and what img2dataset starts.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType


class NoPandas:
    """Finds a pandas that cannot be loaded; whoever only asks whether there is one is not disturbed."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name == "pandas" else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Make the usual module."""

    def exec_module(self, module: ModuleType) -> None:
        raise ModuleNotFoundError("not in the processes of tests", name=module.__name__)


if any("img2dataset" in word for word in sys.orig_argv):
    os.environ["TESTS_WITH_PANDAS"] = "1"
if "PYTEST_CURRENT_TEST" in os.environ and "TESTS_WITH_PANDAS" not in os.environ:
    sys.meta_path.insert(0, NoPandas())  # type: ignore[arg-type]
