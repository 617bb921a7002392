"""What vCPUs and host threads do with a guest_memfd while it is converted: compiled loops that count what they saw.

A private write leaves a word with the top bit set, everybody else's has it clear; and who makes memory shared clears it
first. So a host that reads such a word has seen private memory, and so has a vCPU that reads one by a shared access: a
stale mapping was used.
"""

from __future__ import annotations

from ...atomics import host_load, host_store, load_acquire, load_relaxed
from ...clock import now
from ...compiled import U64, Own, Words, compiled, const, u64
from ...gmem.fault import host_access, pin_page
from ...gmem.folio import folio_put, page_word
from ...gmem.layout import ADDRESS, BARRED, FOLIO, LAST, OK, POISON, PRESENT, WRONG_KIND
from ...stage2.tlb_layout import CONFLICT, HOST_ADDRESS
from ...stage2.tlb_walk import tlb_enter, tlb_leave, tlb_look, tlb_translate
from ...stage2.words import Table
from ...structure import Structure, name_fields
from .gmem_abort import GmemFault, gmem_abort
from .xorshift import xorshift

__all__ = ["clear_words", "host_run", "vcpu_run"]

RUN = Structure("run", "what all threads of a run share")
STOP = RUN.line("non-zero: leave")

OWN = Structure("own", "the words of one thread")
SEED = OWN.word("state of the random numbers")
LIMIT = OWN.word("accesses to make; 0: until STOP")
KIND = OWN.word("0 any access, else 1 shared read, 2 shared write, 3 private read, 4 private write")
KINDS = OWN.word("whether accesses have a kind: without, none writes what is private")
TARGETS = OWN.word("number of pages to choose from")
SHARED_BIT = OWN.word("of input addresses: a shared access")
USERSPACE = OWN.word("where shared memory is, if not in the file")
ATTRIBUTES = OWN.word("of leaves")
HOST = OWN.word("its place among the host's threads")
PINS = OWN.word("of 1024 accesses of the host, how many pin a page")
PINNED = OWN.word("1 + the page that it holds")
EXIT_FLAGS = OWN.word("of the last KVM_EXIT_MEMORY_FAULT")
EXIT_GPA = OWN.word("of the last KVM_EXIT_MEMORY_FAULT; its size is a page")
WORST = OWN.word("longest fault, ns")
ACCESSES = OWN.counter("accesses that went to memory")
FAULTS = OWN.counter("faults")
MEMORY_FAULTS = OWN.counter("exits for an access of the wrong kind")
SAW_PRIVATE = OWN.counter("private words seen by the host, or by a shared access")
REFUSED = OWN.counter("accesses of the host that ended in SIGBUS")
HELD = OWN.counter("pages pinned")
OUT = OWN.words(4, "what faults write")
name_fields(globals())

_ONE = const(1)
_TWO = const(2)
_SECRET = const(1 << 63)
_PAGE_SHIFT = const(12)
_MASK = const(1023)


@compiled
def _use(own: Own, address: U64, private: bool, write: bool, value: U64) -> None:
    """The access itself: 8 bytes."""
    own[ACCESSES] += _ONE
    if write:
        value = value >> 1
        if private and own[KINDS] != 0:
            value |= _SECRET
        host_store(address, value)
    elif host_load(address) & _SECRET != 0 and (not private):
        own[SAW_PRIVATE] += _ONE


