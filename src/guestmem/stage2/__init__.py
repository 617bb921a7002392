"""Stage-2 tables that many vCPUs build at once: descriptors, walker and operations, who frees what and when."""

from __future__ import annotations
