"""What the vectorized simulator tells of each round, beyond the distance."""

from collections import Counter

import numpy as np

from gossip import topology
from gossip.arrays import Array
from gossip.mixing import PushSum
from gossip.sim.vectorized import simulate


def test_packets_are_counted_by_age_in_the_round_in_which_they_are_sent() -> None:
    result = simulate(topology.exponential(8), PushSum(), rounds=30, seed=3, loss=0.2, delay=2)
    for record in result.records:
        assert sum(record.ages.values()) == record.links == 24
        assert set(record.ages) <= {-1, 0, 1, 2}
    assert sum((Counter(record.ages) for record in result.records), Counter()) == result.staleness


def test_an_observer_sees_the_parameters_after_each_round() -> None:
    seen: list[Array] = []
    result = simulate(topology.ring(5), PushSum(), rounds=4, observe=lambda _, x: seen.append(x))
    assert len(seen) == 4
    np.testing.assert_array_equal(seen[-1], result.params)
    for record, x in zip(result.records, seen, strict=True):
        np.testing.assert_allclose(np.sum((x - x.mean(axis=0)) ** 2), record.distance)


def test_the_true_mean_goes_on_with_the_training_steps() -> None:
    result = simulate(topology.ring(5), PushSum(), rounds=3, gradient=lambda x, _: x * 0 + 2.0)
    means = [result.start.true_mean, *(record.true_mean for record in result.records)]
    np.testing.assert_allclose(np.diff(means, axis=0), 2.0)
    np.testing.assert_array_equal(means[-1], result.mean)
