"""Two processes that train together, kept for many runs: their start is what takes time."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import abyssal
from abyssal.train.training import Training
from tests.train.conftest import Finished, base, course, look  # noqa: F401 (the toy runs)

ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(abyssal.__file__).parents[1]),
    "GLOO_SOCKET_IFNAME": "lo",
    "MASTER_ADDR": "127.0.0.1",
}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="session")
def crew(tmp_path_factory) -> Iterator[Callable[..., list]]:
    """crew(order, other): an order to each of two processes -> what each answers (worker.py)."""
    script, port = Path(__file__).with_name("worker.py"), str(free_port())
    log = tmp_path_factory.mktemp("crew")
    with ExitStack() as stack:
        processes = []
        for rank in range(2):
            numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            errors = stack.enter_context((log / f"{rank}").open("w"))
            process = subprocess.Popen(
                [sys.executable, script], env=ENVIRONMENT | numbers | {"MASTER_PORT": port},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)

        def tell(*orders: dict) -> list:
            for process, order in zip(processes, orders, strict=True):
                process.stdin.write(json.dumps(order, default=str) + "\n")
                process.stdin.flush()
            lines = [process.stdout.readline() for process in processes]
            assert all(lines), "\n".join(path.read_text() for path in sorted(log.iterdir()))
            return [json.loads(line) for line in lines]

        yield tell


@pytest.fixture
def together(crew, course, request, tmp_path) -> Callable[..., list[dict]]:  # noqa: F811
    """together(changes, out="run"): one run by two processes -> what each saw of it.

    Other keywords are of the order; those under `second` are for the second process alone.
    """

    def run(
        changes: dict, out: str = "run", stage: str = "toy", second: dict | None = None, **order
    ) -> list[dict]:
        init = {} if stage == "toy" else {"init": request.getfixturevalue("base")}
        order |= {"recipe": course.root / f"{stage}.toml",
                  "changes": {"out": tmp_path / out, **init, **changes}}  # fmt: skip
        return crew(order, order | (second or {}))

    return run


@pytest.fixture
def alone(course, look, request, tmp_path) -> Callable[..., Finished]:  # noqa: F811
    """alone(changes, out="run"): the same by one process, or only to step `drop`."""

    def run(changes: dict, out: str = "run", stage: str = "toy", drop: int = 0) -> Finished:
        init = {} if stage == "toy" else {"init": request.getfixturevalue("base")}
        recipe, changes = course.root / f"{stage}.toml", {**init, **changes}
        return one_process(recipe, changes, tmp_path / out, look, drop)

    return run


def one_process(
    recipe: Path,
    changes: dict,
    out: Path,
    look: Callable[[Path], Finished],  # noqa: F811
    drop: int = 0,
) -> Finished | None:
    """A run by this process, to its end or only to step `drop`."""
    steps = Training(recipe, {"out": out, **changes}).steps()
    for row in steps:
        if row.step == drop:
            steps.close()
    return None if drop else look(out)
