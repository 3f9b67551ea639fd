"""Control tokens: the marks a model reads that no text can spell.

The names are those of the DeepSeek-V3 release. Two of their characters are unusual: U+FF5C
FULLWIDTH VERTICAL LINE and U+2581 LOWER ONE EIGHTH BLOCK. A vocabulary opens with ``OPENING``,
goes on with the 256 bytes and the merges, and closes with ``CLOSING``; ids left free before those
are place-holders, as in the release.
"""

BOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
EOS = "<\uff5cend\u2581of\u2581sentence\uff5c>"
PAD = "<\uff5c\u2581pad\u2581\uff5c>"

SEARCH_BEGIN = "<\uff5csearch\u2581begin\uff5c>"
SEARCH_END = "<\uff5csearch\u2581end\uff5c>"
THINK = "<think>"
END_THINK = "</think>"
FIM_HOLE = "<\uff5cfim\u2581hole\uff5c>"
FIM_BEGIN = "<\uff5cfim\u2581begin\uff5c>"
FIM_END = "<\uff5cfim\u2581end\uff5c>"
USER = "<\uff5cUser\uff5c>"
ASSISTANT = "<\uff5cAssistant\uff5c>"
EOT = "<|EOT|>"
TOOL_CALLS_BEGIN = "<\uff5ctool\u2581calls\u2581begin\uff5c>"
TOOL_CALLS_END = "<\uff5ctool\u2581calls\u2581end\uff5c>"
TOOL_CALL_BEGIN = "<\uff5ctool\u2581call\u2581begin\uff5c>"
TOOL_CALL_END = "<\uff5ctool\u2581call\u2581end\uff5c>"
TOOL_OUTPUTS_BEGIN = "<\uff5ctool\u2581outputs\u2581begin\uff5c>"
TOOL_OUTPUTS_END = "<\uff5ctool\u2581outputs\u2581end\uff5c>"
TOOL_OUTPUT_BEGIN = "<\uff5ctool\u2581output\u2581begin\uff5c>"
TOOL_OUTPUT_END = "<\uff5ctool\u2581output\u2581end\uff5c>"
TOOL_SEP = "<\uff5ctool\u2581sep\uff5c>"

OPENING = (BOS, EOS, PAD)  # ids 0, 1, 2

CLOSING = (  # the last ids, in the order of the release (there 128796 to 128814)
    SEARCH_BEGIN,
    SEARCH_END,
    THINK,
    END_THINK,
    FIM_HOLE,
    FIM_BEGIN,
    FIM_END,
    USER,
    ASSISTANT,
    EOT,
    TOOL_CALLS_BEGIN,
    TOOL_CALLS_END,
    TOOL_CALL_BEGIN,
    TOOL_CALL_END,
    TOOL_OUTPUTS_BEGIN,
    TOOL_OUTPUTS_END,
    TOOL_OUTPUT_BEGIN,
    TOOL_OUTPUT_END,
    TOOL_SEP,
)


def placeholder(number: int) -> str:
    """The name of an id that is kept free for a control token to come."""
    return f"<\uff5cplace\u2581holder\u2581no\u2581{number}\uff5c>"
