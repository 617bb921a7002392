"""Random numbers of a thread whose words are its own: xorshift (Marsaglia 2003, 13-7-17)."""

from __future__ import annotations

from ...compiled import U64, Own, compiled, wrapping

__all__ = ["xorshift"]


@compiled
def xorshift(own: Own, seed: U64) -> U64:
    """The next number of the generator whose state is own[seed], which is never 0."""
    x = own[seed]
    x = x ^ wrapping(x << 13)
    x = x ^ (x >> 7)
    x = x ^ wrapping(x << 17)
    own[seed] = x
    return x
