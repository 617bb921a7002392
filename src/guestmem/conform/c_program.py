"""The C program of ``emit_c`` up to where its calls are made; @NAME@ stands for a value."""

from __future__ import annotations

__all__ = ["C_HEAD"]

# ruff: noqa: E101 - C is indented by tabs

C_HEAD = r"""
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
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
struct attributes { uint64_t address, size, attributes, flags; };
struct attributes2 { uint64_t offset, size, attributes, flags, error_offset, reserved[11]; };
struct dirty_gfn { uint32_t flags, slot; uint64_t offset; };
#define SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct region2)
#define CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct guest_memfd)
#define SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct attributes)
#define SET_MEMORY_ATTRIBUTES2 _IOWR(KVMIO, 0xd2, struct attributes2)
#define RESET_DIRTY_RINGS _IO(KVMIO, 0xc7)
#define DIRTY_RING_FULL 31
#define RING_OFFSET (64 * 4096)
#define UNUSED __attribute__((unused))

#define BUFFER ((unsigned char *)@BUFFER@UL)

static int kvm, vm, files[256], nfiles, differs;
static uint32_t ring_bytes, harvested;

/* The vCPUs of home and of second. */
static struct guest {
	int vcpu;
	struct kvm_run *run;
	volatile struct dirty_gfn *ring;
	uint32_t ring_next;
} guests[2] = { { .vcpu = -1 }, { .vcpu = -1 } };

static long result_of(long result) { return result < 0 ? -errno : result; }

static void print_result(const char *whose, long result)
{
	printf("    %-8s%ld%s%s\n", whose, result, result < 0 ? ", " : "", result < 0 ? strerror(-result) : "");
}

static void says(const char *call, long result, long expected)
{
	printf("%s\n", call);
	print_result("kernel:", result);
	if (result != expected) {
		print_result("@OTHER@:", expected);
		differs = 1;
	}
}

/* What a guest met, or what was in its ring: texts, joined by "; ". */
static char met[1024][48];
static uint64_t met_gpa[1024];
static unsigned int met_pages[1024], nmet;

UNUSED static void meets(const char *what, uint64_t gpa)
{
	unsigned int last = nmet - 1;
	if (nmet && gpa != ~0ULL && !strcmp(met[last], what) && met_gpa[last] + met_pages[last] * 4096ULL == gpa) {
		met_pages[last]++;
		return;
	}
	if (nmet == 1024)
		return;
	snprintf(met[nmet], sizeof(met[nmet]), "%s", what);
	met_gpa[nmet] = gpa;
	met_pages[nmet++] = 1;
}

UNUSED static void exits_are(const char *expected)
{
	static char text[1024 * 96];
	size_t length = 0;
	unsigned int at;
	text[0] = 0;
	for (at = 0; at < nmet; at++) {
		length += snprintf(text + length, sizeof(text) - length, "%s%s", at ? "; " : "", met[at]);
		if (met_gpa[at] != ~0ULL)
			length += snprintf(text + length, sizeof(text) - length, " at 0x%llx",
					   (unsigned long long)met_gpa[at]);
		if (met_pages[at] > 1)
			length += snprintf(text + length, sizeof(text) - length, ", %u pages", met_pages[at]);
	}
	printf("    kernel: %s\n", text);
	if (strcmp(text, expected)) {
		printf("    %-8s%s\n", "@OTHER@:", expected);
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

UNUSED static long attributes(uint64_t address, uint64_t size, uint64_t bits, uint64_t flags)
{
	struct attributes a = { address, size, bits, flags };
	return result_of(ioctl(vm, SET_MEMORY_ATTRIBUTES, &a));
}

UNUSED static long file_attributes(unsigned int file, uint64_t offset, uint64_t size, uint64_t bits, uint64_t flags,
				   uint64_t reserved)
{
	struct attributes2 a = { .offset = offset, .size = size, .attributes = bits, .flags = flags };
	int at;
	for (at = 0; at < 11; at++)
		a.reserved[at] = reserved;
	return result_of(ioctl(file_of(file), SET_MEMORY_ATTRIBUTES2, &a));
}

/* A vCPU whose guest is in 64-bit user mode, and writes a word to page after page, or reads it. */
UNUSED static long new_guest(struct guest *guest, long id)
{
	struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; } cpuid = { .head.nent = 256 };
	struct kvm_sregs sregs;
	struct kvm_segment data = { .limit = 0xffffffff, .selector = 0x23, .type = 3, .present = 1, .dpl = 3, .db = 1,
				    .s = 1, .g = 1 };
	int vcpu = guest->vcpu = ioctl(vm, KVM_CREATE_VCPU, id);
	if (vcpu < 0)
		return -errno;
	guest->run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (ring_bytes)
		guest->ring = mmap(0, ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, RING_OFFSET);
	ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid);
	ioctl(vcpu, KVM_SET_CPUID2, &cpuid);
	ioctl(vcpu, KVM_GET_SREGS, &sregs);
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cs = data;
	sregs.cs.selector = 0x1b; sregs.cs.type = 11; sregs.cs.db = 0; sregs.cs.l = 1;
	sregs.cr0 = 0x80050033; sregs.cr3 = @TABLES_GPA@UL; sregs.cr4 = 0x620; sregs.efer = 0xd00;
	return result_of(ioctl(vcpu, KVM_SET_SREGS, &sregs));
}

UNUSED static long second(void) { return new_guest(&guests[1], @SECOND_VCPU@); }

/* Its code and tables, and the first vCPU. */
UNUSED static long home(void)
{
	static const unsigned char code[] = { @CODE@ };
	unsigned char *memory = (void *)@HOME_HVA@UL;
	uint64_t *tables = (void *)(memory + 4096), page;
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
	return new_guest(&guests[0], 0);
}

UNUSED static long touch(struct guest *guest, uint64_t code, uint64_t gpa, uint64_t pages)
{
	int vcpu = guest->vcpu;
	struct kvm_run *run = guest->run;
	struct kvm_regs regs = { .rip = code, .rflags = 2, .rax = 1, .rbx = gpa, .rcx = pages };
	long result = result_of(ioctl(vcpu, KVM_SET_REGS, &regs));
	char what[48];
	int exits = 0;
	nmet = 0;
	while (result >= 0 && exits++ < 512) {
		result = result_of(ioctl(vcpu, KVM_RUN, 0));
		if (result == -EINTR) {
			result = 0;
			continue;
		}
		if (result < 0)
			return result;
		if (run->exit_reason != KVM_EXIT_MMIO) {
			snprintf(what, sizeof(what), "exit %u", run->exit_reason);
			meets(run->exit_reason == DIRTY_RING_FULL ? "dirty ring full" :
			      run->exit_reason == KVM_EXIT_SHUTDOWN ? "shutdown" : what, ~0ULL);
			break;
		}
		if (run->mmio.phys_addr == @DONE_GPA@UL) {
			meets("done", ~0ULL);
			break;
		}
		snprintf(what, sizeof(what), "mmio %s %u", run->mmio.is_write ? "write" : "read", run->mmio.len);
		meets(what, run->mmio.phys_addr);
	}
	run->immediate_exit = 1;
	ioctl(vcpu, KVM_RUN, 0);
	run->immediate_exit = 0;
	return result;
}

UNUSED static long write_pages(uint64_t gpa, uint64_t pages) { return touch(&guests[0], @HOME_GPA@UL, gpa, pages); }
UNUSED static long read_pages(uint64_t gpa, uint64_t pages) { return touch(&guests[0], @READ_CODE_GPA@UL, gpa, pages); }
UNUSED static long write2(uint64_t gpa, uint64_t pages) { return touch(&guests[1], @HOME_GPA@UL, gpa, pages); }
UNUSED static long read2(uint64_t gpa, uint64_t pages) { return touch(&guests[1], @READ_CODE_GPA@UL, gpa, pages); }

static int by_text(const void *one, const void *other) { return strcmp(one, other); }

/* Entries of the ring, in order of their texts, each once. */
UNUSED static long harvest_of(struct guest *guest)
{
	unsigned int at, kept = 0;
	nmet = 0;
	for (; guest->ring; guest->ring_next++, harvested++) {
		volatile struct dirty_gfn *entry = &guest->ring[guest->ring_next % (ring_bytes / 16)];
		char what[48];
		if (entry->flags != 1)
			break;
		snprintf(what, sizeof(what), "0x%x+0x%llx", entry->slot, (unsigned long long)entry->offset);
		meets(what, ~0ULL);
		entry->flags = 3;
	}
	qsort(met, nmet, sizeof(met[0]), by_text);
	for (at = 0; at < nmet; at++)
		if (!kept || strcmp(met[at], met[kept - 1]))
			memmove(met[kept++], met[at], sizeof(met[at]));
	nmet = kept;
	return 0;
}

UNUSED static long harvest(void) { return harvest_of(&guests[0]); }
UNUSED static long harvest2(void) { return harvest_of(&guests[1]); }

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
	printf("\n    %-7s", "@OTHER@:");
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
