"""Tools: what functions a model may call, told in the system text, and the form its calls take.

    ## Tools                the heading of DeepSeek-V3.1's model card, here for all layouts
    ### get_weather         then its description and the JSON Schema of its parameters
    ...                     and last how a call is written, in the words of ``calls.calls_parts``

A grammar holds calls to that form and to the schemas: for calls that must be made, and for strict
tools.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from abyssal.errors import DataError
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.calls import SEPARATOR, Part, call_parts, calls_parts
from abyssal.tokenizer.control import TOOL_CALLS_BEGIN, TOOL_CALLS_END
from abyssal.tokenizer.message import ToolCall
from abyssal.tokenizer.template import Layout

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_EXAMPLE = ToolCall("NAME", "ARGUMENTS")
_SLOT = "{}"  # where the arguments of a call go in its text; no name contains it
# Without a bound a model may add space for ever. Enough for indentation eight levels deep.
_SPACE_IN_JSON = r"[ \n]{0,32}"
_KINDS: dict[str, tuple[type, str]] = {
    "name": (str, "a string"),
    "description": (str, "a string"),
    "parameters": (Mapping, "a JSON Schema"),
    "strict": (bool, "true or false"),
}


def _no_parameters() -> dict[str, object]:
    return {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class Tool:
    """A function a model may call; its parameters are the JSON Schema of one object.

    Raises:
        DataError: the name is not 1 to 64 of a-z, A-Z, 0-9, _ and -, or the schema is not JSON or
            not that of an object.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=_no_parameters)
    strict: bool = False  # calls are held to the schema, even those the model makes unasked

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise DataError(
                f"a tool is named {self.name!r:.80}; 1 to 64 letters a-z or A-Z, digits, _ and - "
                f"were expected"
            )
        if self.parameters.get("type", "object") != "object":
            raise DataError(
                f"parameters of tool {self.name} have type {self.parameters['type']!r:.60}; a JSON "
                f"Schema of type object was expected"
            )
        try:
            json.dumps(self.parameters)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"parameters of tool {self.name} are not JSON ({error}); give a JSON Schema"
            ) from error

    @classmethod
    def from_dict(cls, fields: object) -> "Tool":
        """A tool from the API's JSON: {"type": "function", "function": {"name": ...}}.

        Raises:
            DataError: the object is not a tool; the text says where.
        """
        function = fields.get("function") if isinstance(fields, Mapping) else None
        if not isinstance(fields, Mapping) or not isinstance(function, Mapping):
            raise DataError(f"a tool is {fields!r:.60}; an object with a function was expected")
        if fields.get("type", "function") != "function":
            raise DataError(f"a tool has type {fields['type']!r:.60}; function was expected")
        given = {key: value for key in _KINDS if (value := function.get(key)) is not None}
        for key, value in given.items():
            kind, expected = _KINDS[key]
            if not isinstance(value, kind):
                raise DataError(f"{key} of a tool is {value!r:.60}; {expected} was expected")
        if "name" not in given:
            raise DataError("a tool has no name; give function.name")
        return cls(**given)


def tools_parts(tools: Sequence[Tool], layout: Layout) -> list[Part]:
    """The part of the system text that declares tools, and shows a call of the layout.

    The control tokens in it stand in that example alone, whatever a description holds.

    Raises:
        DataError: two tools share a name.
    """
    if not tools:
        return []
    _check_names(tools)
    declared = "".join(map(_declared, tools))
    return [
        Part(f"## Tools\n\n{declared}To call a tool, end your answer in exactly this form:\n\n"),
        *calls_parts([_EXAMPLE], layout),
        Part("\n\nTwo calls at once have this form, and more of them go on alike:\n\n"),
        *calls_parts([_EXAMPLE, _EXAMPLE], layout),
        Part(
            "\n\nNAME is the name of one of the tools above, and ARGUMENTS a JSON object that "
            "follows the schema of its parameters."
        ),
    ]


def call_grammar(
    tools: Sequence[Tool],
    layout: Layout,
    tokenizer: Tokenizer,
    *,
    required_name: str | None = None,
    parallel: bool = True,
    optional: bool = False,
) -> str:
    """The Lark text (llguidance's) of an answer that is one call, or several if parallel.

    Arguments are held to their schema; what llguidance cannot hold to is an error for strict tools
    and left out for others. required_name leaves one tool only. An optional answer is held from
    behind <tool calls begin> on, so that token must switch the grammar on; in an answer that
    thinks </think> must.

    Raises:
        DataError: no tool is named required_name, two share a name, or the tokenizer lacks a token
            of the layout.
    """
    _check_names(tools)
    chosen = [tool for tool in tools if required_name in (None, tool.name)]
    if not chosen:
        raise DataError(
            f"the tool {required_name!r:.80} is to be called, but there are only "
            f"{', '.join(tool.name for tool in tools)[:200] or 'none'}; name one of them"
        )
    begin, end = (f"<[{tokenizer.control(x)}]>" for x in (TOOL_CALLS_BEGIN, TOOL_CALLS_END))
    gap = ' "\\n\\n"?' if layout == "r1" else ""  # how R1 goes on behind a thought
    more = f" ({json.dumps(SEPARATOR[layout])} call)*" if SEPARATOR[layout] else " call*"
    lines = [
        f"start:{'' if optional else f'{gap} {begin}'} call{more if parallel else ''} {end}",
        "call: " + " | ".join(f"call_{i}" for i in range(len(chosen))),
    ]
    for i, tool in enumerate(chosen):
        parts = call_parts(ToolCall(tool.name, _SLOT), layout)
        lines.append(f"call_{i}: " + " ".join(_symbol(p, f"args_{i}", tokenizer) for p in parts))
        lines.append(f"args_{i}: %json {json.dumps(_guided(tool))}")
    return "\n".join(lines) + "\n"


def _check_names(tools: Sequence[Tool]) -> None:
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two tools are named {twice}; give each a name of its own")


def _declared(tool: Tool) -> str:
    """What the model reads about one tool."""
    schema = json.dumps(tool.parameters, ensure_ascii=False)
    description = f"Description: {tool.description}\n\n" if tool.description else ""
    return f"### {tool.name}\n{description}Parameters: {schema}\n\n"


def _guided(tool: Tool) -> dict[str, object]:
    """The schema as llguidance is to take it."""
    options = {"whitespace_pattern": _SPACE_IN_JSON, "lenient": not tool.strict}
    return {**tool.parameters, "type": "object", "x-guidance": options}


def _symbol(part: Part, arguments: str, tokenizer: Tokenizer) -> str:
    """A part of a call in Lark; the slot in it becomes the rule of the arguments."""
    if part.is_control:
        return f"<[{tokenizer.control(part.content)}]>"
    before, slot, after = part.content.partition(_SLOT)
    symbols = (json.dumps(before) * bool(before), arguments * bool(slot), json.dumps(after))
    return " ".join(symbol for symbol in symbols if symbol not in ("", '""'))
