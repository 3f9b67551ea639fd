"""Lives of the command line without the wait for imports: a process that forks a child for each.

Reads the words of a command as a JSON list a line; writes the child's process id, then, when it
is over, its exit code (minus the signal if it was killed).
"""

import json
import os
import sys

from abyssal.cli.main import main
from abyssal.train import training  # noqa: F401 (imported before the first fork)


def live(words: list[str]) -> int:
    """Run one command in this process -> its exit code."""
    os.dup2(2, 1)  # the protocol owns standard output
    sys.argv = ["abyssal", *words]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = live(json.loads(line))
            finally:
                os._exit(code)
        os.write(1, f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())
