"""Mistakes in YAML are reported as file:line, what, and a hint."""

from pathlib import Path

import pytest

from mmdata.config import parse_yaml, read_yaml
from mmdata.errors import ConfigError
from mmdata.plan import parse_plan

GOOD = """\
name: small
source:
  catalog: {file: mmdata/demo/data/catalog.yaml, entry: pairs}
stages:
  - download: {image_size: 64}
  - measure
  - keep: {column: width, at_least: 10}
sink:
  shards: {samples: 10}
"""


def test_scalars_follow_yaml_1_2() -> None:
    text = "a: 3e-4\nb: on\nc: no\nd: 0o7\ne: 12\nf: null\ng: '5'\nh: 1_000\ni: true\n"
    assert parse_yaml(text, "x").value == {
        "a": 3e-4, "b": "on", "c": "no", "d": "0o7", "e": 12, "f": None, "g": "5", "h": "1_000", "i": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image_size: 64", "image_sise: 64", r"plan.yaml:5: `download` has no key `image_sise`[\s\S]*did you mean `image_size`"),
        ("{image_size: 64}", "{image_size: big}", r"plan.yaml:5: `image_size`: .*integer.* not 'big'"),
        ("{image_size: 64}", "{image_size: 2}", r"plan.yaml:5: `image_size`: .*greater than or equal to 8"),
        ("{image_size: 64}", "{}", r"plan.yaml:5: `image_size` is required"),
        ("- measure", "- mesure", r"plan.yaml:6: no stage is called `mesure`[\s\S]*did you mean `measure`"),
        ("column: width", "column: widht", r"plan.yaml:7: `keep` reads `widht`, which nothing before it writes[\s\S]*`width`"),
        ("column: width", "column: url", r"plan.yaml:7: `keep` needs numbers, but `url` is string"),
        ("at_least: 10", "at_least: 10, at_most: 5", r"plan.yaml:7: .*`at_least` is above `at_most`"),
        ("- measure", "- measure\n  - measure", r"plan.yaml:7: `measure` writes `width`, which is there already"),
        ("  - download: {image_size: 64}\n", "", r"plan.yaml:5: `measure` reads `payload`.*[\s\S]*add `download`"),
        ("samples: 10", "samples: 10, splits: {train: 0.5}", r"plan.yaml:9: `splits`: .*cannot name a split"),
        ("entry: pairs", "entry: pears", r"catalog.yaml: no entry is called `pears`[\s\S]*did you mean `pairs`"),
        ("name: small", "nam: small", r"plan.yaml:1: a plan has no key `nam`[\s\S]*did you mean `name`"),
        ("- measure", "- measure: [1]", r"plan.yaml:6: `measure` must be a mapping, not a list"),
    ],
)  # fmt: skip
def test_mistakes_name_their_line(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=message):
        parse_plan(parse_yaml(GOOD.replace(old, new), "plan.yaml")).check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['touch marker']", r"x:1: the tag `tag:yaml.org,2002:python.*` is refused"),
        ("a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
         "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]", r"expands to more than 100,000 nodes"),
        ("a: 1\na: 2", r"x:2: `a` is given twice"),
        ("a: [1, 2", r"x:1: not valid YAML"),
        ("a: {<<: {b: 1}}", r"x:1: merge keys are not YAML 1.2"),
    ],
)  # fmt: skip
def test_hostile_yaml_is_refused(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, "x")
    assert not (tmp_path / "marker").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such file"):
        read_yaml(tmp_path / "nowhere.yaml")
