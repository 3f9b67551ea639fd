"""Which system calls a generated program may not make: a seccomp filter, as classic BPF.

Everything is allowed except what is listed here with its reason: an interpreter needs some hundred
calls, and which ones changes with every libc. A refused call fails with EPERM, as if the program
lacked the right; clone3 with ENOSYS, so that libc falls back to clone, whose flags can be read.
Calls of another architecture (32-bit, x32) end the program: their numbers mean something else.

seccomp(2); linux/seccomp.h, linux/bpf_common.h. Numbers are those of x86_64 and of aarch64.
"""

import errno
import struct

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*

# name: (x86_64, aarch64); None where the architecture has no such call
REFUSED: dict[str, dict[str, tuple[int | None, int | None]]] = {
    "reads or moves other processes": {
        "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
        "kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    },
    "changes what the file system is": {
        "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
        "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430),
        "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
        "mount_setattr": (442, 442), "open_by_handle_at": (304, 265), "quotactl": (179, 60),
        "quotactl_fd": (443, 443),
    },
    "gives rights over a namespace of its own, where most kernel bugs are reached from": {
        "unshare": (272, 97), "setns": (308, 268),
    },
    "large parts of the kernel that no answer to an exercise needs": {
        "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
        "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
        "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
        "fanotify_init": (300, 262), "lookup_dcookie": (212, 18), "syslog": (103, 116),
        "personality": (135, 92), "modify_ldt": (154, None), "iopl": (172, None),
        "ioperm": (173, None), "vhangup": (153, 58), "acct": (163, 89),
    },
    "changes the machine (they need rights too; a second lock)": {
        "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
        "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
        "swapon": (167, 224), "swapoff": (168, 225), "settimeofday": (164, 170),
        "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
        "sethostname": (170, 161), "setdomainname": (171, 162),
    },
    "memory that no limit of a process counts": {
        "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194),
        "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189),
        "semget": (64, 190), "mq_open": (240, 180), "mlock2": (325, 284), "mlockall": (151, 230),
    },
}  # fmt: skip
SOCKET, CLONE, CLONE3, IOCTL = (41, 198), (56, 220), (435, 435), (16, 29)
AF_UNIX = 1  # the other families reach out of the machine, or (vsock) out of the namespace
NEW_NAMESPACES = (
    0x7E020080  # CLONE_NEWUSER, NEWPID, NEWNET, NEWIPC, NEWUTS, NEWCGROUP, NEWNS, NEWTIME
)
TIOCSTI, TIOCLINUX = 0x5412, 0x541C  # type into somebody's terminal

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCH, FIRST_ARGUMENT, SECOND_ARGUMENT = 0, 4, 16, 24  # places in struct seccomp_data
X32 = 0x40000000


def seccomp_filter(machine: str) -> bytes | None:
    """The program for one kind of machine as an array of sock_filter; None where none is known."""
    if machine not in ARCHITECTURES:
        return None
    column = list(ARCHITECTURES).index(machine)
    refused = [call[column] for calls in REFUSED.values() for call in calls.values()]
    refuse = _step(RETURN, REFUSE | errno.EPERM)
    steps = [
        _step(LOAD, ARCH), _step(EQUAL, ARCHITECTURES[machine], 1, 0), _step(RETURN, KILL),
        _step(LOAD, NUMBER), _step(AT_LEAST, X32, 0, 1), _step(RETURN, KILL),
    ]  # fmt: skip
    for number in refused:
        if number is not None:
            steps += [_step(EQUAL, number, 0, 1), refuse]
    steps += [_step(EQUAL, CLONE3[column], 0, 1), _step(RETURN, REFUSE | errno.ENOSYS)]
    # Arguments are 64 bits; the kernel reads these as ints: the low half decides, and comes first.
    steps += [
        _step(EQUAL, SOCKET[column], 0, 4), _step(LOAD, FIRST_ARGUMENT),
        _step(EQUAL, AF_UNIX, 1, 0), refuse, _step(RETURN, ALLOW),
        _step(EQUAL, CLONE[column], 0, 4), _step(LOAD, FIRST_ARGUMENT),
        _step(ANY_BIT, NEW_NAMESPACES, 0, 1), refuse, _step(RETURN, ALLOW),
        _step(EQUAL, IOCTL[column], 0, 4), _step(LOAD, SECOND_ARGUMENT),
        _step(EQUAL, TIOCSTI, 1, 0), _step(EQUAL, TIOCLINUX, 0, 1), refuse,
    ]  # fmt: skip
    return b"".join([*steps, _step(RETURN, ALLOW)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One sock_filter: what to do, with what, and how many steps to skip either way."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
