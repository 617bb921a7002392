"""Mutants of updates with a listener: vCPUs and device would see two instants."""

from __future__ import annotations

from . import Mutant

__all__ = ["MUTANTS"]

_UPDATE = "engines/soft/update.py"
_TELL = "        self.tell_listeners()\n"

MUTANTS = (
    Mutant(
        "listener-told-after-release",
        "a device goes by its old map until the update is settled",
        *(_UPDATE, "        self.stall_listeners(effects)\n", ""),
        models=("production-listener-comes",),
    ),
    Mutant(
        "listener-goes-on-early",
        "a device goes on as soon as its accesses have stopped, before the slots are published",
        *(
            _UPDATE,
            "            self._waiting.append(each)\n",
            "            self._waiting.append(each)\n            each.listener.resume()\n",
        ),
        models=("production-listener-comes",),
    ),
    Mutant(
        "listener-told-before",
        "a device has its new map, and goes on, before the slots are published",
        *(
            _UPDATE,
            "            self._waiting.append(each)\n",
            "            each.commit(self._told)\n            each.resume()\n",
        ),
        models=("production-listener-comes-device",),
    ),
    Mutant(
        "listener-not-told",
        "a device goes on by its old map",
        *(_UPDATE, _TELL, ""),
        models=("production-listener-exchanged",),
    ),
)