@compiled(nogil=True)
def vcpu_run(inode: Words, states: Words, run: Words, own: Own, targets: Own, out: Own, table: Table, tlb: Own) -> U64:
    """Access pages at random, private and shared, until STOP or LIMIT; returns the accesses that went to memory."""
    shape, pool, _pages, mmu, _desk = table
    tlb_enter(shape, pool, mmu, tlb)
    made = u64(0)
    while (own[LIMIT] == 0 or made < own[LIMIT]) and load_acquire(run, STOP) == 0:
        made += _ONE
        random = xorshift(own, SEED)
        page = targets[(random >> 8) % own[TARGETS]]
        kind = own[KIND]
        if kind == 0:
            kind = _ONE + (random & u64(3))
        private = kind > 2 or own[KINDS] == 0
        write = kind & _ONE == 0
        ipa = page << _PAGE_SHIFT
        if not private:
            ipa |= own[SHARED_BIT]
        need = _ONE
        if write:
            need = _TWO
        tries = u64(0)
        while True:
            tlb_look(shape, pool, mmu, tlb)
            status = tlb_translate(shape, pool, mmu, tlb, ipa, ipa, need)
            if status == OK:
                _use(own, tlb[HOST_ADDRESS], private, write, random)
                break
            if status == CONFLICT:
                continue
            tlb_leave(mmu, tlb)
            begun = now()
            fault = GmemFault(page, private, own[SHARED_BIT], own[USERSPACE], own[ATTRIBUTES])
            came_to = gmem_abort(inode, states, table, fault, out)
            own[FAULTS] += _ONE
            own[WORST] = max(own[WORST], now() - begun)
            tlb_enter(shape, pool, mmu, tlb)
            tries += _ONE
            if came_to == WRONG_KIND or came_to == BARRED:  # noqa: SIM109 - no tuples in compiled code
                own[MEMORY_FAULTS] += _ONE
                own[EXIT_FLAGS] = u64(8) if private else u64(0)
                own[EXIT_GPA] = page << _PAGE_SHIFT
                break
            if came_to == POISON or tries > _MASK or load_acquire(run, STOP) != 0:
                break
    tlb_leave(mmu, tlb)
    return own[ACCESSES]


@compiled(nogil=True)
def host_run(inode: Words, states: Words, run: Words, own: Own, targets: Own, out: Own) -> U64:
    """The host reads, writes and pins pages at random until STOP or LIMIT: OK. A pin is held for some 1024 accesses.

    LAST: own[EXIT_GPA] is a page whose last reference was dropped; the caller tells, and calls again.
    """
    made = u64(0)
    while (own[LIMIT] == 0 or made < own[LIMIT]) and load_acquire(run, STOP) == 0:
        made += _ONE
        random = xorshift(own, SEED)
        page = targets[(random >> 8) % own[TARGETS]]
        if own[PINNED] != 0 and (random >> 40) & _MASK == 0:
            held = own[PINNED] - _ONE
            own[PINNED] = u64(0)
            if folio_put(inode, held):
                own[EXIT_GPA] = held
                return LAST
        kind = own[KIND]
        if kind == 0:
            kind = _ONE + (random & _ONE)
        write = kind & _ONE == 0
        if own[USERSPACE] != 0:
            _use(own, own[USERSPACE] + (page << _PAGE_SHIFT), False, write, random)
            continue
        if own[PINNED] == 0 and (random >> 48) & _MASK < own[PINS]:
            status = pin_page(inode, states, page, True)
            if status == OK:
                own[PINNED] = page + _ONE
                own[HELD] += _ONE
        else:
            status = host_access(inode, states, own[HOST], page << _PAGE_SHIFT, random >> 1, write, True, out)
            if status == OK:
                own[ACCESSES] += _ONE
                if not write and out[0] & _SECRET != 0:
                    own[SAW_PRIVATE] += _ONE
        if status == LAST:
            own[EXIT_GPA] = page
            return LAST
        if status != OK:
            own[REFUSED] += _ONE
    held = own[PINNED]
    own[PINNED] = u64(0)
    if held != 0 and folio_put(inode, held - _ONE):
        own[EXIT_GPA] = held - _ONE
        return LAST
    return OK


@compiled(nogil=True)
def clear_words(inode: Words, targets: Own, count: U64, first: U64, last: U64, value: U64) -> None:
    """Write ``value`` to the word that accesses go to of every target in pages [first, last] that is there."""
    at = u64(0)
    while at < count:
        page = targets[at]
        if first <= page <= last and load_relaxed(inode, page_word(page) + FOLIO) & PRESENT != 0:
            host_store(load_relaxed(inode, ADDRESS) + (page << _PAGE_SHIFT), value)
        at += _ONE
