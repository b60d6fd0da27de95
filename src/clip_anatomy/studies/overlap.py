"""What two lists out of one pool share, measured: the 2 × 2 table, its information, a p-value; and the released score beside it.

Of D details a picture shows N and a label expects M; k stand in both. Two indicators over the pool, with the table

    [[k, N − k], [M − k, D − N − M + k]] / D

have the mutual information I = Σ p log(p / (row · column)), between 0 and the entropy of N / D. What chance would share is N M / D, and
at least k of N with probability p (hypergeometric). Sammani & Deligiannis (NeurIPS 2024), eq. 9 of appendix B and the released code, add the
joint entropy where mutual information subtracts it: their number is log N + log M + log k (0 without a match), largely a constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, log

__all__ = ["ListOverlap", "deletion_curve"]


@dataclass(frozen=True)
class ListOverlap:
    """How many details stand in both lists.

    Attributes:
        shared: k.
        shown: N, of the picture.
        expected: M, of the label.
        pool: D.

    Example:
        >>> one = ListOverlap(3, 15, 50, 4229)
        >>> round(one.information, 3), round(one.p, 5), round(one.released, 2)
        (0.061, 0.00064, 7.72)
    """

    shared: int
    shown: int
    expected: int
    pool: int

    @property
    def by_chance(self) -> float:
        """How many two random lists of these lengths share: N M / D."""
        return self.shown * self.expected / self.pool

    @property
    def p(self) -> float:
        """Probability that a random list of N shares k or more with the M (hypergeometric, one-sided)."""
        most = min(self.shown, self.expected)
        ways = [
            comb(self.expected, k) * comb(self.pool - self.expected, self.shown - k)
            for k in range(self.shared, most + 1)
        ]
        return sum(ways) / comb(self.pool, self.shown)

    @property
    def information(self) -> float:
        """Mutual information of the two indicators over the entropy of N / D: 0 to 1; below 0 where less than chance is shared."""
        k, n, m, d = self.shared, self.shown, self.expected, self.pool
        table = ((k, n, m), (n - k, n, d - m), (m - k, d - n, m), (d - n - m + k, d - n, d - m))
        whole = sum(cell / d * log(cell * d / (row * column)) for cell, row, column in table if cell)
        entropy = -sum(share * log(share) for share in (n / d, 1 - n / d) if share)
        if not entropy:
            return 0.0
        return whole / entropy if k >= self.by_chance else -whole / entropy

    @property
    def released(self) -> float:
        """The score of the released code: log N + log M + log k, 0 where nothing is shared. It is no mutual information."""
        return log(self.shown) + log(self.expected) + log(self.shared) if self.shared else 0.0


def deletion_curve(matches: Sequence[bool], expected: int, pool: int, *, released: bool = False) -> tuple[float, ...]:
    """Measure the overlap with 0, 1, 2, … of the picture's details taken away, those that fit it best first.

    Args:
        matches: of each detail of the picture, the best first: whether the label expects it.
        expected: how many details the label expects.
        pool: how many there are.
        released: the released code's score, which goes on counting what was taken away among the N, instead of the information.

    Returns:
        One value more than there are details. The mean is the area under the curve.

    Example:
        >>> [round(one, 2) for one in deletion_curve([True, False], 2, 10)]
        [0.12, -0.07, 0.0]
    """
    left = [sum(matches[at:]) for at in range(len(matches) + 1)]
    if released:
        return tuple(ListOverlap(k, len(matches), expected, pool).released for k in left)
    return tuple(ListOverlap(k, len(matches) - at, expected, pool).information for at, k in enumerate(left))
