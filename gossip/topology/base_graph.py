"""The Base-(k+1) graph of Takezawa et al.: the exact mean after one period, for any number of peers."""

from __future__ import annotations

import scipy.sparse as sparse

from gossip.arguments import plain
from gossip.errors import UsageError
from gossip.topology.weights import Matrix, Topology, check_peers, periodic


@plain
def base(peers: int, k: int = 1) -> Topology:
    """The Base-(k+1) graph: the exact mean after one period for any n, at most k neighbors in a round.

    Source: Takezawa et al., arXiv:2305.11420. Of the simple construction and the one that factors n first, the
    shorter is taken.
    """
    check_peers(peers, 2, "Base-(k+1) graph")
    if not 1 <= k < peers:
        raise UsageError(f"Base-(k+1) graph of {peers} peers with k = {k}, expected 1 <= k < peers")
    rounds = min(_simple_base(list(range(peers)), k), _factored_base(peers, k), key=len)

    def build(round: int) -> Matrix:
        matrix = sparse.lil_array((peers, peers))
        matrix.setdiag(1.0)
        for (i, j), weight in rounds[round].items():
            matrix[i, j] = matrix[j, i] = weight
            matrix[i, i] -= weight
            matrix[j, j] -= weight
        return matrix.tocsr()

    return periodic(f"base-{k + 1}", peers, len(rounds), build)


Edges = dict[tuple[int, int], float]


def _factors(count: int, largest: int) -> list[int] | None:
    """`count` as a product of as few numbers up to `largest` as this greedy search finds; None if a prime is larger."""
    factors: list[int] = []
    while count > 1:
        factor = next((each for each in range(min(largest, count), 1, -1) if count % each == 0), None)
        if factor is None:
            return None
        factors.append(factor)
        count //= factor
    return factors


def _hyper_hypercube(members: list[int], factors: list[int]) -> list[Edges]:
    """Round l averages groups that differ in digit l of the mixed radix number: the mean of all after the last."""
    rounds, stride = [], 1
    for factor in factors:
        edges: Edges = {}
        for start in range(len(members)):
            if start // stride % factor == 0:
                group = [members[start + digit * stride] for digit in range(factor)]
                edges |= {(a, b): 1.0 / factor for at, a in enumerate(group) for b in group[at + 1 :]}
        rounds.append(edges)
        stride *= factor
    return rounds


def _simple_base(members: list[int], k: int) -> list[Edges]:
    """Groups of a (k+1)^p peers average; each swaps with all smaller ones, which sets the means of its a parts right;
    the parts average."""
    count, digits, power = len(members), [], 0
    while count:
        count, digit = divmod(count, k + 1)
        if digit:
            digits.append((digit, power))
        power += 1
    digits.reverse()
    groups: list[list[list[int]]] = []  # group -> parts -> members
    start = 0
    for parts, power in digits:
        size = (k + 1) ** power
        groups.append([members[start + part * size : start + (part + 1) * size] for part in range(parts)])
        start += parts * size
    whole = [[peer for part in group for peer in part] for group in groups]
    first = [
        _hyper_hypercube(group, [k + 1] * power + ([parts] if parts > 1 else []))
        for group, (parts, power) in zip(whole, digits, strict=True)
    ]
    if len(groups) == 1:
        return first[0]
    lead = len(first[0])
    last = [
        [_hyper_hypercube(part, [k + 1] * power) for part in group]
        for group, (_, power) in zip(groups, digits, strict=True)
    ]
    length = lead + max(at + 1 + digits[at][1] for at in range(len(groups) - 1))
    rounds: list[Edges] = [{} for _ in range(length)]
    for at in range(len(groups)):
        for number, edges in enumerate(first[at]):
            rounds[number] |= edges
        if at == len(groups) - 1:
            break
        rest = [peer for group in whole[at + 1 :] for peer in group]
        weight = len(whole[at]) / (len(groups[at]) * (len(whole[at]) + len(rest)))
        for part in groups[at]:
            rounds[lead + at] |= dict.fromkeys(zip(part, rest, strict=False), weight)
        for part_rounds in last[at]:
            for number, edges in enumerate(part_rounds):
                rounds[lead + at + 1 + number] |= edges
    return rounds


def _factored_base(peers: int, k: int) -> list[Edges]:
    """peers = p q with p as large as numbers up to k + 1 allow: simple graphs of q peers, then averages across them."""
    across, rest = 1, peers
    for factor in range(2, k + 2):
        while rest % factor == 0:
            rest //= factor
            across *= factor
    factors = _factors(across, k + 1) or []
    rounds: list[Edges] = []
    blocks = [_simple_base(list(range(start, start + rest)), k) for start in range(0, peers, rest)]
    for parallel in zip(*blocks, strict=True):
        rounds.append({pair: weight for edges in parallel for pair, weight in edges.items()})
    columns = [_hyper_hypercube(list(range(column, peers, rest)), factors) for column in range(rest)]
    for parallel in zip(*columns, strict=True):
        rounds.append({pair: weight for edges in parallel for pair, weight in edges.items()})
    return rounds
