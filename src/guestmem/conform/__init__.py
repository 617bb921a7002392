"""The model against a kernel: random memory ioctls, and every answer must agree."""

from __future__ import annotations

from .calls import Answer, Call
from .promises import PROMISES
from .run import Divergence, Outcome, conform

__all__ = ["PROMISES", "Answer", "Call", "Divergence", "Outcome", "conform"]
