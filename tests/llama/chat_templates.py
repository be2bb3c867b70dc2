"""Chat templates in the styles of known models, and conversations: what the tests render beside transformers."""

from __future__ import annotations

CHATML = """\
{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

CHATML_MARKED = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content | trim ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}
{% set system, rest = messages[0]['content'], messages[1:] %}
{% else %}
{% set system, rest = false, messages %}
{% endif %}
{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate: user, assistant, user, ...') }}
{% endif %}
{% if loop.first and system is not false %}
{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}
{% set content = message['content'] %}
{% endif %}
{% if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
{% else %}
{{- ' ' + content.strip() + ' ' + eos_token -}}
{% endif %}
{% endfor %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- set ns = namespace(first=true) %}
{%- for message in messages %}
    {%- if ns.first and message.role != 'system' %}
        {{- '<|start_header_id|>system<|end_header_id|>\\n\\nYear: ' + strftime_now('%Y') + '<|eot_id|>' }}
    {%- endif %}
    {%- set ns.first = false %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in rest %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system is defined %}
            {{- "[INST] " + system + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, got " + message["role"]) }}
    {%- endif %}
{%- endfor %}
"""

# What is between the lines above: loop controls, tojson, a macro, blocks with spaces before them, a last newline.
DETAILS = """\
{% macro line(role, text) %}
<|im_start|>{{ role | upper }}: {{ text }}
{% endmacro %}
  {% if tools is none and documents is none %}
plain
  {% endif %}
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% if loop.index > 7 %}
        {% break %}
    {% endif %}
    {{ line(message.role, message.content) }}
    {# a remark #}
{{ messages[:1] | tojson }} {{ {'b': 'é<', 'a': [1, none]} | tojson(indent=2) }}
    {{ message.get('name', 'nobody') }}{{ undefined_name }} {% if not loop.last %}|{% endif %}
{% endfor %}
{{ pad_token }}{{ eos_token }}

"""

STYLES = {
    "chatml": CHATML,
    "chatml_marked": CHATML_MARKED,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "details": DETAILS,
}
ANSWERED = ("chatml", "chatml_marked", "llama2", "llama3", "mistral")  # whose answers can be told and have an end

TEXTS = (
    "Hi", "  spaces around \n", "two\n\nlines", "“温故而知新”是什么意思？", "{{ user }} {% if x %}", "tabs\tand \\n",
    "emoji 👩‍👩‍👧 e\u0301", "a < b > c", "[INST", "quote \" and 'single'",
)  # fmt: skip


def conversation(number: int) -> list[dict[str, str]]:
    """One of thirty: 1 to 4 turns, every third with a system text, every second ends with a question."""
    texts = [TEXTS[(number * 7 + step * 3) % len(TEXTS)] for step in range(9)]
    messages = [{"role": "system", "content": texts[8]}] if number % 3 == 0 else []
    count = 1 + number % 4
    for turn in range(count):
        messages.append({"role": "user", "content": texts[2 * turn]})
        messages.append({"role": "assistant", "content": texts[2 * turn + 1]})
    return messages[:-1] if number % 2 else messages


CONVERSATIONS = [conversation(number) for number in range(30)]
