"""The compiled form of ``atomics`` and ``clock``: Numba intrinsics that emit LLVM atomics and calls of libc.

What each does is said there. Each is a generator of LLVM instructions in Numba's own form: a function from argument
types to a signature and a code generator.
"""

from __future__ import annotations

import time

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .futex import FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE, SYS_FUTEX
from .units import U64_MAX

__all__ = [
    "address_of",
    "compare_exchange",
    "exchange",
    "fence",
    "fetch_add",
    "fetch_and",
    "fetch_or",
    "host_copy2",
    "host_copy4",
    "host_copy8",
    "host_copy16",
    "host_fetch_add",
    "host_fetch_or",
    "host_load",
    "host_load8",
    "host_load16",
    "host_load32",
    "host_store",
    "host_store8",
    "host_store16",
    "host_store32",
    "load_acquire",
    "load_relaxed",
    "now",
    "store_relaxed",
    "store_release",
    "system_call",
    "wait",
    "wait_for",
    "wake",
]

_I64 = ir.IntType(64)


def _pointer(context, builder, signature, args):
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]], source_etype=_I64)


def _load(name, order):
    @intrinsic
    def operation(_typing, words, index):
        def generate(context, builder, signature, args):
            return builder.load_atomic(_pointer(context, builder, signature, args), order, 8, typ=_I64)

        return types.uint64(words, types.uint64), generate

    operation.__name__ = name
    return operation


def _store(name, order):
    @intrinsic
    def operation(_typing, words, index, value):
        def generate(context, builder, signature, args):
            builder.store_atomic(args[2], _pointer(context, builder, signature, args), order, 8)
            return context.get_dummy_value()

        return types.void(words, types.uint64, types.uint64), generate

    operation.__name__ = name
    return operation


def _modify(name, kind):
    @intrinsic
    def operation(_typing, words, index, value):
        def generate(context, builder, signature, args):
            return builder.atomic_rmw(kind, _pointer(context, builder, signature, args), args[2], "acq_rel")

        return types.uint64(words, types.uint64, types.uint64), generate

    operation.__name__ = name
    return operation


load_relaxed = _load("load_relaxed", "monotonic")
load_acquire = _load("load_acquire", "acquire")
store_relaxed = _store("store_relaxed", "monotonic")
store_release = _store("store_release", "release")
exchange = _modify("exchange", "xchg")
fetch_add = _modify("fetch_add", "add")
fetch_and = _modify("fetch_and", "and")
fetch_or = _modify("fetch_or", "or")


@intrinsic
def compare_exchange(_typing, words, index, old, new):
    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args)
        return builder.extract_value(builder.cmpxchg(pointer, args[2], args[3], "acq_rel", "acquire"), 0)

    return types.uint64(words, types.uint64, types.uint64, types.uint64), generate


