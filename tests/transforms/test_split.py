import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import RecipeError
from penstock.transforms.split import Split


def sides(texts, by="t", **options):
    transform = Split(Split.Options(by=(by,), **options))
    return transform(pa.table({"t": pa.array(texts, pa.string())})).kept["split"].to_pylist()


TEXTS = [f"row {i}" for i in range(20_000)]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.999])
def test_the_share_of_validation_rows_is_what_was_asked_for(share):
    found = sides(TEXTS, validation=share).count("validation") / len(TEXTS)
    # Four standard errors of a share over 20,000 draws.
    assert abs(found - share) <= 4 * (share * (1 - share) / len(TEXTS)) ** 0.5


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), max_size=40))
def test_a_group_is_never_on_both_sides(groups):
    side_of = {}
    for group, side in zip(groups, sides(groups, validation=0.5), strict=True):
        assert side_of.setdefault(group, side) == side


@settings(deadline=None)
@given(st.lists(st.text(max_size=3), max_size=20), st.lists(st.text(max_size=3), max_size=20))
def test_a_row_keeps_its_side_when_others_arrive(old, new):
    assert sides(old + new, validation=0.5)[: len(old)] == sides(old, validation=0.5)


def test_a_larger_share_only_takes_rows_from_training():
    small, large = sides(TEXTS, validation=0.1), sides(TEXTS, validation=0.2)
    assert all(b == "validation" for a, b in zip(small, large, strict=True) if a == "validation")


def test_another_seed_divides_otherwise():
    assert sides(TEXTS, validation=0.5, seed=1) != sides(TEXTS, validation=0.5, seed=2)


def test_sides_never_change_between_versions_of_penstock_or_its_libraries():
    letters = "".join(side[0] for side in sides(TEXTS[:24], validation=0.5))
    assert letters == "vtvvtvtvtttvttvvtttvtvvt"


def test_no_rows_still_have_the_column():
    assert sides([]) == []


def test_a_column_named_split_is_not_overwritten():
    with pytest.raises(RecipeError, match="have a column 'split' already"):
        Split(Split.Options(by=("split",)))(pa.table({"split": ["test"]}))


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_leaves_nothing_to_train_on_is_refused(share):
    with pytest.raises(ValueError, match="validation"):
        Split.Options(validation=share)
