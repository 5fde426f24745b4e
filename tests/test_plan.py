"""Plans: what runs together, what equals what, and that every shipped one is sound."""

import pickle
from pathlib import Path

import pytest

from mmdata.config import parse_yaml, read_yaml
from mmdata.engine.keys import plan_keys
from mmdata.plan import Plan, load_plan, parse_plan
from mmdata.stages import named
from mmdata.stages.clip_score import ClipScore
from mmdata.stages.download import Download
from mmdata.stages.keep import Keep
from mmdata.stages.measure import Measure
from mmdata.stages.shards import Shards
from mmdata.stages.sources import Catalog
from mmdata.stages.verbs import Resources, Stage
from tests.test_config import GOOD

ROOT = Path(__file__).parent.parent


def test_python_equals_yaml() -> None:
    written = Plan(
        name="small",
        source=(Catalog(file="mmdata/demo/data/catalog.yaml", entry="pairs"),),
        stages=(Download(image_size=64), Measure(), Keep(column="width", at_least=10)),
        sink=Shards(samples=10),
    )
    read = parse_plan(parse_yaml(GOOD, "plan.yaml"))
    assert written == read
    assert written.digest == read.digest
    assert Plan.from_json(written.to_json()) == written


def test_definitions_pickle_compare_and_digest() -> None:
    plan = parse_plan(parse_yaml(GOOD, "plan.yaml"))
    _ = plan.segments
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan
    assert again.digest == plan.digest
    other = parse_plan(parse_yaml(GOOD.replace("at_least: 10", "at_least: 11"), "plan.yaml"))
    assert other != plan
    assert other.digest != plan.digest


def test_segments_are_cut_at_downloads_models_and_global_filters() -> None:
    plan = load_plan(ROOT / "pipelines/demo.yaml", base=ROOT)
    labels = [segment.label for segment in plan.segments]
    assert labels == ["split_captions", "download", "measure + text_rules", "clip_score", "keep", "dedupe"]
    assert [segment.holds_model for segment in plan.segments] == [False, False, False, True, False, False]


def test_keys_cover_what_was_asked_and_nothing_else() -> None:
    base = parse_plan(parse_yaml(GOOD, "plan.yaml"))
    keys = plan_keys(base)
    threshold = plan_keys(parse_plan(parse_yaml(GOOD.replace("at_least: 10", "at_least: 99"), "x")))
    assert (keys[-1], keys[0], keys[1]) == (threshold[-1], threshold[0], threshold[1])
    assert keys[2] != threshold[2]
    size = plan_keys(parse_plan(parse_yaml(GOOD.replace("image_size: 64", "image_size: 65"), "x")))
    assert size[-1] == keys[-1]
    assert all(size[index] != keys[index] for index in range(3))  # what reads the payload follows it


def test_resources_are_in_no_key() -> None:
    def keys(stage: Stage) -> dict[int, str]:
        source = Catalog(file="mmdata/demo/data/catalog.yaml", entry="pairs")
        return plan_keys(Plan(name="x", source=(source,), stages=(stage,)))

    assert keys(Download(image_size=64)) == keys(Download(image_size=64, resources=Resources(cpus=4)))


def test_weights_are_in_the_key() -> None:
    assert ClipScore().weights()
    assert ClipScore.model_validate({"scorer": {"fake": True}}).weights() == ()


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda path: path.name)
def test_every_pipeline_is_sound(path: Path) -> None:
    parse_plan(read_yaml(path), ROOT)


def test_every_stage_has_its_name_in_the_one_table() -> None:
    own = [
        "against", "block", "cap", "clip_score", "datacomp", "datacomp_entities", "datacomp_language", "datacomp_text",
        "datacomp_top", "decontaminate", "dedupe", "document_quality", "download", "download_img2dataset", "fingerprint",
        "keep", "language", "match_texts", "measure", "nearest_centroid", "sample", "score", "split_captions",
        "text_quality", "text_rules", "text_statistics", "top",
    ]  # fmt: skip
    plugin = ["trap", "trap_filter", "trap_split"]  # of another package: tests/fire/plugin
    assert sorted(named(Stage)) == sorted(own + plugin)
