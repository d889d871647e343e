"""Runs a command that does not outlive its parent: `python -I -S tether.py PARENT_PID COMMAND …`.

A `preexec_fn` would do this too, but it runs Python between fork and exec of a process full of gRPC threads.
Run as a file, so it imports nothing of the project.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        # The setting survives exec. KILL, because no process would be left to end a drain that hangs.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before prctl was called
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
