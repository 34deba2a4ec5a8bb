"""A small run of the simulation."""

from __future__ import annotations

import pytest
from simulate import TOPOLOGIES, simulate


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_all_peers_agree_over_late_and_cut_links(topology: str) -> None:
    result = simulate(topology, 12, logs_each=2, cut=0.1)
    assert result.sent >= 11 * 24


def test_a_seed_gives_the_same_run_again() -> None:
    assert simulate("2 random", 12, seed=2) == simulate("2 random", 12, seed=2)


def test_over_a_tree_without_cuts_no_entry_is_sent_to_one_who_has_it() -> None:
    result = simulate("star", 12, cut=0)
    assert (result.sent, result.known, result.lost) == (11 * 12, 0, 0)
