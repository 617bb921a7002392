"""A divergence as a program that anyone can run: a Python script, or C against <linux/kvm.h>."""

from __future__ import annotations

from .calls import (
    ARENA,
    ARENA_BYTES,
    BUFFER,
    BUFFER_BYTES,
    DONE_GPA,
    HOME_GPA,
    HOME_HVA,
    HOME_SLOT,
    LOG_BYTES,
    Answer,
    Call,
)
from .guest import CODE, HOME_BYTES, MAPPED_BYTES, TABLES_GPA
from .replay import answer_in_words
from .run import Divergence

__all__ = ["as_c", "as_python"]

# ruff: noqa: E101 - C is indented by tabs


def _heading(found: Divergence, name: str) -> list[str]:
    call = found.calls[found.at]
    return [
        f"{name}",
        f"answers call {found.at + 1} of {len(found.calls)}, {call},",
        f"with {answer_in_words(found.answered[found.at])};",
        f"guestmem's model of KVM answers {answer_in_words(found.expected[found.at])}.",
    ]


def as_python(found: Divergence, name: str) -> str:
    """A script that carries the calls out and prints each answer; it exits with 1 if the kernel still diverges."""
    lines = ['"""' + "\n".join(_heading(found, name)) + '\n"""', "", "from guestmem.conform.calls import Answer, Call"]
    lines += ["from guestmem.conform.replay import replay", "", "CALLS = ["]
    for (kind, args), answer in zip(found.calls, found.expected, strict=True):
        numbers = ", ".join(f"{value:#x}" for value in args)
        expected = "None" if answer is None else _answer(answer)
        lines.append(f'    (Call("{kind}", ({numbers}{"," if len(args) == 1 else ""})), {expected}),')
    lines += ["]", "", 'if __name__ == "__main__":', "    raise SystemExit(replay(CALLS))"]
    return "\n".join(lines) + "\n"


def _answer(answer: Answer) -> str:
    given = [str(answer.result)]
    if answer.log or answer.exits:
        given.append(repr(answer.log))
    if answer.exits:
        given.append(repr(answer.exits))
    return f"Answer({', '.join(given)})"


