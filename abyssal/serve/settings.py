"""What decides how the model is served: where it listens, whom it answers, how much it takes.

Safe as it comes: only this machine reaches it. Any other address needs API keys.
"""

import hashlib
import ipaddress
import logging
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from abyssal.errors import ConfigError
from abyssal.tokenizer.template import Layout, check_layout

KEYS_VARIABLE = "ABYSSAL_API_KEYS"  # API keys in the environment, with commas or spaces between

MIN_KEY_CHARS = 16

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one model is served; whatever is out of range is refused here, before anything listens.

    Raises:
        ConfigError: a value is out of range, or the address is open to others without a key.
    """

    name: str  # the model id that clients send
    layout: Layout  # how conversations are laid out for this model
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allowed_hosts: tuple[str, ...] = ()  # names in the Host header besides addresses; "*": any
    cors_origins: tuple[str, ...] = ()  # web pages that may call, such as https://chat.example

    # What one request may bring
    max_body_bytes: int = 8 * 2**20
    max_depth: int = 64  # JSON objects and lists inside one another
    max_values: int = 2**20  # numbers, texts and so on; each takes up to 150 bytes of memory
    max_messages: int = 10_000
    max_tools: int = 128
    max_stops: int = 16  # DeepSeek's; OpenAI takes 4
    max_stop_chars: int = 1024
    max_words: int = 1024  # entries of bad_words, stop_token_ids and logit_bias, each
    max_n: int = 128
    max_answers: int = 256  # prompts times n of one request

    # Seconds
    body_timeout_s: float = 30.0  # until the whole body has come
    request_timeout_s: float = 1800.0  # until the answer is finished
    keep_alive_s: float = 10.0  # between signs of life while nothing is written
    drain_s: float = 30.0  # that answers get to finish when the server is stopped

    history: Path | None = None  # the file that keeps chats; None: they are not kept
    map_temperature: bool = False  # read temperatures as DeepSeek's service: 1.0 means 0.3

    def __post_init__(self) -> None:
        """Refuse values that cannot work, and doors left open."""
        check_layout(self.layout)
        _check_name(self.name)
        for field_name, (least, most) in _COUNTS.items():
            _check_count(field_name, getattr(self, field_name), least, most)
        for field_name in ("body_timeout_s", "request_timeout_s", "keep_alive_s", "drain_s"):
            _check_seconds(field_name, getattr(self, field_name))
        for place, key in enumerate(self.api_keys, 1):
            _check_key(key, f"API key {place} of {len(self.api_keys)}")
        _check_labels(self.api_keys)
        for origin in self.cors_origins:
            _check_origin(origin)
        for name in self.allowed_hosts:
            _check_host_name(name)
        self._check_doors()

    def _check_doors(self) -> None:
        """Without keys only this machine may reach the server, and no page of somebody else's."""
        if self.api_keys:
            return
        if not is_loopback(self.host):
            raise ConfigError(
                f"host={self.host} can be reached from other machines, and there are no API keys; "
                f"give a file of keys, set {KEYS_VARIABLE}, or listen on 127.0.0.1"
            )
        for name, values in (
            ("cors_origins", self.cors_origins),
            ("allowed_hosts", self.allowed_hosts),
        ):
            if "*" in values:
                raise ConfigError(
                    f"{name}=* without API keys lets every web page use the model; "
                    "name the ones you trust, or give a file of keys"
                )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on host."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def label_of(key: str) -> str:
    """What a key's owner is called in the log, the queue and the history: 8 hex digits."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]


def read_keys(file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The API keys in a file (one a line, # opens a comment) and in the environment, each once.

    Raises:
        ConfigError: the file cannot be read, or names no key, or a key is too short or has
            characters that no header can carry. The key itself is never shown.
    """
    keys: dict[str, str] = {}  # key -> where it was found, for messages
    if file is not None:
        for number, line in enumerate(_key_lines(file), 1):
            if (key := line.strip()) and not key.startswith("#"):
                keys.setdefault(key, f"the API key in line {number} of {file}")
        if not keys:
            raise ConfigError(f"{file} names no API key; write one a line")
    for place, key in enumerate(re.split(r"[\s,]+", environment.get(KEYS_VARIABLE, "")), 1):
        if key:
            keys.setdefault(key, f"API key {place} in {KEYS_VARIABLE}")
    for key, where in keys.items():
        _check_key(key, where)
    return tuple(keys)


_COUNTS = {
    "port": (0, 65535),
    "max_body_bytes": (1024, 2**31),
    "max_depth": (8, 256),  # above 8: a tool's schema is that deep; Python's stack is the limit
    "max_values": (1024, 2**31),
    "max_messages": (1, 10**6),
    "max_tools": (0, 10**4),
    "max_stops": (1, 1024),
    "max_stop_chars": (1, 10**6),
    "max_words": (1, 10**6),
    "max_n": (1, 1024),  # as SamplingParams
    "max_answers": (1, 10**6),
}
_KEY = re.compile(r"[!-~]+")  # printable ASCII without the space
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@*]+")
_HOST_NAME = re.compile(r"[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]+\]|\*")


def _key_lines(file: Path) -> list[str]:
    try:
        mode = file.stat().st_mode
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8"
        raise ConfigError(f"{file}: cannot read API keys: {reason}; check the path") from problem
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        _logger.warning("%s can be read by others on this machine; chmod 600 keeps it yours", file)
    return text.splitlines()


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= 200 or not name.isprintable():
        raise ConfigError(
            f"name={name!r:.60}, expected a model id of 1 to 200 printable characters"
        )


def _check_count(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{name}={value!r}, expected an integer from {least} to {most}")


def _check_seconds(name: str, value: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 86400:
        raise ConfigError(f"{name}={value!r}, expected seconds above 0, at most a day (86400)")


def _check_key(key: str, where: str) -> None:
    if len(key) < MIN_KEY_CHARS:
        raise ConfigError(
            f"{where} has {len(key)} characters, expected at least {MIN_KEY_CHARS}; "
            "`openssl rand -hex 24` makes a good one"
        )
    if not _KEY.fullmatch(key) or len(key) > 512:
        raise ConfigError(
            f"{where} cannot travel in a header; use up to 512 letters, digits and signs of ASCII, "
            "without spaces"
        )


def _check_labels(keys: tuple[str, ...]) -> None:
    """Refuse two keys that would be taken for one person, who shares a history with himself."""
    seen: dict[str, int] = {}
    for place, key in enumerate(dict.fromkeys(keys), 1):
        first = seen.setdefault(label_of(key), place)
        if first != place:
            raise ConfigError(
                f"API keys {first} and {place} have the same label {label_of(key)}, by which what "
                "belongs to them is told apart; make another one"
            )


def _check_origin(origin: str) -> None:
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise ConfigError(
            f"cors_origins has {origin!r:.60}, expected scheme://host or scheme://host:port in "
            "lower case, without a path; * stands for every page"
        )


def _check_host_name(name: str) -> None:
    if not _HOST_NAME.fullmatch(name):
        raise ConfigError(
            f"allowed_hosts has {name!r:.60}, expected a name such as models.example, without a "
            "port; * stands for every name"
        )
