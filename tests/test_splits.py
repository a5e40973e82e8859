"""A split never shares an initial condition, and statistics do not depend on how the data was cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.raw import SPLITS
from ups_data.errors import UpsDataError
from ups_data.params import Splits
from ups_data.splits import assign_splits, group_id, leaked_share, positional_splits


@given(st.lists(st.integers(0, 40), min_size=50, max_size=200).filter(lambda g: len(set(g)) >= 3), st.integers(0, 9))
def test_a_group_is_never_divided_and_every_split_is_filled(rows, seed):
    groups = [f"{g:032x}" for g in rows]
    splits = SPLITS.model_copy(update={"seed": seed})
    assigned = assign_splits(groups, splits)
    names = [assigned[g] for g in groups]
    assert set(names) == {"train", "val", "test"}
    assert leaked_share(groups, names) == 0
    assert assigned == assign_splits(groups[::-1], splits), "the order of the rows must not matter"


def test_the_shares_are_exact():
    assigned = assign_splits([f"{i:032x}" for i in range(10_000)], SPLITS)
    counts = {name: list(assigned.values()).count(name) for name in ("train", "val", "test")}
    assert counts == {"train": 8000, "val": 1000, "test": 1000}


def test_another_seed_is_another_split():
    groups = [f"{i:032x}" for i in range(100)]
    assert assign_splits(groups, SPLITS) != assign_splits(groups, SPLITS.model_copy(update={"seed": 1}))


def test_too_few_initial_conditions_are_refused():
    with pytest.raises(UpsDataError, match="2 distinct initial conditions cannot fill train, val, test"):
        assign_splits(["a", "b", "a"], SPLITS)


def test_a_share_of_zero_gets_nothing():
    splits = Splits(protocol="grouped", seed=0, train=0.5, val=0.0, test=0.5)
    assert set(assign_splits(["a", "b", "c"], splits).values()) == {"train", "test"}


HASHED = SPLITS.model_copy(update={"protocol": "hashed"})


def test_hashed_tasks_agree_on_every_initial_condition_they_share():
    groups = [f"{i:032x}" for i in range(3000)]
    one, other = assign_splits(groups[:2000], HASHED), assign_splits(groups[1000:], HASHED)
    assert all(one[group] == other[group] for group in groups[1000:2000])
    by_count = [assign_splits(part, SPLITS) for part in (groups[:2000], groups[1000:])]
    assert any(by_count[0][group] != by_count[1][group] for group in groups[1000:2000]), "counts alone do not"


def test_hashed_shares_are_met_on_average():
    assigned = list(assign_splits([f"{i:032x}" for i in range(10_000)], HASHED).values())
    for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert abs(assigned.count(name) / 10_000 - share) < 4 * (share * (1 - share) / 10_000) ** 0.5


def test_a_hashed_split_without_a_sample_is_a_sentence_and_a_share_of_zero_gets_none():
    groups = [f"{i:032x}" for i in range(3)]
    with pytest.raises(UpsDataError, match=r"none of the 3 initial conditions falls into .* by its hash"):
        assign_splits(groups, HASHED)
    halves = Splits(protocol="hashed", seed=0, train=0.5, val=0.0, test=0.5)
    assert set(assign_splits([f"{i:032x}" for i in range(50)], halves).values()) == {"train", "test"}


def test_equal_states_are_one_group_and_unequal_ones_are_not():
    state = np.array([[0.0, 1.0], [2.0, 3.0]])
    assert group_id(state) == group_id(state.astype(np.float32))
    assert group_id(np.array([0.0])) == group_id(np.array([-0.0]))
    assert group_id(state) != group_id(state.T)
    assert group_id(state) != group_id(state.reshape(-1))


def test_the_official_split_leaks_when_several_files_are_pooled():
    names = [n for file in positional_splits([10, 10], SPLITS, test_first=True) for n in file]
    assert names[0] == "test" and names[10] == "test"
    other_order = [f"{(i * 7) % 10}" for i in range(10)]  # its twins stand in other rows
    assert leaked_share([*map(str, range(10)), *other_order[::-1]], names) > 0


def test_the_leaked_share_is_of_test_in_train_alone():
    assert leaked_share(["a", "a"], ["val", "test"]) == 0
    assert leaked_share(["a", "a", "b"], ["train", "test", "test"]) == 0.5


def test_the_official_split_gives_no_row_twice_and_no_wanted_split_nothing():
    halves = SPLITS.model_copy(update={"protocol": "pdebench", "train": 0.0, "val": 0.5, "test": 0.5})
    assert positional_splits([3], halves, test_first=True) == [["test", "test", "val"]]
    with pytest.raises(UpsDataError, match="files of 3 samples are too small for val, test under the protocol pdeb"):
        positional_splits([3, 3], SPLITS, test_first=True)
