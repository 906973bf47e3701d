"""Runs a program, and at SIGUSR1 stops every thread of it but the one that is named.

    freeze.py KEEP PROGRAM ARGUMENT...

What is left is a process whose loops are stuck while its watchdog is not: a signal could only stop
all of it. Exits as the program does; SIGTERM is handed on to it.
"""

import ctypes
import os
import signal
import sys

PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
WALL = 0x40000000


def main():
    keep, command = sys.argv[1], sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    child = os.fork()
    if child == 0:
        os.execv(command[0], command)

    def ptrace(request, thread):
        if libc.ptrace(request, thread, None, None) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), f"thread {thread}")

    def freeze(*_):
        for thread in map(int, os.listdir(f"/proc/{child}/task")):
            with open(f"/proc/{child}/task/{thread}/comm", encoding="utf-8") as file:
                if file.read().strip() == keep:
                    continue
            ptrace(PTRACE_SEIZE, thread)
            ptrace(PTRACE_INTERRUPT, thread)

    signal.signal(signal.SIGUSR1, freeze)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    # Whoever traces threads has to wait for each of them, or the process never ends.
    while True:
        process, status = os.waitpid(-1, WALL)
        if process == child and not os.WIFSTOPPED(status):
            sys.exit(os.waitstatus_to_exitcode(status) % 256)


main()
