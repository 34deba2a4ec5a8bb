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


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_without_cuts_nothing_is_lost_and_a_star_sends_nothing_twice(topology: str) -> None:
    result = simulate(topology, 12, cut=0)
    assert result.lost == 0
    assert result.sent - result.known == 11 * 12
    assert (result.known == 0) == (topology == "star")