_C_HEAD = r"""
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Not in every <linux/kvm.h>. */
struct region2 {
	uint32_t slot, flags;
	uint64_t guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
	uint32_t guest_memfd, pad1;
	uint64_t pad2[14];
};
struct guest_memfd { uint64_t size, flags, reserved[6]; };
struct dirty_gfn { uint32_t flags, slot; uint64_t offset; };
#define SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct region2)
#define CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct guest_memfd)
#define RESET_DIRTY_RINGS _IO(KVMIO, 0xc7)
#define DIRTY_RING_FULL 31
#define RING_OFFSET (64 * 4096)
#define UNUSED __attribute__((unused))

#define BUFFER ((unsigned char *)@BUFFER@UL)

static int kvm, vm, vcpu = -1, files[256], nfiles, differs;
static uint32_t ring_bytes, ring_next, harvested;
static struct kvm_run *run;
static volatile struct dirty_gfn *ring;

static long result_of(long result) { return result < 0 ? -errno : result; }

static void says(const char *call, long result, long expected)
{
	printf("%s\n    kernel: %ld\n", call, result);
	if (result != expected) {
		printf("    model:  %ld\n", expected);
		differs = 1;
	}
}

UNUSED static int file_of(unsigned int file)
{
	if (file == 1)
		return kvm;
	if (file == 2)
		return vm;
	return file >= 3 && nfiles ? files[(file - 3) % nfiles] : 0x7fffffff;
}

UNUSED static long keep(long fd)
{
	if (fd >= 0)
		files[nfiles++] = fd;
	return fd < 0 ? -errno : 0;
}

UNUSED static long region(uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, uint64_t hva)
{
	struct kvm_userspace_memory_region r = { slot, flags, gpa, size, hva };
	return result_of(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &r));
}

UNUSED static long region2(uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, uint64_t hva, uint64_t offset,
		    unsigned int file, int padding)
{
	struct region2 r;
	memset(&r, padding, sizeof(r));
	r.slot = slot; r.flags = flags; r.guest_phys_addr = gpa; r.memory_size = size; r.userspace_addr = hva;
	r.guest_memfd_offset = offset; r.guest_memfd = file_of(file);
	return result_of(ioctl(vm, SET_USER_MEMORY_REGION2, &r));
}

UNUSED static long get_log(uint32_t slot, uint32_t padding, uint64_t address)
{
	struct kvm_dirty_log log = { .slot = slot, .padding1 = padding, .dirty_bitmap = (void *)address };
	memset(BUFFER, 0xa5, @LOG_BYTES@);
	return result_of(ioctl(vm, KVM_GET_DIRTY_LOG, &log));
}

UNUSED static long clear_log(uint32_t slot, uint32_t num_pages, uint64_t first_page, uint64_t address, int pattern)
{
	struct kvm_clear_dirty_log log = { .slot = slot, .num_pages = num_pages, .first_page = first_page,
					   .dirty_bitmap = (void *)address };
	memset(BUFFER, pattern, @BUFFER_BYTES@);
	return result_of(ioctl(vm, KVM_CLEAR_DIRTY_LOG, &log));
}

UNUSED static long cap(uint32_t number, uint32_t flags, uint64_t argument)
{
	struct kvm_enable_cap c = { .cap = number, .flags = flags, .args = { argument } };
	long result = result_of(ioctl(vm, KVM_ENABLE_CAP, &c));
	if (!result && (number == 192 || number == 223))
		ring_bytes = argument;
	return result;
}

UNUSED static long extension(long number) { return result_of(ioctl(vm, KVM_CHECK_EXTENSION, number)); }
UNUSED static long new_vcpu(long id) { long fd = ioctl(vm, KVM_CREATE_VCPU, id); return fd < 0 ? -errno : 0; }
UNUSED static long mmu_pages(long count) { return result_of(ioctl(vm, KVM_SET_NR_MMU_PAGES, count)); }
UNUSED static long bad_pointer(unsigned long request) { return result_of(ioctl(vm, request, 8)); }
UNUSED static long unknown(unsigned long request) { return result_of(ioctl(vm, request, 0)); }

UNUSED static long guest_memfd(uint64_t size, uint64_t flags)
{
	struct guest_memfd g = { .size = size, .flags = flags };
	return keep(ioctl(vm, CREATE_GUEST_MEMFD, &g));
}

/* A guest in 64-bit user mode that writes a word to page after page. */
UNUSED static long home(void)
{
	static const unsigned char code[] = { @CODE@ };
	unsigned char *memory = (void *)@HOME_HVA@UL;
	uint64_t *tables = (void *)(memory + 4096), page;
	struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; } cpuid = { .head.nent = 256 };
	struct kvm_sregs sregs;
	struct kvm_segment data = { .limit = 0xffffffff, .selector = 0x23, .type = 3, .present = 1, .dpl = 3, .db = 1,
				    .s = 1, .g = 1 };
	long result = region(@HOME_SLOT@, 0, @HOME_GPA@UL, @HOME_BYTES@, @HOME_HVA@UL);
	if (result)
		return result;
	memcpy(memory, code, sizeof(code));
	tables[0] = @TABLES_GPA@UL + 4096 + 0x67;
	tables[512] = @TABLES_GPA@UL + 8192 + 0x67;
	for (page = 0; page < @MAPPED@ >> 21; page++)
		tables[1024 + page] = @TABLES_GPA@UL + 4096 * (3 + page) + 0x67;
	for (page = 0; page < @MAPPED@ >> 12; page++)
		tables[1536 + page] = page * 4096 + 0x67;
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		return -errno;
	run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (ring_bytes)
		ring = mmap(0, ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, RING_OFFSET);
	ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid);
	ioctl(vcpu, KVM_SET_CPUID2, &cpuid);
	ioctl(vcpu, KVM_GET_SREGS, &sregs);
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cs = data;
	sregs.cs.selector = 0x1b; sregs.cs.type = 11; sregs.cs.db = 0; sregs.cs.l = 1;
	sregs.cr0 = 0x80050033; sregs.cr3 = @TABLES_GPA@UL; sregs.cr4 = 0x620; sregs.efer = 0xd00;
	return result_of(ioctl(vcpu, KVM_SET_SREGS, &sregs));
}

UNUSED static long write_pages(uint64_t gpa, uint64_t pages)
{
	struct kvm_regs regs = { .rip = @HOME_GPA@UL, .rflags = 2, .rax = 1, .rbx = gpa, .rcx = pages };
	long result = result_of(ioctl(vcpu, KVM_SET_REGS, &regs));
	int exits = 0;
	while (result >= 0 && exits++ < 512) {
		result = result_of(ioctl(vcpu, KVM_RUN, 0));
		if (result == -EINTR) {
			result = 0;
			continue;
		}
		if (result < 0)
			return result;
		if (run->exit_reason != KVM_EXIT_MMIO) {
			printf("    exit %u\n", run->exit_reason);
			break;
		}
		if (run->mmio.phys_addr == @DONE_GPA@UL)
			break;
		printf("    exit: mmio write at 0x%llx\n", (unsigned long long)run->mmio.phys_addr);
	}
	run->immediate_exit = 1;
	ioctl(vcpu, KVM_RUN, 0);
	run->immediate_exit = 0;
	return result;
}

UNUSED static long harvest(void)
{
	for (; ring; ring_next++, harvested++) {
		volatile struct dirty_gfn *entry = &ring[ring_next % (ring_bytes / 16)];
		if (entry->flags != 1)
			break;
		printf("    0x%x+0x%llx\n", entry->slot, (unsigned long long)entry->offset);
		entry->flags = 3;
	}
	return 0;
}

UNUSED static long reset(void)
{
	long result = result_of(ioctl(vm, RESET_DIRTY_RINGS, 0)), given = harvested;
	if (result < 0)
		return result;
	harvested = 0;
	return result - given;
}

UNUSED static void log_says(const unsigned char *expected)
{
	int at;
	if (!memcmp(BUFFER, expected, @LOG_BYTES@))
		return;
	differs = 1;
	printf("    log:   ");
	for (at = 0; at < @LOG_BYTES@; at++)
		printf(" %02x", BUFFER[at]);
	printf("\n    model: ");
	for (at = 0; at < @LOG_BYTES@; at++)
		printf(" %02x", expected[at]);
	printf("\n");
}

int main(void)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;

	kvm = open("/dev/kvm", O_RDWR);
	vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0) {
		perror("/dev/kvm");
		return 2;
	}
	if (mmap((void *)@ARENA@UL, @ARENA_BYTES@, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED ||
	    mmap(BUFFER, @BUFFER_BYTES@, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) {
		perror("mmap");
		return 2;
	}
"""

