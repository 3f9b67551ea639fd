"""The HTTP servers that benchmarks/serve.py compares, and the client that loads both alike.

Each runs as a process of its own and answers POST /v1/completions. The client sends all prompts of
a batch at once, each on a connection of its own, and waits for the last answer: what is measured is
output, not how it is streamed.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from abyssal.serve.process import running
from abyssal.tokenizer.bpe import Tokenizer

READY_S = 120.0  # for a server to load its model


def abyssal_serve(folder: Path, threads: int) -> "Server":
    """`abyssal serve` as anybody starts it; a small model runs in float32 then."""

    def command(way: str, port: int) -> list[str]:
        return [
            sys.executable,
            "-m",
            "abyssal",
            "serve",
            str(folder),
            "--port",
            str(port),
            "--no-history",
        ]

    return Server(("as it is",), command, {"ignore_eos": True}, folder, threads)


def llama_serve(folder: Path, file: Path, length: int, threads: int) -> "Server":
    """`python -m llama_cpp.server` with a file of the folder's model, for `length` tokens in all.

    It serves one request at a time. It cannot ignore end-of-sentence, so that is never drawn.
    """

    def command(way: str, port: int) -> list[str]:
        options = {
            "model": file,
            "host": "127.0.0.1",
            "port": port,
            "n_ctx": length + 8,
            "n_batch": max(length, 512),
            "n_threads": threads,
            "n_threads_batch": threads,
            "flash_attn": way == "flash",
            "logits_all": False,  # or it keeps the logits of all positions, for logprobs
            "verbose": False,
        }
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        return [sys.executable, "-m", "llama_cpp.server", *words]

    never = {str(Tokenizer.load(folder).eos_token_id): -100}
    body = {"logit_bias": never, "logit_bias_type": "input_ids", "repeat_penalty": 1.0}
    return Server(("flash", "plain"), command, body, folder, threads)


class Server:
    """A server process in one of several ways to run it, and a client of it."""

    def __init__(
        self,
        ways: Sequence[str],
        command: Callable[[str, int], list[str]],  # from a way and a port
        body: dict[str, object],  # what it must be told besides prompt, length and temperature
        folder: Path,
        threads: int,
    ):
        self.ways = ways
        self._command, self._body = command, body
        self._tokenizer, self._threads = Tokenizer.load(folder), threads
        self._way = ""
        self._stack = contextlib.ExitStack()
        self._loop = asyncio.Runner()

    def choose(self, way: str, batch: int, length: int) -> None:
        """Start the server so, unless it runs so already."""
        if way == self._way:
            return
        self._stack.close()
        port = _free_port()
        command = self._command(way, port)
        started = self._stack.enter_context(running(command, _environment(self._threads)))
        url = f"http://127.0.0.1:{port}/v1"
        self._client = httpx.AsyncClient(base_url=url, timeout=None, trust_env=False)
        self._stack.callback(lambda: self._loop.run(self._client.aclose()))
        self._model = self._loop.run(self._until_ready(started.process))
        if not self._model:
            said = "\n".join(started.lines()[-20:])
            raise SystemExit(f"{' '.join(command)}: no answer in {READY_S:.0f} s\n{said}")
        self._way = way

    async def _until_ready(self, process: "subprocess.Popen[str]") -> str:
        """The name of the model it serves; empty if it ended or takes too long."""
        end = time.monotonic() + READY_S
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):
                reply = await self._client.get("/models")
                if reply.status_code == 200:
                    name: str = reply.json()["data"][0]["id"]
                    return name
            await asyncio.sleep(0.1)
        return ""

    def generate(self, prompts: list[list[int]], count: int) -> list[str]:
        """The texts of all answers; every one was count tokens long."""
        return self._loop.run(self._load(prompts, count))

    async def _load(self, prompts: list[list[int]], count: int) -> list[str]:
        return list(await asyncio.gather(*(self._complete(prompt, count) for prompt in prompts)))

    async def _complete(self, prompt: list[int], count: int) -> str:
        body = {
            "model": self._model,
            "prompt": self._tokenizer.decode(prompt[1:]),  # every server adds BOS
            "max_tokens": count,
            "temperature": 0,
        }
        reply = await self._client.post("/completions", json=body | self._body)
        if reply.status_code != 200:
            raise SystemExit(f"{reply.request.url}: {reply.status_code} {reply.text[:500]}")
        answer = reply.json()
        read, wrote = (answer["usage"][f"{kind}_tokens"] for kind in ("prompt", "completion"))
        assert (read, wrote) == (len(prompt), count), f"{read} tokens were read, {wrote} written"
        text: str = answer["choices"][0]["text"]
        return text

    def close(self) -> None:
        """End the server and the client."""
        self._stack.close()
        self._loop.close()


def _environment(threads: int) -> dict[str, str]:
    """Ours without bound threads, which would leave event loop and engine on one core."""
    bound = ("OMP_PROC_BIND", "OMP_PLACES")
    kept = {name: value for name, value in os.environ.items() if name not in bound}
    return kept | {"OMP_NUM_THREADS": str(threads)}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
