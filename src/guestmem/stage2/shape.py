"""The words that describe a format and geometry to compiled code: ``layout``'s shape, filled in."""

from __future__ import annotations

from ..compiled import Own, own
from . import layout
from .format import Annotations, Format, InvalidType, Shape

__all__ = ["format_shape"]


def format_shape(format_: Format, shape: Shape, pool_base: int) -> Own:
    """A format's words for tables in a pool that starts at ``pool_base``."""
    geometry = format_.geometry
    new = format_.annotations is Annotations.LINUX_7_1
    named = {
        "PAGE_SHIFT": geometry.page_shift,
        "STRIDE": geometry.stride,
        "START_LEVEL": geometry.start_level,
        "LAST_LEVEL": 3,
        "ROOT_ENTRIES": geometry.root_entries,
        "IPA_END": 1 << geometry.ipa_bits,
        "OUTPUT_END": 1 << format_.pa_bits,
        "MIN_BLOCK_LEVEL": max(format_.min_block_level, geometry.start_level),
        "BLOCK_LEVELS": sum(1 << level for level in format_.block_levels),
        "POOL_BASE": pool_base,
        "VALID": 1,
        "TABLE_MASK": shape.table_mask,
        "TABLE_KIND": shape.table_kind,
        "BLOCK_KIND": shape.block_kind,
        "PAGE_MASK": shape.page_mask,
        "PAGE_KIND": shape.page_kind,
        "TABLE_BITS": shape.table_bits,
        "ADDRESS_MASK": shape.address_mask,
        "ADDRESS_HIGH_MASK": shape.address_high_mask,
        "ADDRESS_HIGH_SHIFT": shape.address_high_shift,
        "ATTRIBUTES_MASK": shape.attributes_mask,
        "READ_MASK": shape.read[0],
        "READ_GRANTED": shape.read[1],
        "READ_DENIED": shape.read[2],
        "WRITE_MASK": shape.write[0],
        "WRITE_GRANTED": shape.write[1],
        "WRITE_DENIED": shape.write[2],
        "EXECUTE_MASK": shape.execute[0],
        "EXECUTE_GRANTED": shape.execute[1],
        "EXECUTE_DENIED": shape.execute[2],
        "PERMISSION_MASK": shape.read[0] | shape.write[0] | shape.execute[0],
        "ACCESSED": shape.accessed,
        "DIRTY": shape.dirty,
        "MODIFIER": shape.modifier,
        "NT": shape.nt,
        "SOFTWARE_MASK": shape.software_mask,
        "LOCKED": format_.locked,
        "TYPE_MASK": 0xF << 60 if new else 1 << 10,
        "OWNER_SHIFT": 1 if new else 2,
        "OWNER_MASK": 0x7 if new else 0xFF,
        "OWNER_TYPE": InvalidType.HOST_DONATION << 60 if new else 0,
    }
    made = own(layout.SHAPE_WORDS)
    for name, value in named.items():
        made[int(getattr(layout, name))] = value
    return made
