"""Chat templates in Jinja, for programs that render conversations as text.

They say the same as ``chat.render``, which is what Abyssal itself uses: text put through a template
and tokenized as a whole lets what a user types become control tokens; tokens joined by ``render``
do not. Tools are declared by ``render`` alone, as the published templates leave them out, too. Two
layouts, V3 and R1, differ in little and share a template; V3.1 has its own.

The template published with the first V3 closes a single tool call never and several of them more
than once, opens neither a second batch of calls nor one of outputs, and leaves outputs open before
anything but text; R1's repeats most of that. Here every batch is opened once and closed once.
"""

import json
import re
from pathlib import Path
from typing import Literal, get_args

from abyssal.errors import ConfigError, DataError
from abyssal.tokenizer.control import ASSISTANT, END_THINK, USER

Layout = Literal["v3", "r1", "v3.1"]

# Joins the system messages of the whole conversation, and finds the last user message: reasoning is
# shown only after it.
_HEAD = r"""
{%- if add_generation_prompt is not defined %}{%- set add_generation_prompt = false %}{%- endif %}
{%- if thinking is not defined %}{%- set thinking = false %}{%- endif %}
{%- set ns = namespace(system='', gap='', last_user=-1, previous='') %}
{%- for message in messages %}
  {%- if message['role'] == 'system' %}
    {%- set ns.system = ns.system + ns.gap + message['content'] %}
    {%- set ns.gap = '\n\n' %}
  {%- elif message['role'] == 'user' %}
    {%- set ns.last_user = loop.index0 %}
  {%- endif %}
{%- endfor %}
{{- bos_token + ns.system }}
"""

_WRAPPED = r"""
{%- for message in messages %}
  {%- set is_current = loop.index0 > ns.last_user %}
  {%- if ns.previous == 'tool' and message['role'] in ['user', 'assistant'] %}
    {{- '<｜tool▁outputs▁end｜>' }}
  {%- endif %}
  {%- if message['role'] == 'user' %}
    {{- '<｜User｜>' + message['content'] }}
  {%- elif message['role'] == 'tool' %}
    {{- output_gap if ns.previous == 'tool' else '<｜tool▁outputs▁begin｜>' }}
    {{- '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}
  {%- elif message['role'] == 'assistant' %}
    {%- set content = message['content'] or '' %}
    {%- if reasons %}
      {%- set content = content.split('</think>')[-1] %}
    {%- endif %}
    {{- '' if ns.previous == 'tool' else '<｜Assistant｜>' }}
    {%- if reasons and is_current and message['reasoning_content'] is string %}
      {{- '<think>\n' + message['reasoning_content'] }}
      {{- '\n</think>\n\n' if content or not message['prefix'] else '' }}
    {%- endif %}
    {{- content }}
    {%- for call in message['tool_calls'] or [] %}
      {%- set arguments = call['function']['arguments'] %}
      {{- '<｜tool▁calls▁begin｜>' if loop.first else '\n' }}
      {{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call['function']['name'] }}
      {{- '\n```json\n' + (arguments if arguments is string else arguments | tojson) + '\n```' }}
      {{- '<｜tool▁call▁end｜>' + ('<｜tool▁calls▁end｜>' if loop.last else '') }}
    {%- endfor %}
    {{- '' if message['prefix'] else eos_token }}
  {%- endif %}
  {%- if message['role'] != 'system' %}
    {%- set ns.previous = 'prefix' if message['prefix'] else message['role'] %}
  {%- endif %}
{%- endfor %}
{%- if ns.previous == 'tool' %}
  {{- '<｜tool▁outputs▁end｜>' }}
{%- elif add_generation_prompt and ns.previous != 'prefix' %}
  {{- '<｜Assistant｜>' + ('<think>\n' if reasons else '') }}
{%- endif %}
"""

_HYBRID = r"""
{%- for message in messages %}
  {%- set is_current = loop.index0 > ns.last_user %}
  {%- if message['role'] == 'user' %}
    {{- '<｜User｜>' + message['content'] }}
  {%- elif message['role'] == 'tool' %}
    {{- '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}
  {%- elif message['role'] == 'assistant' %}
    {%- set opens = ns.previous == 'user' %}
    {%- set shown = thinking and is_current and message['reasoning_content'] is string %}
    {%- set content = message['content'] or '' %}
    {%- if '</think>' in content %}
      {%- set content = content.split('</think>', 1)[1] %}
    {%- endif %}
    {{- '<｜Assistant｜>' if opens else '' }}
    {%- if shown %}
      {{- '<think>' + message['reasoning_content'] }}
      {{- '</think>' if content or not message['prefix'] else '' }}
    {%- elif opens %}
      {{- '<think>' if message['prefix'] and thinking else '</think>' }}
    {%- endif %}
    {{- content }}
    {%- for call in message['tool_calls'] or [] %}
      {%- set arguments = call['function']['arguments'] %}
      {{- '<｜tool▁calls▁begin｜>' if loop.first else '' }}
      {{- '<｜tool▁call▁begin｜>' + call['function']['name'] + '<｜tool▁sep｜>' }}
      {{- arguments if arguments is string else arguments | tojson }}
      {{- '<｜tool▁call▁end｜>' + ('<｜tool▁calls▁end｜>' if loop.last else '') }}
    {%- endfor %}
    {{- '' if message['prefix'] else eos_token }}
  {%- endif %}
  {%- if message['role'] != 'system' %}
    {%- set ns.previous = message['role'] %}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and ns.previous == 'user' %}
  {{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}
{%- endif %}
"""

_TEMPLATES: dict[Layout, str] = {
    "v3": r"{%- set reasons = false %}{%- set output_gap = '\n' %}" + _HEAD + _WRAPPED,
    "r1": r"{%- set reasons = true %}{%- set output_gap = '' %}" + _HEAD + _WRAPPED,
    "v3.1": _HEAD + _HYBRID,
}


def chat_template(layout: Layout) -> str:
    """Our Jinja template of the layout; equal to ``chat.render`` on text without control tokens.

    Raises:
        ConfigError: there is no such layout.
    """
    check_layout(layout)
    return _TEMPLATES[layout].strip()


def check_layout(layout: str) -> None:
    """Raise ConfigError unless layout is one of ours."""
    if layout not in _TEMPLATES:
        raise ConfigError(f"layout={layout!r}; choose one of {', '.join(get_args(Layout))}")


def layout_of(folder: str | Path) -> Layout:
    """The layout of a model folder, told from the chat template that lies beside its tokenizer.

    Our own templates are known by heart, the published ones by their marks: both R1 and V3.1 cut
    the thought off earlier answers, and only V3.1 asks whether to think.

    Raises:
        DataError: the folder has no chat template, or one of another family.
    """
    template = _saved_template(Path(folder))
    for layout, ours in _TEMPLATES.items():
        if template.strip() == ours.strip():
            return layout
    if not all(mark in template for mark in (USER, ASSISTANT)):
        raise DataError(
            f"the chat template of {folder} has no {USER} or no {ASSISTANT}, so it is not of V3, "
            f"R1 or V3.1; give --layout"
        )
    if END_THINK not in template:
        return "v3"
    return "v3.1" if re.search(r"\bthinking\b", template) else "r1"


def _saved_template(folder: Path) -> str:
    alone = folder / "chat_template.jinja"  # where newer versions of transformers put it
    if alone.is_file():
        return alone.read_text("utf-8")
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        config = {}
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); mend it, or give --layout") from error
    template = config.get("chat_template") if isinstance(config, dict) else None
    if not isinstance(template, str):
        raise DataError(f"{folder} has no chat template in tokenizer_config.json; give --layout")
    return template
