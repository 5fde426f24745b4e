"""The public names are those that are listed; what is promised of the package's files holds."""

import importlib
import pkgutil
import re
from pathlib import Path

import mmdata
from mmdata.errors import ConfigError, MmdataError, RecordError

ROOT = Path(__file__).parent.parent


def test_every_listed_name_is_there_and_no_other() -> None:
    for name in mmdata.__all__:
        assert getattr(mmdata, name).__doc__
    submodules = {module.name for module in pkgutil.iter_modules(mmdata.__path__)}
    public = {name for name in vars(mmdata) if not name.startswith("_")} - submodules
    assert public <= set(mmdata.__all__) | {"import_module", "TYPE_CHECKING"}


def test_every_module_says_what_it_decides() -> None:
    for module in pkgutil.walk_packages(mmdata.__path__, "mmdata."):
        if module.name.endswith(("jail_child", "executors.ray")):
            continue
        assert importlib.import_module(module.name).__doc__, module.name


def test_errors_cross_processes_whole() -> None:
    import pickle

    error: MmdataError = RecordError("bad", outcome="tls", hint="look")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, RecordError)
    assert (again.message, again.hint, again.outcome) == ("bad", "look", "tls")
    assert str(ConfigError("what", hint="do")) == "what\n  hint: do"


def test_no_file_of_ours_unpickles() -> None:
    for path in (ROOT / "mmdata").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "pickle" not in text.replace("unpickled", "").replace("allow_pickle=False", ""), path
        assert "torch.load" not in re.sub(r"torch\.load\([^()]*, weights_only=True\)", "", text), path
