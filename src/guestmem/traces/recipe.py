"""A bpftrace program that records memslot changes and vCPUs on one clock, in three forms.

Linux has no tracepoint for memslots, and strace does not decode KVM_SET_USER_MEMORY_REGION2, so the program reads the
ioctl's argument itself, for both requests. ``syscalls`` hangs on the system call's tracepoints and needs neither BTF of
KVM nor kprobes; ``fentry`` (bpftrace's kfunc) and ``kprobe`` hang on ``kvm_vm_ioctl()`` and ``kvm_vcpu_ioctl()``
(Linux ``virt/kvm/kvm_main.c``). With each come kvm_entry, kvm_exit and kvm_userspace_exit. ``bpf`` reads what is
printed.
"""

from __future__ import annotations

__all__ = ["FORMS", "HEADER", "recipe"]

FORMS = ("syscalls", "fentry", "kprobe")
HEADER = "# guestmem-bpftrace 1"

HEAD = """\
// Memslot changes and vCPUs, on one clock, for guestmem check.
// Linux has no tracepoint for memslots, so the ioctl's argument is read here, for KVM_SET_USER_MEMORY_REGION
// (0x4020ae46) and its second version (0x40a0ae49): both structures begin alike. KVM_RUN is 0xae80.
#define u64 unsigned long long
#define u32 unsigned int
#define u16 unsigned short
#define u8 unsigned char
#define s64 long long
#define s32 int
#define s16 short
#define s8 signed char

struct guestmem_region
{
  u32 slot;
  u32 flags;
  u64 gpa;
  u64 size;
  u64 hva;
  u64 gmem_offset;
  u32 gmem_fd;
};

BEGIN
{
  printf("%s form=%s clock=nsecs\\n", "HEADER", "FORM");
}
"""

MEMSLOT = """\
{
  $r = (struct guestmem_region *)uptr(ARG);
  printf("%llu %d/%d [%d] memslot vm=VMFORMAT request=%x slot=%u flags=%x gpa=%llx size=%llx hva=%llx\\n",
         nsecs, pid, tid, cpu, VM, REQUEST, $r->slot, $r->flags, $r->gpa, $r->size, $r->hva);
  @memslot[tid] = 1;
}
"""
MEMSLOT_END = """\
{
  printf("%llu %d/%d [%d] memslot_end ret=%d\\n", nsecs, pid, tid, cpu, RETURNED);
  delete(@memslot[tid]);
}
"""
CREATE_VCPU = """\
{
  printf("%llu %d/%d [%d] create_vcpu vcpu=%d\\n", nsecs, pid, tid, cpu, ARG);
}
"""
CREATE_IRQCHIP = """\
{
  printf("%llu %d/%d [%d] create_irqchip\\n", nsecs, pid, tid, cpu);
}
"""
RUN = """\
{
  printf("%llu %d/%d [%d] run\\n", nsecs, pid, tid, cpu);
  @run[tid] = 1;
}
"""
RUN_END = """\
{
  printf("%llu %d/%d [%d] run_end ret=%d\\n", nsecs, pid, tid, cpu, RETURNED);
  delete(@run[tid]);
}
"""
TRACEPOINTS = """\
tracepoint:kvm:kvm_entryFILTER
{
  printf("%llu %d/%d [%d] kvm_entry vcpu=%d\\n", nsecs, pid, tid, cpu, args->vcpu_id);
}

tracepoint:kvm:kvm_exitFILTER
{
  printf("%llu %d/%d [%d] kvm_exit vcpu=%d isa=%d reason=%d\\n", nsecs, pid, tid, cpu, args->vcpu_id, args->isa,
         args->exit_reason);
}

tracepoint:kvm:kvm_userspace_exitFILTER
{
  printf("%llu %d/%d [%d] kvm_userspace_exit reason=%d errno=%d\\n", nsecs, pid, tid, cpu, args->reason, args->errno);
}
"""
END = """\
END
{
  clear(@memslot);
  clear(@run);
}
"""

PROBES = {
    "syscalls": {
        "memslot": "tracepoint:syscalls:sys_enter_ioctl",
        "memslot_end": "tracepoint:syscalls:sys_exit_ioctl",
        "run": "tracepoint:syscalls:sys_enter_ioctl",
        "run_end": "tracepoint:syscalls:sys_exit_ioctl",
        "REQUEST": "args->cmd",
        "ARG": "args->arg",
        "VM": "args->fd",
        "VMFORMAT": "%d",
        "RETURNED": "args->ret",
    },
    "fentry": {
        "memslot": "kfunc:kvm_vm_ioctl",
        "memslot_end": "kretfunc:kvm_vm_ioctl",
        "run": "kfunc:kvm_vcpu_ioctl",
        "run_end": "kretfunc:kvm_vcpu_ioctl",
        "REQUEST": "args->ioctl",
        "ARG": "args->arg",
        "VM": "(u64)args->filp",
        "VMFORMAT": "0x%llx",
        "RETURNED": "retval",
    },
    "kprobe": {
        "memslot": "kprobe:kvm_vm_ioctl",
        "memslot_end": "kretprobe:kvm_vm_ioctl",
        "run": "kprobe:kvm_vcpu_ioctl",
        "run_end": "kretprobe:kvm_vcpu_ioctl",
        "REQUEST": "arg1",
        "ARG": "arg2",
        "VM": "arg0",
        "VMFORMAT": "0x%llx",
        "RETURNED": "retval",
    },
}


def recipe(
    form: str = "syscalls", *, pid: int | str | None = None, entries: bool = True, fentry_name: str = "kfunc"
) -> str:
    """The program, of ``form`` syscalls, fentry or kprobe, for process ``pid``, or for all.

    ``pid`` may be ``cpid``, bpftrace's word for the command that it runs.

    ``entries`` is False for kernels without kvm_entry and kvm_exit on this architecture's fields. ``fentry_name`` is
    what the installed bpftrace calls fentry: ``kfunc`` to version 0.20, ``fentry`` later.

    >>> "tracepoint:syscalls:sys_enter_ioctl" in recipe(), "pid == 7" in recipe("kprobe", pid=7)
    (True, True)
    """
    words = PROBES[form]
    of_process = "" if pid is None else f" && pid == {pid}"
    parts = [HEAD.replace("HEADER", HEADER).replace("FORM", form)]

    def probe(name: str, condition: str, body: str) -> None:
        where = words[name]
        if fentry_name != "kfunc":
            where = where.replace("kretfunc", "fexit").replace("kfunc", fentry_name)
        for key in ("REQUEST", "ARG", "VMFORMAT", "VM", "RETURNED"):
            body = body.replace(key, words[key])
        parts.append(f"{where}\n/{condition}{of_process}/\n{body}")

    request = words["REQUEST"]
    probe("memslot", f"({request} == 0x4020ae46 || {request} == 0x40a0ae49)", MEMSLOT)
    probe("memslot_end", "@memslot[tid]", MEMSLOT_END)
    probe("memslot", f"{request} == 0xae41", CREATE_VCPU)
    probe("memslot", f"{request} == 0xae60", CREATE_IRQCHIP)
    probe("run", f"{request} == 0xae80", RUN)
    probe("run_end", "@run[tid]", RUN_END)
    tracepoints = TRACEPOINTS if entries else TRACEPOINTS[TRACEPOINTS.index("tracepoint:kvm:kvm_userspace_exit") :]
    parts.append(tracepoints.replace("FILTER", "" if pid is None else f"\n/pid == {pid}/"))
    parts.append(END)
    return "\n".join(parts)
