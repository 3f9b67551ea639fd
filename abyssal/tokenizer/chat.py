"""Conversations to tokens: the layouts of DeepSeek-V3, R1 and V3.1.

    BOS system <User> question <Assistant> answer EOS <User> ...           V3
                               <Assistant> <think> reasoning </think> ...  R1
                               <Assistant> </think> answer EOS             V3.1, not thinking

Control tokens come from the layout alone; whatever a message holds is encoded as text. Beside each
token stands whether the assistant writes it, which is what training scores.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from abyssal.errors import DataError
from abyssal.tokenizer import control
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.calls import Part, calls_parts
from abyssal.tokenizer.message import Message as Message
from abyssal.tokenizer.message import ToolCall as ToolCall
from abyssal.tokenizer.template import Layout as Layout
from abyssal.tokenizer.template import chat_template as chat_template
from abyssal.tokenizer.template import check_layout
from abyssal.tokenizer.tools import Tool, tools_parts


class Rendered(NamedTuple):
    """A conversation as the model reads it."""

    tokens: list[int]
    trained: list[bool]  # of the same length: True where the assistant writes the token


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    layout: Layout = "v3",
    thinking: bool = False,
    add_generation_prompt: bool = True,
    tools: Sequence[Tool] = (),
) -> Rendered:
    """The tokens of a conversation, up to where the assistant goes on if add_generation_prompt.

    Tools are declared at the end of the system text.

    R1 always thinks, V3 never does, V3.1 where thinking is set. Reasoning is shown after the last
    user message only: earlier turns lose it, as in the published templates. A prefix message stays
    open, nothing in it is trained, and no generation prompt follows it.

    Raises:
        DataError: the conversation is empty, a prefix message is not its last, thinking is asked
            of V3, two tools share a name, or the tokenizer lacks a token of the layout.
        ConfigError: there is no such layout.
    """
    check_layout(layout)
    _check_conversation(messages, layout, thinking)
    last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    writer = _Writer(layout, thinking)
    writer.mark(control.BOS)
    system = "\n\n".join(m.content or "" for m in messages if m.role == "system")
    writer.text(system + "\n\n" if system and tools else system)
    writer.parts(tools_parts(tools, layout))
    for i, message in enumerate(messages):
        if message.role != "system":
            writer.turn(message, is_current=i > last_user)
    writer.end(ask=add_generation_prompt and not messages[-1].prefix)
    return writer.encode(tokenizer)


class _Piece(NamedTuple):
    content: str
    is_control: bool
    trained: bool


class _Writer:
    """Lays one conversation out, turn by turn."""

    def __init__(self, layout: Layout, thinking: bool):
        self.layout = layout
        self.thinking = thinking
        self.hybrid = layout == "v3.1"
        self.previous = ""  # the role before this turn, system messages aside
        self.pieces: list[_Piece] = []

    def mark(self, name: str, trained: bool = False) -> None:
        """Add a control token."""
        self.pieces.append(_Piece(name, True, trained))

    def text(self, content: str, trained: bool = False) -> None:
        """Add text, in which nothing is a control token."""
        if content:
            self.pieces.append(_Piece(content, False, trained))

    def parts(self, parts: Sequence[Part], trained: bool = False) -> None:
        """Add texts and control tokens as they come."""
        for part in parts:
            (self.mark if part.is_control else self.text)(part.content, trained)

    def turn(self, message: Message, is_current: bool) -> None:
        """Add a message of any role but system; is_current if no user message follows it."""
        if message.role != "tool":
            self._close_outputs()
        if message.role == "user":
            self.mark(control.USER)
            self.text(message.content or "")
        elif message.role == "tool":
            self._output(message)
        else:
            self._answer(message, is_current)
        self.previous = message.role

    def end(self, ask: bool) -> None:
        """Close what is open and, if ask, add what makes the assistant go on."""
        self._close_outputs()
        after_tool = self.previous == "tool"  # the assistant goes on with no further sign
        if not ask or after_tool or (self.hybrid and self.previous != "user"):
            return
        self.mark(control.ASSISTANT)
        if self.hybrid:
            self.mark(control.THINK if self.thinking else control.END_THINK)
        elif self.layout == "r1":
            self.mark(control.THINK)
            self.text("\n")

    def encode(self, tokenizer: Tokenizer) -> Rendered:
        """The tokens of all pieces; neighboring texts are encoded as one, as in a template."""
        tokens: list[int] = []
        trained: list[bool] = []
        for (is_control, by_assistant), group in groupby(self.pieces, key=lambda p: p[1:]):
            names = [piece.content for piece in group]
            if is_control:
                tokens.extend(map(tokenizer.control, names))
            else:
                tokens.extend(tokenizer.encode("".join(names)))
            trained.extend([by_assistant] * (len(tokens) - len(trained)))
        return Rendered(tokens, trained)

    def _close_outputs(self) -> None:
        if self.previous == "tool" and not self.hybrid:
            self.mark(control.TOOL_OUTPUTS_END)

    def _output(self, message: Message) -> None:
        if self.previous == "tool":
            self.text("\n" if self.layout == "v3" else "")
        elif not self.hybrid:
            self.mark(control.TOOL_OUTPUTS_BEGIN)
        self.mark(control.TOOL_OUTPUT_BEGIN)
        self.text(message.content or "")
        self.mark(control.TOOL_OUTPUT_END)

    def _answer(self, message: Message, is_current: bool) -> None:
        mine = not message.prefix  # a prefix is given to the assistant, not written by it
        opens = self.previous == "user" if self.hybrid else self.previous != "tool"
        content = self._without_thought(message.content or "")
        thinks = self.layout == "r1" or (self.hybrid and self.thinking)
        thought = message.reasoning if thinks and is_current else None
        if self.hybrid and self.thinking and message.prefix and opens and thought is None:
            thought, content = content, ""  # the published V3.1 puts a prefix inside the thought
        if opens:
            self.mark(control.ASSISTANT)
        if thought is not None:
            self._thought(thought, mine, by_prompt=opens, closed=mine or content != "")
        elif opens and self.hybrid:
            self.mark(control.END_THINK)
        self.text(content, mine)
        if message.tool_calls:
            self.parts(calls_parts(message.tool_calls, self.layout), trained=True)
        if mine:
            self.mark(control.EOS, trained=True)

    def _thought(self, thought: str, mine: bool, by_prompt: bool, closed: bool) -> None:
        """Add reasoning; the generation prompt has opened it already, except after tools."""
        before, after = ("", "") if self.hybrid else ("\n", "\n\n")
        self.mark(control.THINK, mine and not by_prompt)
        self.text(before, mine and not by_prompt)
        self.text(thought, mine)
        if closed:
            self.text(before, mine)
            self.mark(control.END_THINK, mine)
            self.text(after, mine)

    def _without_thought(self, content: str) -> str:
        """The answer in an assistant's content that still carries its reasoning in tags."""
        if self.layout == "r1":
            return content.split(control.END_THINK)[-1]
        if self.hybrid and control.END_THINK in content:
            return content.split(control.END_THINK, 1)[1]
        return content


def _check_conversation(messages: Sequence[Message], layout: Layout, thinking: bool) -> None:
    if not messages:
        raise DataError("the conversation has no messages; give at least one")
    if any(message.prefix for message in messages[:-1]):
        raise DataError("a prefix message is not the last; only the last message can be continued")
    if thinking and layout == "v3":
        raise DataError("layout 'v3' cannot think; choose layout 'r1' or 'v3.1', or thinking=False")
