//! Chat templates that a merge's file may ask for by name: how several families of models write a
//! conversation. The names are mergekit's, the texts our own.

/// Name and text.
pub(super) const TEMPLATES: [(&str, &str); 5] = [
    // Headings in plain words, a line between turns.
    (
        "alpaca",
        "{% for message in messages %}{% if message['role'] == 'system' %}\
         {{ message['content'] + '\\n\\n' }}{% elif message['role'] == 'user' %}\
         {{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}{% else %}\
         {{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}{% endfor %}\
         {% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
    ),
    // Turns between `<|im_start|>` and `<|im_end|>`.
    (
        "chatml",
        "{% for message in messages %}\
         {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
         {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ),
    // A role in brackets; only system turns and answers have an end.
    (
        "exaone",
        "{% for message in messages %}{{ '[|' + message['role'] + '|]' + message['content'] }}\
         {% if message['role'] != 'user' %}{{ '[|endofturn|]' }}{% endif %}{{ '\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}",
    ),
    // A header for the role, an end of turn, spaces around the content cut off.
    (
        "llama3",
        "{{ bos_token }}{% for message in messages %}\
         {{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\
         {{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}\
         {{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    ),
    // Questions in `[INST]`, the system turn in front of the first of them.
    (
        "mistral",
        "{{ bos_token }}{% set parts = namespace(system='') %}{% for message in messages %}\
         {% if message['role'] == 'system' %}\
         {% set parts.system = message['content'] + '\\n\\n' %}\
         {% elif message['role'] == 'user' %}\
         {{ '[INST] ' + parts.system + message['content'] + ' [/INST]' }}\
         {% set parts.system = '' %}{% else %}\
         {{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}",
    ),
];
