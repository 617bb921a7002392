"""NUMA policy of a guest_memfd, as data: where pages that are committed from now on come to lie.

Source: ``kvm_gmem_set_policy()``, ``kvm_gmem_get_policy()``, Linux 6.19, ``virt/kvm/guest_memfd.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import GuestMemfdError
from .checks import check_range

if TYPE_CHECKING:
    from .inode import Inode

__all__ = ["NumaPolicy"]

_MODES = ("default", "bind", "preferred", "interleave")


class NumaPolicy:
    """What a file says of the policy of its inode."""

    inode: Inode

    def set_policy(self, offset: int, size: int, mode: str, nodes: Sequence[int] = ()) -> None:
        """mbind(2) through the mapping (6.19): where pages that are committed from now on come to lie.

        ``mode``: default, bind, preferred, interleave; ``nodes``: 0 to 63. As data: ``node`` tells; no page is moved.
        """
        if mode not in _MODES or (mode == "default") != (not nodes) or any(not 0 <= node < 64 for node in nodes):
            raise GuestMemfdError(
                errno.EINVAL,
                f"guest_memfd: policy {mode!r} of nodes {list(nodes)}: one of {', '.join(_MODES)}, 0 to 63",
            )
        first, last = check_range(self.inode.size, offset, size)
        inode = self.inode
        policy = mode, tuple(nodes)
        if mode == "default":
            inode.policies.erase(first, last + 1)
            return
        if policy not in inode.policy_of:
            inode.policy_of.append(policy)
        inode.policies[first : last + 1] = 1 + inode.policy_of.index(policy)

    def policy(self, page: int) -> tuple[str, tuple[int, ...]]:
        """Mode and nodes for page ``page``."""
        number = self.inode.policies.get(page)
        return self.inode.policy_of[number - 1] if number else ("default", ())

    def node(self, page: int) -> int | None:
        """The node that page ``page`` was committed on; None if it is not there, or had no policy."""
        return self.inode.nodes.get(page, 0) - 1 if page in self.inode.nodes else None
