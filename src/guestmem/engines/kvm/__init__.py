"""The kernel engine: ``/dev/kvm`` by its ioctls, real vCPUs, and what designs need of it."""

from __future__ import annotations
