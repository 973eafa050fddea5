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

#[cfg(test)]
mod tests {
    use luthier_model::{ChatTemplate, template::Conversation};
    use serde_json::{Map, json};

    use super::TEMPLATES;

    #[test]
    fn conversations_look_as_their_models_know_them() {
        let messages = [
            json!({"role": "system", "content": "Be kind."}),
            json!({"role": "user", "content": "Hi"}),
            json!({"role": "assistant", "content": "Yo"}),
            json!({"role": "user", "content": "So"}),
        ];
        let special = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let special = special.map(|(k, v)| (k.to_string(), v.to_string())).into_iter().collect();
        let text = |name: &str| {
            let (_, source) = TEMPLATES.iter().find(|(known, _)| *known == name).unwrap();
            let conversation = Conversation {
                messages: &messages,
                tools: None,
                add_generation_prompt: true,
                kwargs: &Map::new(),
            };
            ChatTemplate::new(name, source).unwrap().render(&conversation, &special).unwrap().text
        };
        assert_eq!(
            text("chatml"),
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
             <|im_start|>assistant\nYo<|im_end|>\n<|im_start|>user\nSo<|im_end|>\n\
             <|im_start|>assistant\n"
        );
        assert_eq!(
            text("alpaca"),
            "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nYo</s>\n\n### Instruction:\nSo\n\n\
             ### Response:\n"
        );
        assert_eq!(
            text("exaone"),
            "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Yo[|endofturn|]\n\
             [|user|]So\n[|assistant|]"
        );
        let turn = |role: &str, text: &str| {
            format!("<|start_header_id|>{role}<|end_header_id|>\n\n{text}")
        };
        assert_eq!(
            text("llama3"),
            format!(
                "<s>{}{}{}{}{}",
                turn("system", "Be kind.<|eot_id|>"),
                turn("user", "Hi<|eot_id|>"),
                turn("assistant", "Yo<|eot_id|>"),
                turn("user", "So<|eot_id|>"),
                turn("assistant", "")
            )
        );
        assert_eq!(text("mistral"), "<s>[INST] Be kind.\n\nHi [/INST] Yo</s>[INST] So [/INST]");
    }
}
