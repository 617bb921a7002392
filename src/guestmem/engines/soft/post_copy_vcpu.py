"""vCPUs of a guest whose memory is still elsewhere, and the thread that sends it: compiled loops that count.

A page of the source has its number, tagged, in its first word. A vCPU that reads anything else there has seen a page
that was not there yet. Its writes go to a word of its own in the page, so that a page that is filled over them shows.
"""

from __future__ import annotations

from ...atomics import (
    compare_exchange,
    fetch_add,
    host_load,
    host_store,
    load_acquire,
    load_relaxed,
    store_release,
    wait_for,
    wake,
)
from ...clock import now
from ...compiled import U64, Own, Words, compiled, const, u64
from ...stage2.tlb_layout import CONFLICT, HOST_ADDRESS
from ...stage2.tlb_walk import tlb_enter, tlb_leave, tlb_look, tlb_translate
from ...stage2.words import Table
from ...structure import Structure, name_fields
from .userfault import USERFAULT, userfault_abort, userfault_clear
from .xorshift import xorshift

__all__ = ["TAG", "fill_page", "post_copy_run", "stream_run"]

TAG = const(0x5AFE << 48)
"""In the first word of each page of the source, with the page's number."""

RUN = Structure("run", "what all threads of a run share; behind it a word a page: 0 missing, 1 on its way, 2 there")
STOP = RUN.line("non-zero: leave")
NEVER = RUN.line("always 0: who waits on it sleeps for a while")
ARRIVED = RUN.line("pages that are there")
FINISHED = RUN.line("when the last one came, ns")
CLAIMS = RUN.line("a word a page, from here on")

OWN = Structure("own", "the words of one thread")
SEED = OWN.word("state of the random numbers")
LIMIT = OWN.word("accesses to make; 0: until STOP")
NPAGES = OWN.word("pages of the slot")
PAGE = OWN.word("1 + the page to access; 0: any")
MEMORY = OWN.word("host address of the guest's memory")
SOURCE = OWN.word("host address of the memory that it comes from")
LATENCY = OWN.word("of a request for one page, ns")
WAITS = OWN.word("what an exit is answered with: 1 fetch the page; 0 nothing, and leave")
ATTRIBUTES = OWN.word("of leaves")
WRITES = OWN.word("of four accesses, how many write")
MARK = OWN.word("the word of a page that writes go to")
EXIT_GPA = OWN.word("of the last exit for a userfault; its size is a page")
LOGGED = OWN.word("exits whose time is in the log")
WORST = OWN.word("longest exit, ns")
ACCESSES = OWN.counter("accesses that went to memory")
FAULTS = OWN.counter("faults")
USERFAULTS = OWN.counter("exits KVM_EXIT_MEMORY_FAULT with the userfault flag")
FETCHED = OWN.counter("pages that this thread fetched")
MISSING_SEEN = OWN.counter("reads of a page that was not there yet")
name_fields(globals())

_ONE, _TWO = const(1), const(2)
_PAGE_SHIFT = const(12)
_WORDS = const(512)
_EVERYBODY = const(0x7FFFFFFF)
_PATIENCE = const(10_000_000)


@compiled
def fill_page(source: U64, memory: U64, page: U64) -> None:
    """Copy one page from the source to the guest's memory."""
    at = page << _PAGE_SHIFT
    word = u64(0)
    while word < _WORDS:
        host_store(memory + at + (word << 3), host_load(source + at + (word << 3)))
        word += _ONE


@compiled(nogil=True)
def _fetch(slot: Words, run: Words, own: Own, page: U64, latency: U64) -> None:
    """Have a page come, or wait until it is there that another thread has asked for.

    Fill, then clear the bit, with release; then tell who waits.
    """
    claim = CLAIMS + page
    if compare_exchange(run, claim, u64(0), _ONE) == 0:
        if latency != 0:
            wait_for(run, NEVER, u64(0), latency)  # the source is far away
        fill_page(own[SOURCE], own[MEMORY], page)
        userfault_clear(slot, page)
        store_release(run, claim, _TWO)
        wake(run, claim, _EVERYBODY)
        own[FETCHED] += _ONE
        if fetch_add(run, ARRIVED, _ONE) + _ONE == own[NPAGES]:
            store_release(run, FINISHED, now())
        return
    while load_acquire(run, claim) == 1:
        wait_for(run, claim, _ONE, _PATIENCE)


@compiled(nogil=True)
def stream_run(slot: Words, run: Words, own: Own) -> U64:
    """Send all pages in order, without waiting for answers, until STOP; returns how many this thread sent."""
    page = u64(0)
    while page < own[NPAGES] and load_acquire(run, STOP) == 0:
        if load_relaxed(run, CLAIMS + page) == 0:
            _fetch(slot, run, own, page, u64(0))
        page += _ONE
    return own[FETCHED]


@compiled(nogil=True)
def post_copy_run(slot: Words, run: Words, own: Own, log: Own, written: Own, table: Table, tlb: Own) -> U64:
    """Access pages at random, a write in four, until STOP or LIMIT; returns the status of the last fault.

    ``log``: how long each exit took, from the fault until the page was there, ns; the first ones that it has room for.
    ``written``: a bit for each page that this thread wrote to.
    """
    shape, pool, _pages, mmu, _desk = table
    tlb_enter(shape, pool, mmu, tlb)
    made = u64(0)
    came_to = u64(0)
    while (own[LIMIT] == 0 or made < own[LIMIT]) and load_acquire(run, STOP) == 0:
        made += _ONE
        random = xorshift(own, SEED)
        page = (random >> 8) % own[NPAGES]
        if own[PAGE] != 0:
            page = own[PAGE] - _ONE
        write = random & u64(3) < own[WRITES]
        ipa = page << _PAGE_SHIFT
        while load_acquire(run, STOP) == 0:
            tlb_look(shape, pool, mmu, tlb)
            status = tlb_translate(shape, pool, mmu, tlb, ipa, ipa, _TWO)
            if status == 0:
                own[ACCESSES] += _ONE
                if write:
                    host_store(tlb[HOST_ADDRESS] + (own[MARK] << 3), TAG)
                    written[page >> 6] |= _ONE << (page & u64(63))
                elif host_load(tlb[HOST_ADDRESS]) != TAG | page:
                    own[MISSING_SEEN] += _ONE
                break
            if status == CONFLICT:
                continue
            tlb_leave(mmu, tlb)
            begun = now()
            own[FAULTS] += _ONE
            came_to = userfault_abort(slot, table, page, own[MEMORY], own[ATTRIBUTES])
            if came_to == USERFAULT:
                own[USERFAULTS] += _ONE
                own[EXIT_GPA] = ipa
                if own[WAITS] == 0:
                    return came_to
                _fetch(slot, run, own, page, own[LATENCY])
                took = now() - begun
                own[WORST] = max(own[WORST], took)
                if own[LOGGED] < u64(len(log)):
                    log[own[LOGGED]] = took
                    own[LOGGED] += _ONE
            tlb_enter(shape, pool, mmu, tlb)
    tlb_leave(mmu, tlb)
    return came_to