@intrinsic
def fence(_typing):
    def generate(context, builder, _signature, _args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def address_of(_typing, words, index):
    def generate(context, builder, signature, args):
        return builder.ptrtoint(_pointer(context, builder, signature, args), _I64)

    return types.uint64(words, types.uint64), generate


def _host(builder, address):
    return builder.inttoptr(address, ir.PointerType(_I64))


@intrinsic
def host_load(_typing, address):
    def generate(_context, builder, _signature, args):
        return builder.load_atomic(_host(builder, args[0]), "monotonic", 8, typ=_I64)

    return types.uint64(types.uint64), generate


@intrinsic
def host_store(_typing, address, value):
    def generate(context, builder, _signature, args):
        builder.store_atomic(args[1], _host(builder, args[0]), "monotonic", 8)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate


@intrinsic
def host_fetch_add(_typing, address, value):
    def generate(_context, builder, _signature, args):
        return builder.atomic_rmw("add", _host(builder, args[0]), args[1], "seq_cst")

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def host_fetch_or(_typing, address, value):
    def generate(_context, builder, _signature, args):
        return builder.atomic_rmw("or", _host(builder, args[0]), args[1], "acq_rel")

    return types.uint64(types.uint64, types.uint64), generate


def _narrow_load(name, bits):
    @intrinsic
    def operation(_typing, address):
        def generate(_context, builder, _signature, args):
            kind = ir.IntType(bits)
            pointer = builder.inttoptr(args[0], ir.PointerType(kind))
            return builder.zext(builder.load_atomic(pointer, "monotonic", bits // 8, typ=kind), _I64)

        return types.uint64(types.uint64), generate

    operation.__name__ = name
    return operation


def _narrow_store(name, bits):
    @intrinsic
    def operation(_typing, address, value):
        def generate(context, builder, _signature, args):
            kind = ir.IntType(bits)
            pointer = builder.inttoptr(args[0], ir.PointerType(kind))
            builder.store_atomic(builder.trunc(args[1], kind), pointer, "monotonic", bits // 8)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), generate

    operation.__name__ = name
    return operation


host_load8 = _narrow_load("host_load8", 8)
host_load16 = _narrow_load("host_load16", 16)
host_load32 = _narrow_load("host_load32", 32)
host_store8 = _narrow_store("host_store8", 8)
host_store16 = _narrow_store("host_store16", 16)
host_store32 = _narrow_store("host_store32", 32)


def _copy(size):
    """One load and one store, aligned or not: LLVM splits neither a word nor a vector that the machine has."""

    @intrinsic
    def operation(_typing, target, source):
        def generate(context, builder, _signature, args):
            kind = ir.VectorType(_I64, 2) if size == 16 else ir.IntType(8 * size)
            pointers = [builder.inttoptr(each, ir.PointerType(kind)) for each in args]
            builder.store(builder.load(pointers[1], align=1, typ=kind), pointers[0], align=1)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), generate

    operation.__name__ = f"host_copy{size}"
    return operation


host_copy2, host_copy4, host_copy8, host_copy16 = (_copy(size) for size in (2, 4, 8, 16))


def _syscall(builder, *args):
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I64, [_I64] * 7), "syscall")
    return builder.call(function, [*args, *[_I64(0)] * (7 - len(args))])


@intrinsic
def system_call(_typing, number, first, second, third):
    def generate(_context, builder, _signature, args):
        answer = _syscall(builder, *args)
        i32 = ir.IntType(32)
        location = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.PointerType(i32), []), "__errno_location"
        )
        number = builder.zext(builder.load(builder.call(location, []), typ=i32), _I64)
        return builder.select(builder.icmp_signed("==", answer, _I64(-1)), builder.neg(number), answer)

    return types.uint64(*[types.uint64] * 4), generate


@intrinsic
def wait_for(_typing, words, index, expected, nanoseconds):
    def generate(context, builder, signature, args):
        address = builder.ptrtoint(_pointer(context, builder, signature, args), _I64)
        pair = ir.ArrayType(_I64, 2)
        spec = cgutils.alloca_once(builder, pair)
        second = _I64(1_000_000_000)
        for place, value in enumerate((builder.udiv(args[3], second), builder.urem(args[3], second))):
            builder.store(value, builder.gep(spec, [ir.IntType(32)(0), ir.IntType(32)(place)]))
        for_ever = builder.icmp_unsigned("==", args[3], _I64(U64_MAX))
        timeout = builder.select(for_ever, _I64(0), builder.ptrtoint(spec, _I64))
        _syscall(builder, _I64(SYS_FUTEX), address, _I64(FUTEX_WAIT_PRIVATE), args[2], timeout)
        return context.get_dummy_value()

    return types.void(words, types.uint64, types.uint64, types.uint64), generate


@intrinsic
def wait(_typing, words, index, expected):
    def generate(context, builder, signature, args):
        address = builder.ptrtoint(_pointer(context, builder, signature, args), _I64)
        _syscall(builder, _I64(SYS_FUTEX), address, _I64(FUTEX_WAIT_PRIVATE), args[2])
        return context.get_dummy_value()

    return types.void(words, types.uint64, types.uint64), generate


@intrinsic
def wake(_typing, words, index, count):
    def generate(context, builder, signature, args):
        address = builder.ptrtoint(_pointer(context, builder, signature, args), _I64)
        _syscall(builder, _I64(SYS_FUTEX), address, _I64(FUTEX_WAKE_PRIVATE), args[2])
        return context.get_dummy_value()

    return types.void(words, types.uint64, types.uint64), generate


@intrinsic
def now(_typing):
    """Nanoseconds since an arbitrary start; about 20 ns a call in compiled code."""

    def generate(_context, builder, _signature, _args):
        i64, i32 = _I64, ir.IntType(32)
        spec = cgutils.alloca_once(builder, ir.ArrayType(i64, 2))
        first = builder.gep(spec, [i32(0), i32(0)])
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(i32, [i32, first.type]), "clock_gettime"
        )
        builder.call(function, [i32(time.CLOCK_MONOTONIC), first])
        second = builder.gep(spec, [i32(0), i32(1)])
        seconds = builder.mul(builder.load(first, typ=i64), i64(1_000_000_000))
        return builder.add(seconds, builder.load(second, typ=i64))

    return types.uint64(), generate
