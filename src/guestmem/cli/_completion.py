"""What a shell completes: names of designs, engines and models. Nothing where the engine's packages are missing.

Switched on as click does it: ``eval "$(_GUESTMEM_COMPLETE=bash_source guestmem)"`` (or zsh_source, fish_source).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import click

__all__ = ["designs", "engines", "models", "ways"]


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def designs(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Of ``--design``."""
    try:
        from ..designs import DESIGNS
    except ImportError:
        return []
    return _starting((design.name for design in DESIGNS), incomplete)


def ways(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Of ``--design`` of ``dirty-log``."""
    try:
        from ..compare.dirty_log import DESIGNS
    except ImportError:
        return []
    return _starting((way.name for way in DESIGNS if not way.broken), incomplete)


def engines(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Of ``--engine``."""
    try:
        from ..engines import ENGINES
    except ImportError:
        return []
    return _starting(ENGINES, incomplete)


def models(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Of ``explore``: models, or, with ``--mutants``, mutants."""
    try:
        if context.params.get("mutated"):
            from ..explore.mutants import mutants

            return _starting((mutant.name for mutant in mutants()), incomplete)
        from ..explore.models import models as known
    except ImportError:
        return []
    return _starting((model.name for model in known()), incomplete)
