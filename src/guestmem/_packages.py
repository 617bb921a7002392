"""The packages that only a part of guestmem needs, and what to say where one is missing or of another version.

The base needs click, rich and Jinja2: it reads traces, checks, records and writes the page. ``guestmem[engine]`` brings
what compiles, counts and searches. ``pyproject.toml`` says the same; a test holds both together.
"""

from __future__ import annotations

from .errors import MissingPackageError

__all__ = ["EXTRAS", "NUMBA", "require_numba", "what_is_missing"]

NUMBA = (0, 62, 1), (0, 69)
"""From the first on, below the second: the versions on which the hooks that ``_numba`` uses were tried."""

EXTRAS = {
    "numba": "engine",
    "llvmlite": "engine",
    "numpy": "engine",
    "greenlet": "engine",
    "hypothesis": "conform",
    "distributed": "dask",
}
"""By module: the extra that brings it."""


def what_is_missing(module: str) -> str:
    """One line for a module that is not installed; "" for one that no extra brings."""
    extra = EXTRAS.get(module.partition(".")[0])
    return f"{module.partition('.')[0]} is not installed: pip install 'guestmem[{extra}]'" if extra else ""


def require_numba(version: str | None = None) -> None:
    """Raise MissingPackageError unless a Numba of a version that was tried is installed (``version``: as if it were).

    >>> require_numba("0.62.1"), require_numba("0.68.1")
    (None, None)
    >>> require_numba("0.61.2")
    Traceback (most recent call last):
    guestmem.errors.MissingPackageError: numba 0.61.2: 0.62.1 or later, below 0.69: pip install 'guestmem[engine]'
    """
    if version is None:
        try:
            import numba
        except ModuleNotFoundError as error:
            raise MissingPackageError(what_is_missing(error.name or "numba") or str(error)) from None
        version = numba.__version__
    digits = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if not NUMBA[0] <= digits < NUMBA[1]:
        first, end = (".".join(map(str, each)) for each in NUMBA)
        raise MissingPackageError(f"numba {version}: {first} or later, below {end}: pip install 'guestmem[engine]'")
