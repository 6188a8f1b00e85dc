import numpy as np

from gaternet_jax.gating.channels import ALL, NONE, Channels, Run, join

KEEP, WIDTHS = [np.array([2, 0]), np.array([1, 0, 2, 3])], [2, 4]
MIXED = join([Run(0, 3), Run(ALL, 1), Run(ALL, 1), Run(NONE, 2), Run(1, 4)])


def test_indices_are_positions_among_all_channels():
    assert MIXED.size == 11 and MIXED.count(WIDTHS) == 8 and MIXED.sites == {0, 1}
    np.testing.assert_array_equal(MIXED.indices(KEEP, WIDTHS), [2, 0, 3, 4, 7, 8, 9, 10])  # a whole site in order
    assert not MIXED.is_complete([3, 4]), "NONE is never there"
    assert join([Run(0, 3), Run(1, 4)]).is_complete([3, 4])


def test_merged_axes():
    merged = join([Run(0, 3, copies=2)] * 2)
    assert merged.size == 12 and merged.count([2]) == 8
    expected = np.arange(12).reshape(2, 3, 2)[:, KEEP[0]].reshape(-1)
    np.testing.assert_array_equal(merged.indices(KEEP, WIDTHS), expected)


def test_parts_follow_the_edges_of_sites():
    assert MIXED.window(0, 4) == join([Run(0, 3), Run(ALL, 1)])
    assert MIXED.window(4, 3) == join([Run(ALL, 1), Run(NONE, 2)])
    assert MIXED.window(0, 2) is None
    assert MIXED.window(-1, 4) == join([Run(NONE, 1), Run(0, 3)])
    assert MIXED.window(7, 5) == join([Run(1, 4), Run(NONE, 1)])
    assert MIXED.window(3, 0) == Channels(())
    assert join([Run(0, 3)]).window(-2, 6) == join([Run(NONE, 2), Run(0, 3), Run(NONE, 1)])


def test_union_is_what_either_wants():
    first, second = join([Run(0, 3)]).window(0, 7), join([Run(1, 4)]).window(-3, 7)
    assert first.union(second) == second.union(first) == join([Run(0, 3), Run(1, 4)])
    assert first.union(first) == first
    assert first.union(join([Run(NONE, 1), Run(ALL, 6)])) is None, "a part of a site and all of another part"
    assert first.union(join([Run(NONE, 3), Run(ALL, 4)])) == join([Run(0, 3), Run(ALL, 4)])
    assert join([Run(0, 3)]).union(join([Run(1, 3)])) is None
    assert join([Run(0, 3)]).union(join([Run(NONE, 4)])) is None


def test_parts_that_stand_side_by_side_are_found():
    assert MIXED.find(MIXED.window(7, 4).window(-7, 11), WIDTHS) == 4  # two of the first site and two others before
    assert MIXED.find(join([Run(0, 3), Run(NONE, 4), Run(1, 4)]), WIDTHS) is None, "not side by side"
    assert MIXED.find(join([Run(NONE, 7), Run(2, 4)]), WIDTHS) is None, "of another site"
    assert MIXED.find(None, WIDTHS) is None