_C_NAMES = {"vcpu": "new_vcpu", "write": "write_pages"}


def as_c(found: Divergence, name: str) -> str:
    """A C program against <linux/kvm.h> that carries the calls out; it exits with 1 if the kernel still diverges.

    Exits of guest writes and harvested entries are printed; results and logs are compared.
    """
    values = {
        "BUFFER": f"{BUFFER:#x}",
        "BUFFER_BYTES": str(BUFFER_BYTES),
        "LOG_BYTES": str(LOG_BYTES),
        "CODE": ", ".join(f"{byte:#04x}" for byte in CODE),
        "HOME_HVA": f"{HOME_HVA:#x}",
        "HOME_SLOT": str(HOME_SLOT),
        "HOME_GPA": f"{HOME_GPA:#x}",
        "HOME_BYTES": f"{HOME_BYTES:#x}",
        "TABLES_GPA": f"{TABLES_GPA:#x}",
        "MAPPED": f"{MAPPED_BYTES:#x}",
        "DONE_GPA": f"{DONE_GPA:#x}",
        "ARENA": f"{ARENA:#x}",
        "ARENA_BYTES": f"{ARENA_BYTES:#x}",
    }
    head = _C_HEAD
    for key, value in values.items():
        head = head.replace(f"@{key}@", value)
    lines = ["/*", *(f" * {line}" for line in _heading(found, name)), " */", "#define _GNU_SOURCE" + head]
    for call, answer in zip(found.calls, found.expected, strict=True):
        if answer is not None:
            lines += _c_call(call, answer)
    lines += ["\treturn differs;", "}"]
    return "\n".join(lines) + "\n"


def _c_call(call: Call, answer: Answer) -> list[str]:
    numbers = ", ".join(f"{value:#x}{'ULL' if value >> 31 else ''}" for value in call.args)
    lines = [f'\tsays("{call}", {_C_NAMES.get(call.kind, call.kind)}({numbers}), {answer.result});']
    if answer.exits:
        lines.append(f"\t/* {'; '.join(answer.exits)} */")
    if answer.log:
        log = ", ".join(f"{byte:#04x}" for byte in answer.log)
        lines.append(f"\tlog_says((const unsigned char[]){{ {log} }});")
    return lines
