"""Splits by initial condition: decided once, seeded, provably disjoint.

The raw files repeat every initial condition under every physical parameter, so a split over rows would put
a test trajectory's twin into train. Samples that start alike form a group, and a group is never divided.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ups_data.errors import UpsDataError
from ups_data.params import SPLITS, Splits


def group_id(*arrays: np.ndarray) -> str:
    """Identify an initial condition: 32 hex digits over the shapes and float32 bytes of its arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        # + 0.0 turns -0.0 into 0.0: states that compare equal must hash equal.
        digest.update(np.ascontiguousarray(array, dtype="<f4") + np.float32(0.0))
    return digest.hexdigest()[:32]


def split_sizes(groups: int, splits: Splits) -> dict[str, int]:
    """Whole numbers of groups by largest remainder; a wanted split is never empty.

    Raises UpsDataError when there are fewer groups than wanted splits.
    """
    shares = {name: getattr(splits, name) for name in SPLITS}
    wanted = [name for name in SPLITS if shares[name] > 0]
    if groups < len(wanted):
        raise UpsDataError(
            f"splits: {groups} distinct initial conditions cannot fill {', '.join(wanted)}; "
            "take more samples or set a share to 0"
        )
    sizes = {name: int(shares[name] * groups + 1e-9) for name in SPLITS}
    by_remainder = sorted(wanted, key=lambda name: sizes[name] - shares[name] * groups)
    for name in by_remainder[: groups - sum(sizes.values())]:
        sizes[name] += 1
    for name in wanted:
        if sizes[name] == 0:
            sizes[name] = 1
            sizes[max(wanted, key=lambda other: sizes[other])] -= 1
    return sizes


def assign_splits(groups: Sequence[str], splits: Splits) -> dict[str, str]:
    """Give every group its split: group id -> train, val or test.

    `groups` holds one id a sample; order and repeats do not matter. `grouped` orders the groups by a seeded hash of
    the id and cuts by count: the shares are exact, and tasks that have the same initial conditions share their split.
    `hashed` looks at each group alone: tasks agree on every initial condition that they share, however few these are,
    and the shares are met on average (0.8 of 10,000 is 8,000, give or take 40).
    Raises UpsDataError when there are too few groups to fill every wanted split.
    """
    hashes = {group: hashlib.sha256(f"{splits.seed}:{group}".encode()).digest() for group in set(groups)}
    distinct = sorted(hashes, key=hashes.get)
    if splits.protocol == "hashed":
        return _by_threshold(distinct, hashes, splits)
    sizes = split_sizes(len(distinct), splits)
    names = [name for name in SPLITS for _ in range(sizes[name])]
    return dict(zip(distinct, names, strict=True))


def _by_threshold(distinct: list[str], hashes: Mapping[str, bytes], splits: Splits) -> dict[str, str]:
    """The hash as a number in [0, 1): train below the share of train, then val, then test."""
    ends = [splits.train, splits.train + splits.val]
    wanted = [name for name in SPLITS if getattr(splits, name) > 0]
    last = wanted[-1]  # shares add up to 1 but for rounding, and nothing may fall beyond the last
    assigned = {}
    for group in distinct:
        place = sum(int.from_bytes(hashes[group][:6]) / 2**48 >= end for end in ends)
        assigned[group] = SPLITS[place] if SPLITS[place] in wanted else last
    if missing := set(wanted) - set(assigned.values()):
        raise UpsDataError(
            f"splits: none of the {len(distinct)} initial conditions falls into {', '.join(sorted(missing))} by its "
            "hash; take more samples, another seed, or splits.protocol: grouped"
        )
    return assigned


def positional_splits(counts: Sequence[int], splits: Splits, test_first: bool) -> list[list[str]]:
    """The official loaders' split, a split name for each row of each file: it knows nothing of groups.

    The official HDF5 loader takes the first share of every file as test, the group-file loader the last;
    there is no official validation set, so ours is cut from the end of their training rows.
    Raises UpsDataError when the files are too small to give every wanted split a row.
    """
    assigned = []
    for count in counts:
        test = round(count * splits.test)
        val = min(round(count * splits.val), count - test)  # halves are rounded up twice
        rows = ["train"] * (count - test - val) + ["val"] * val
        assigned.append(["test"] * test + rows if test_first else rows + ["test"] * test)
    found = {name for file in assigned for name in file}
    if missing := [name for name in SPLITS if getattr(splits, name) > 0 and name not in found]:
        sizes = ", ".join(map(str, sorted(set(counts))))
        raise UpsDataError(
            f"splits: files of {sizes} samples are too small for {', '.join(missing)} under the protocol pdebench; "
            "take more samples, set the share to 0, or splits.protocol: grouped"
        )
    return assigned


def leaked_share(groups: Sequence[str], names: Sequence[str]) -> float:
    """Share of the test samples whose initial condition also stands in train; 0 for a grouped split."""
    train = {g for g, name in zip(groups, names, strict=True) if name == "train"}
    test = Counter(g in train for g, name in zip(groups, names, strict=True) if name == "test")
    return test[True] / max(1, test.total())
