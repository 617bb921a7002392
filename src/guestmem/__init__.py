"""guestmem: KVM's guest-memory subsystem as a library and a laboratory."""
