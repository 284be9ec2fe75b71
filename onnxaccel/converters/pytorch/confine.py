"""Taking rights away from the current process, for good.

On Linux since 5.13 Landlock forbids it to write, create, remove or execute files anywhere but in one folder,
and since 6.7 to open TCP connections (see landlock(7)). Everywhere resource limits bound its memory, time
and files.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_NO_NEW_PRIVILEGES = 38
_EXECUTE, _WRITE_FILE, _TRUNCATE = 1 << 0, 1 << 1, 1 << 14
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15}
_TCP = 0b11


class _RulesetAttr(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("access", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def confine(folder: str, memory: int, seconds: int, file_size: int) -> bool:
    """Confine this process.

    Args:
        folder: The one folder where it may write.
        memory: Bytes of private memory that it may have.
        seconds: Processor seconds that it may use.
        file_size: Bytes that a file of its may have.

    Returns:
        Whether the kernel enforces the folder.
    """
    for limit, value in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, file_size),
    ):
        _, most = resource.getrlimit(limit)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(limit, (value, value))
    return sys.platform == "linux" and _landlock(folder)


def _landlock(folder: str) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    abi = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if abi < 1:
        return False
    rights = (1 << _FILE_RIGHTS_BY_ABI.get(abi, 15)) - 1
    handled = rights & ~_READ_FILE & ~_READ_DIR
    attr = _RulesetAttr(handled, _TCP if abi >= 4 else 0)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(attr), 16 if abi >= 4 else 8, 0)
    if ruleset < 0:
        return False
    try:
        writing = handled & ~_EXECUTE
        for path, access in ((folder, writing), ("/dev/null", handled & (_WRITE_FILE | _TRUNCATE))):
            descriptor = os.open(path, getattr(os, "O_PATH", 0))
            try:
                rule = _PathBeneath(access, descriptor)
                if libc.syscall(_ADD_RULE, ruleset, 1, ctypes.byref(rule), 0) < 0:
                    return False
            finally:
                os.close(descriptor)
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)
