"""Chat templates of the kinds that models have, for SmolLM2's tokenizer."""

HEADER = "{{ '<|im_start|>' + m['role'] + '\n' }}"
GENERATION = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

SPACE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'A: ' + m['content'] + eos_token + '\n' }}{% else %}"
    "{{ 'Q: ' + m['content'] + '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
)
"""The generation prompt ends with a space, which a tokenizer puts into the first word of the answer."""

CLOSING = (
    "{% for m in messages %}" + HEADER + "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
"""One token ends the conversation, as in Phi-3's."""

CLOSING_IN_WORDS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% else %}{{ 'end of chat' }}{% endif %}"
)

TRIMMING = (
    "{{ bos_token }}{% for m in messages %}" + HEADER + "{{ '\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
"""White space around contents is trimmed, and two new lines follow a header, as in Llama-3's."""

MERGED_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{% elif m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}{{ '<<SYS>>' + messages[0]['content'] + '<</SYS>>' }}"
    "{% endif %}{{ m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""The system turn is a part of the first question, and there is no generation prompt, as in Llama-2's."""

THOUGHTS = (
    "{% for m in messages %}" + HEADER + "{% set content = m['content'] %}{% if m['role'] == 'assistant' %}"
    "{% set thought = '' %}{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set content = content.split('</think>')[-1].lstrip() %}{% endif %}"
    "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{% endif %}"
    "{{ content + '<|im_end|>\n' }}{% endfor %}" + GENERATION
)
"""Only the last answer keeps its thought, and has an empty one if it has none, as in Qwen3's."""

WITHOUT_SYSTEM = (
    "{% for m in messages if m['role'] != 'system' %}" + HEADER + "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
) + GENERATION

NUMBERED = (
    "{% for m in messages %}{{ '[' ~ loop.index ~ ' ' ~ m['role'] ~ ']' ~ m['content'] ~ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[' ~ (messages | length + 1) ~ ' assistant]' }}{% endif %}"
)
"""What is written before a turn depends on its number."""

WITH_DATE = (
    "{{ '<|im_start|>system\nToday is ' + strftime_now('%Y-%m-%d') + '<|im_end|>\n' }}"
    "{% for m in messages %}" + HEADER + "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
) + GENERATION
