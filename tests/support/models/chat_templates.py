"""Chat templates in the manner of each family, short, with the tokens that they are written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.answers.template_sources import built_in_templates


@dataclass(frozen=True)
class Family:
    """What a model directory has of its family."""

    template: str
    end: str
    """The token that ends an answer."""
    special: tuple[str, ...]
    """Special tokens, the end among them."""
    plain: tuple[str, ...] = ()
    """Other added tokens."""


THINKING = r"""{{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}"""
QWEN = built_in_templates()["qwen"]
QWEN_THINKING = QWEN.replace(r"{{- '<|im_start|>assistant\n' }}", THINKING)
LLAMA_HEAD = (
    r"{{- '<|start_header_id|>' + (message.role if message.role != 'tool' else 'ipython') "
    r"+ '<|end_header_id|>\n\n' }}"
)
LLAMA_TOOLS = r"""{%- if tools %}
    {{- '<|start_header_id|>system<|end_header_id|>\n\n' + rules }}
    {%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}
    {{- end }}
{%- endif %}
"""
LLAMA_LAST = r"""{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
LLAMA_3 = (
    r"""{%- set end = '<|eot_id|>' %}
{%- set rules = 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.' %}
{{- bos_token }}
"""  # noqa: E501 (the words of the template)
    + LLAMA_TOOLS
    + "{%- for message in messages %}\n"
    + LLAMA_HEAD
    + r"""
    {%- for call in message.tool_calls or [] %}
        {{- '; ' if not loop.first }}
        {{- {"name": call.function.name, "parameters": call.function.arguments} | tojson }}
    {%- endfor %}
    {{- (message.content or '') + end }}
{%- endfor %}
"""
    + LLAMA_LAST
)
LLAMA_4 = (
    r"""{%- set end = '<|eot|>' %}
{%- set rules = 'Call functions in the format [func_name1(params_name1=params_value1), func_name2(params)].' %}
{{- bos_token }}
"""  # noqa: E501 (the words of the template)
    + LLAMA_TOOLS
    + "{%- for message in messages %}\n"
    + LLAMA_HEAD
    + r"""
    {%- if message.tool_calls %}
        {{- '<|python_start|>[' }}
        {%- for call in message.tool_calls %}
            {{- ', ' if not loop.first }}
            {{- call.function.name + '(' }}
            {%- for key, value in call.function.arguments.items() %}
                {{- ', ' if not loop.first }}
                {{- key + '=' + (value | tojson) }}
            {%- endfor %}
            {{- ')' }}
        {%- endfor %}
        {{- ']<|python_end|>' }}
    {%- endif %}
    {{- (message.content or '') + end }}
{%- endfor %}
"""
    + LLAMA_LAST
)
MISTRAL = r"""{{- bos_token }}
{%- if tools %}
    {{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '[TOOL_RESULTS] ' + ({"content": message.content} | tojson) + '[/TOOL_RESULTS]' }}
    {%- elif message.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {{- ', ' if not loop.first }}
            {{- {"name": call.function.name, "arguments": call.function.arguments} | tojson }}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content + eos_token }}
    {%- else %}
        {{- '[INST] ' + message.content + '[/INST]' }}
    {%- endif %}
{%- endfor %}
"""
DEEPSEEK = r"""{{- bos_token }}
{%- if tools %}{{- 'Tools: ' + (tools | tojson) + '\n' }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- message.content }}
    {%- elif message.role == 'user' %}
        {{- '<｜User｜>' + message.content }}
    {%- elif message.role == 'tool' %}
        {{- '<｜tool▁outputs▁begin｜>' + message.content + '<｜tool▁outputs▁end｜>' }}
    {%- else %}
        {{- '<｜Assistant｜>' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {{- '<｜tool▁calls▁begin｜>' if loop.first else '\n' }}
            {{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call.function.name }}
            {{- '\n```json\n' + (call.function.arguments | tojson) + '\n```<｜tool▁call▁end｜>' }}
            {{- '<｜tool▁calls▁end｜>' if loop.last }}
        {%- endfor %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜><think>\n' }}{%- endif %}
"""
LLAMA_TOKENS = ("<|start_header_id|>", "<|end_header_id|>")
QWEN_TOKENS = ("<|im_start|>", "<|im_end|>")
FAMILIES: Mapping[str, Family] = {
    "qwen2.5": Family(QWEN, "<|im_end|>", QWEN_TOKENS, ("<tool_call>", "</tool_call>")),
    "qwen3": Family(
        QWEN_THINKING,
        "<|im_end|>",
        QWEN_TOKENS,
        ("<tool_call>", "</tool_call>", "<think>", "</think>"),
    ),
    "llama3": Family(LLAMA_3, "<|eot_id|>", (*LLAMA_TOKENS, "<|eot_id|>", "<|python_tag|>")),
    "llama4": Family(
        LLAMA_4,
        "<|eot|>",
        (*LLAMA_TOKENS, "<|eot|>", "<|python_start|>", "<|python_end|>"),
    ),
    "mistral": Family(
        MISTRAL,
        "</s>",
        (
            "</s>",
            "[INST]",
            "[/INST]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_CALLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
    ),
    "deepseek-r1": Family(
        DEEPSEEK,
        "<｜end▁of▁sentence｜>",
        ("<｜end▁of▁sentence｜>",),
        (
            "<｜User｜>",
            "<｜Assistant｜>",
            "<think>",
            "</think>",
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁sep｜>",
        ),
    ),
}
