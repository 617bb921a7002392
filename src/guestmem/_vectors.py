"""The compiled form of ``cache_lines``: Numba intrinsics that emit vector loads and prefetches."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["count_at_most", "prefetch"]

_I64, _I32, _I8 = ir.IntType(64), ir.IntType(32), ir.IntType(8)
_LINE = ir.VectorType(_I64, 8)
_UNDEFINED = ir.Constant(_LINE, ir.Undefined)
_FIRST_OF_ALL = ir.Constant(ir.VectorType(_I32, 8), [0] * 8)


def _pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]], source_etype=_I64)


@intrinsic  # type: ignore[untyped-decorator]
def count_at_most(_typing: Any, words: Any, index: Any, key: Any) -> Any:  # noqa: ARG001 - Numba reads the names
    """One comparison of eight words, whose eight bits are counted."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.bitcast(_pointer(context, builder, signature, args), ir.PointerType(_LINE))
        line = builder.load(pointer, align=8, typ=_LINE)
        keys = builder.shuffle_vector(builder.insert_element(_UNDEFINED, args[2], _I32(0)), _UNDEFINED, _FIRST_OF_ALL)
        bits = builder.bitcast(builder.icmp_unsigned("<=", line, keys), _I8)
        return builder.zext(builder.ctpop(bits), _I64)

    return types.uint64(words, types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_typing: Any, words: Any, index: Any) -> Any:  # noqa: ARG001 - as above
    """LLVM's prefetch: to read, to be kept near, of data."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature, args)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(words, types.uint64), generate
