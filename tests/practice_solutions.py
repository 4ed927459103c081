"""Independent solutions of the 30 practice problems in data/practice.jsonl.

`p_7()` is the answer to problem P-7, found from its statement by enumeration or exact arithmetic:
integers and fractions, never a rounded float. Where an infinite range is cut, or a continuous one
reduced to finitely many cases, the docstring says why nothing is lost.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache
from itertools import (
    accumulate,
    combinations,
    combinations_with_replacement,
    pairwise,
    permutations,
    product,
)
from math import comb, gcd, isqrt, lcm

Point = tuple[Fraction, Fraction]


def _m_plus_n(value: Fraction) -> int:
    """The sum of numerator and denominator in lowest terms."""
    return value.numerator + value.denominator


def p_1() -> int:
    """Area of ABP by exact coordinates: A at the origin, P the projection of B onto line AC."""
    bx, cx, cy = 20, 20, 15
    along = Fraction(bx * cx, cx * cx + cy * cy)
    area = bx * (along * cy) / 2
    assert area.denominator == 1
    return int(area)


def p_2() -> int:
    """Counts the integers 100..999 with both properties."""
    return sum(n % 6 == 0 and 36 % sum(map(int, str(n))) == 0 for n in range(100, 1000))


def p_3() -> int:
    """Value at 10 of the one polynomial of degree at most 2 through the three points (Lagrange)."""
    points = {1: 10, 2: 23, 4: 67}
    value = Fraction(0)
    for x, y in points.items():
        term = Fraction(y)
        for other in points.keys() - {x}:
            term *= Fraction(10 - other, x - other)
        value += term
    assert value.denominator == 1
    return int(value)


def p_4() -> int:
    """Counts ordered triples of different members in which both sexes occur."""
    members = [("girl", i) for i in range(6)] + [("boy", i) for i in range(5)]
    return sum(len({sex for sex, _ in officers}) == 2 for officers in permutations(members, 3))


def p_5() -> int:
    """Counts the settings of the panel with a lit lamp in each row and each column."""
    panels = [(lamps[:4], lamps[4:]) for lamps in product((False, True), repeat=8)]
    lit = sum(any(top) and any(bottom) and all(map(any, zip(top, bottom, strict=True))) for top, bottom in panels)
    return _m_plus_n(Fraction(lit, len(panels)))


def p_6() -> int:
    """Sums n in 0..35: for n < 0 the bound 4n is negative, for n >= 36 the left side exceeds 5n."""
    return sum(n for n in range(36) if abs(n * n - 31 * n + 150) <= 4 * n)


def p_7() -> int:
    """Counts the strings of eight letters in which each M is followed by N."""
    strings = map("".join, product("LMN", repeat=8))
    return sum(text.count("M") == text.count("MN") for text in strings)


def p_8() -> int:
    """Counts ordered draws of three labelled marbles: first two differ in colour, third repeats one."""
    marbles = list(enumerate("R" * 4 + "G" * 5 + "B" * 6))
    draws = [[colour for _, colour in draw] for draw in permutations(marbles, 3)]
    stops_at_three = sum(a != b and c in (a, b) for a, b, c in draws)
    return _m_plus_n(Fraction(stops_at_three, len(draws)))


def p_9() -> int:
    """Area with D = (0, 0), C = (39, 0), A = (u, h), B = (u + 11, h); both leg lengths are checked."""
    # DA^2 - BC^2 = u^2 - (28 - u)^2 is linear in u.
    u = Fraction(25**2 - 17**2 + 28**2, 2 * 28)
    height_squared = 25**2 - u * u
    assert height_squared.denominator == 1
    h = isqrt(height_squared.numerator)
    assert u * u + h * h == 25**2
    assert (28 - u) ** 2 + h * h == 17**2
    area = Fraction((11 + 39) * h, 2)
    assert area.denominator == 1
    return int(area)


def p_10() -> int:
    """Counts n up to 1000 by their partial sums 1 + 2 + ... + n."""
    return sum(total % 15 == 0 and total % 4 != 0 for total in accumulate(range(1, 1001)))


def p_11() -> int:
    """Counts sets of four squares of the board without corners, all rows and all columns different."""
    squares = [(r, c) for r, c in product(range(5), repeat=2) if not {r, c} <= {0, 4}]
    assert len(squares) == 21
    return sum(len({r for r, _ in rooks}) == 4 == len({c for _, c in rooks}) for rooks in combinations(squares, 4))


def p_12() -> int:
    """Ratio by coordinates A = (0, 0), B = (21, 0), C = (0, 28); the centre solves two linear equations."""
    b, c = Fraction(21), Fraction(28)
    mx, my = b / 2, c / 2
    # The centre (x, y) is as far from A as from M: 2(x mx + y my) = |M|^2; and (centre - M) . (C - B) = 0.
    right_1 = (mx * mx + my * my) / 2
    right_2 = -b * mx + c * my
    determinant = mx * c + my * b
    x = (right_1 * c - my * right_2) / determinant
    y = (mx * right_2 + b * right_1) / determinant
    assert x * x + y * y == (x - mx) ** 2 + (y - my) ** 2
    assert (x - mx) * -b + (y - my) * c == 0
    ap, aq = 2 * x, 2 * y  # a circle through the origin meets the axes again at twice its centre
    assert 0 < ap < b
    assert 0 < aq < c
    return _m_plus_n((ap * aq) / (b * c))


def p_13() -> int:
    """Counts pairs up to 840: the gcd divides lcm - gcd = 420, so a, b <= lcm <= 840."""
    return sum(lcm(a, b) - gcd(a, b) == 420 for a, b in product(range(1, 841), repeat=2))


def p_14() -> int:
    """Counts the 2^10 sequences of moves of which no partial sum is negative."""
    games = list(product((2, -1), repeat=10))
    return _m_plus_n(Fraction(sum(min(accumulate(game)) >= 0 for game in games), len(games)))


def p_15() -> int:
    """Counts triples equal to their conjugate, in the basis 1, w, w^2, w^3 of Z[w], where w^4 = w^2 - 1."""
    powers = [(1, 0, 0, 0)]
    for _ in range(11):
        a, b, c, d = powers[-1]
        powers.append((-d, a, b + d, c))
    # The basis is one over the rationals, as x^4 - x^2 + 1 is the 12th cyclotomic polynomial.

    def total(exponents: Iterable[int]) -> list[int]:
        return [sum(column) for column in zip(*(powers[e % 12] for e in exponents), strict=True)]

    return sum(total(exponents) == total(-e for e in exponents) for exponents in product(range(12), repeat=3))


def p_16() -> int:
    """Counts the 2^10 choices of ferry and air lines in which both networks connect the five islands."""
    lines = list(combinations(range(5), 2))

    def connected(network: Iterable[tuple[int, int]]) -> bool:
        part = list(range(5))
        for a, b in network:
            part = [part[a] if p == part[b] else p for p in part]
        return len(set(part)) == 1

    both = sum(
        connected(line for line, ferry in zip(lines, choice, strict=True) if ferry)
        and connected(line for line, ferry in zip(lines, choice, strict=True) if not ferry)
        for choice in product((True, False), repeat=len(lines))
    )
    return _m_plus_n(Fraction(both, 2 ** len(lines)))


def p_17() -> int:
    """Values at every jump, by t = x^6: jumps are at x = k, x^2 = 3k, x^3 = 4k; at x = 14 the sum is 765."""

    def root(t: int, degree: int) -> int:
        return bisect_right(range(3000), t, key=lambda r: r**degree) - 1

    top = 14**6
    jumps = {k**6 for k in range(15)} | {(3 * k) ** 3 for k in range(70)} | {(4 * k) ** 2 for k in range(700)}
    # The sum is constant between jumps and includes its value at each jump; 0 stands for small x > 0.
    values = {root(t, 6) + root(t, 3) // 3 + root(t, 2) // 4 for t in jumps if t <= top}
    return len(values & set(range(1, 601)))


def p_18() -> int:
    """Counts the 252^2 pairs directly."""
    cubes = [y**3 for y in range(252)]
    return sum((x * x - cube) % 252 == 0 for x in range(252) for cube in cubes)


def p_19() -> int:
    """Counts classes under rotation by the least of the four rotated forms of each allowed colouring."""

    def rotated(cells: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(cells[4 * (3 - c) + r] for r in range(4) for c in range(4))

    rows = [row for row in product((0, 1), repeat=4) if all(a + b < 2 for a, b in pairwise(row))]
    classes = set()
    for board in product(rows, repeat=4):
        if any(a + b == 2 for above, below in pairwise(board) for a, b in zip(above, below, strict=True)):
            continue
        forms = [tuple(cell for row in board for cell in row)]
        for _ in range(3):
            forms.append(rotated(forms[-1]))
        classes.add(min(forms))
    return len(classes)


def _clip(polygon: Sequence[Point], a: Fraction, b: Fraction, c: Fraction) -> list[Point]:
    """The part of a convex polygon where a x + b y + c >= 0."""
    kept: list[Point] = []
    for (x, y), (u, v) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        here, there = a * x + b * y + c, a * u + b * v + c
        if here >= 0:
            kept.append((x, y))
        if here * there < 0:
            s = here / (here - there)
            kept.append((x + s * (u - x), y + s * (v - y)))
    return kept


def _area(polygon: Sequence[Point]) -> Fraction:
    """The area of a polygon given by its vertices in order."""
    turned = [*polygon[1:], *polygon[:1]]
    return abs(sum((x * v - u * y for (x, y), (u, v) in zip(polygon, turned, strict=True)), Fraction(0))) / 2


def p_20() -> int:
    """Volume by exact slices; their area is quadratic between the heights where the plane meets AE..DH."""
    side = Fraction(12)
    p, q, r = (3, 0, 0), (12, 12, 9), (0, 11, 12)  # A = (0, 0, 0), B on the x-axis, D on y, E on z
    ux, uy, uz = (q[i] - p[i] for i in range(3))
    vx, vy, vz = (r[i] - p[i] for i in range(3))
    normal = [Fraction(uy * vz - uz * vy), Fraction(uz * vx - ux * vz), Fraction(ux * vy - uy * vx)]
    offset = -sum((n * coordinate for n, coordinate in zip(normal, p, strict=True)), Fraction(0))
    if offset < 0:  # A must lie on the positive side
        normal, offset = [-n for n in normal], -offset
    a, b, c = normal
    square = [(Fraction(0), Fraction(0)), (side, Fraction(0)), (side, side), (Fraction(0), side)]

    def slice_area(z: Fraction) -> Fraction:
        return _area(_clip(square, a, b, c * z + offset))

    meets = {-(a * x + b * y + offset) / c for x, y in square}
    heights = sorted({Fraction(0), side} | {z for z in meets if 0 < z < side})
    volume = sum(
        (
            (high - low) * (slice_area(low) + 4 * slice_area((low + high) / 2) + slice_area(high)) / 6
            for low, high in pairwise(heights)
        ),
        Fraction(0),
    )  # Simpson's rule is exact for quadratics
    assert volume.denominator == 1
    return int(volume)


def p_21() -> int:
    """Counts side triples with cos X = cos 2Y for two angles; X + Y < 180 degrees then forces X = 2Y."""

    def cosine(opposite: int, b: int, c: int) -> tuple[int, int]:
        return b * b + c * c - opposite * opposite, 2 * b * c

    def is_double(x: tuple[int, int], y: tuple[int, int]) -> bool:
        return x[0] * y[1] ** 2 == x[1] * (2 * y[0] ** 2 - y[1] ** 2)

    count = 0
    for a, b, c in combinations_with_replacement(range(1, 81), 3):
        if a + b > c:
            small, middle, large = cosine(a, b, c), cosine(b, a, c), cosine(c, a, b)
            count += is_double(large, middle) or is_double(large, small) or is_double(middle, small)
    return count


def p_22() -> int:
    """Collects (a, b) from all monic factorings; a factor x^2 + px + q has p^2 = a + q + s <= 121."""
    allowed = range(1, 61)
    found = set()
    for root, a in product(allowed, allowed):  # an integer root divides b; -root is a root as well
        found.add((a, a * root**2 - root**4))
    for p, q, s in product(range(-11, 12), range(-60, 61), range(-60, 61)):
        if p * s - p * q == 0:  # (x^2 + px + q)(x^2 - px + s) has no x-term
            found.add((p * p - q - s, q * s))
    return sum(a in allowed and b in allowed for a, b in found)


def p_23() -> int:
    """Counts the 7! permutations whose longest rising and longest falling subsequence have 3 terms."""

    def longest_rise(terms: Sequence[int]) -> int:
        best: list[int] = []
        for i, term in enumerate(terms):
            best.append(1 + max((best[j] for j in range(i) if terms[j] < term), default=0))
        return max(best)

    orders = list(permutations(range(1, 8)))
    return _m_plus_n(
        Fraction(sum(longest_rise(order) == 3 == longest_rise(order[::-1]) for order in orders), len(orders))
    )


def p_24() -> int:
    """Counts the ways to place 1, 2, ..., 9 one after another, each apart from the one before; 9 from 1."""

    squares = [(row, column) for row in range(3) for column in range(3)]

    def apart(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a[0] != b[0] and a[1] != b[1]

    def ways(placed: list[tuple[int, int]]) -> int:
        if len(placed) == 9:
            return int(apart(placed[-1], placed[0]))
        free = [square for square in squares if square not in placed]
        return sum(ways([*placed, square]) for square in free if not placed or apart(placed[-1], square))

    return ways([])


def p_25() -> int:
    """Counts the entries congruent to 3 modulo 4 in rows 0 to 99 of Pascal's triangle."""
    return sum(comb(n, k) % 4 == 3 for n in range(100) for k in range(n + 1))


def p_26() -> int:
    """Enumerates coefficients from x^5 down: a higher one would make P(2) at least 64."""

    def ways(degree: int, at_2: int, at_minus_1: int) -> int:
        if degree == 0:
            return int(at_minus_1 == at_2)  # the constant term must supply both remainders
        return sum(
            ways(degree - 1, at_2 - k * 2**degree, at_minus_1 - k * (-1) ** degree)
            for k in range(at_2 // 2**degree + 1)
        )

    return ways(5, 60, 0)


def p_27() -> int:
    """Counts n up to 1000 by modular powers."""
    return sum(pow(n, n, 1000) == pow(n, 3, 1000) for n in range(1, 1001))


def p_28() -> int:
    """Counts triples of the circle's integer points with two equal squared distances; none is collinear."""
    points = [(x, y) for x, y in product(range(-65, 66), repeat=2) if x * x + y * y == 4225]

    def distance_squared(a: tuple[int, int], b: tuple[int, int]) -> int:
        return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2

    return sum(
        len({distance_squared(a, b), distance_squared(b, c), distance_squared(a, c)}) < 3
        for a, b, c in combinations(points, 3)
    )


def p_29() -> int:
    """Counts subsets without an isosceles triple; equal chords of the circle subtend equal shorter arcs."""

    def arc(a: int, b: int) -> int:
        return min((a - b) % 12, (b - a) % 12)

    isosceles = [
        1 << a | 1 << b | 1 << c for a, b, c in combinations(range(12), 3) if len({arc(a, b), arc(b, c), arc(a, c)}) < 3
    ]
    return sum(all(subset & triple != triple for triple in isosceles) for subset in range(1 << 12))


def p_30() -> int:
    """Exact probability of five guests by recursion on the set of occupied chairs."""

    @cache
    def chance(occupied: frozenset[int]) -> Fraction:
        free = [i for i in range(14) if not occupied & {i - 1, i, i + 1}]
        if not free:
            return Fraction(len(occupied) == 5)
        return sum((chance(occupied | {i}) for i in free), Fraction(0)) / len(free)

    return _m_plus_n(chance(frozenset()))
