//! One table for the three names of every weight: luthier's site, the Hugging Face module and the
//! GGUF tensor.

use crate::config::ModelConfig;

/// Outside of the layers: site, Hugging Face module, GGUF name.
const OUTER: [(&str, &str, &str); 3] = [
    ("embed", "model.embed_tokens", "token_embd"),
    ("final_norm", "model.norm", "output_norm"),
    ("logits", "lm_head", "output"),
];

/// The Hugging Face module of a head that scores labels.
pub const SCORE: &str = "score";

/// Within a layer, after `layers.{i}.`, `model.layers.{i}.` and `blk.{i}.`.
const INNER: [(&str, &str, &str); 11] = [
    ("attn_norm", "input_layernorm", "attn_norm"),
    ("attn.q", "self_attn.q_proj", "attn_q"),
    ("attn.k", "self_attn.k_proj", "attn_k"),
    ("attn.v", "self_attn.v_proj", "attn_v"),
    ("attn.q_norm", "self_attn.q_norm", "attn_q_norm"),
    ("attn.k_norm", "self_attn.k_norm", "attn_k_norm"),
    ("attn.o", "self_attn.o_proj", "attn_output"),
    ("mlp_norm", "post_attention_layernorm", "ffn_norm"),
    ("mlp.gate", "mlp.gate_proj", "ffn_gate"),
    ("mlp.up", "mlp.up_proj", "ffn_up"),
    ("mlp.down", "mlp.down_proj", "ffn_down"),
];

/// Splits `{prefix}{i}.{rest}`; the number must be written as a number is.
fn split_layer<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    let i: usize = number.parse().ok()?;
    (i.to_string() == number).then_some((i, rest))
}

/// The Hugging Face module of a site: `layers.3.attn.q` is `model.layers.3.self_attn.q_proj`.
pub fn hf_module(site: &str) -> Option<String> {
    if let Some((_, module, _)) = OUTER.iter().find(|row| row.0 == site) {
        return Some(module.to_string());
    }
    let (i, rest) = split_layer(site, "layers.")?;
    let (_, module, _) = INNER.iter().find(|row| row.0 == rest)?;
    Some(format!("model.layers.{i}.{module}"))
}

/// The site of a Hugging Face module.
pub fn site(module: &str) -> Option<String> {
    if let Some((site, _, _)) = OUTER.iter().find(|row| row.1 == module) {
        return Some(site.to_string());
    }
    let (i, rest) = split_layer(module, "model.layers.")?;
    let (site, _, _) = INNER.iter().find(|row| row.1 == rest)?;
    Some(format!("layers.{i}.{site}"))
}

/// The GGUF name of a Hugging Face tensor: `model.norm.weight` is `output_norm.weight`.
pub fn gguf_tensor(hf: &str) -> Option<String> {
    let (module, kind) = split_kind(hf)?;
    if let Some((_, _, gguf)) = OUTER.iter().find(|row| row.1 == module) {
        return Some(format!("{gguf}.{kind}"));
    }
    let (i, rest) = split_layer(module, "model.layers.")?;
    let (_, _, gguf) = INNER.iter().find(|row| row.1 == rest)?;
    Some(format!("blk.{i}.{gguf}.{kind}"))
}

/// The Hugging Face name of a GGUF tensor.
pub fn hf_tensor(gguf: &str) -> Option<String> {
    let (module, kind) = split_kind(gguf)?;
    if let Some((_, hf, _)) = OUTER.iter().find(|row| row.2 == module) {
        return Some(format!("{hf}.{kind}"));
    }
    let (i, rest) = split_layer(module, "blk.")?;
    let (_, hf, _) = INNER.iter().find(|row| row.2 == rest)?;
    Some(format!("model.layers.{i}.{hf}.{kind}"))
}

fn split_kind(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))
}

/// Every tensor of a model with its shape, in the order of the forward pass, by Hugging Face name.
/// A tied head has no tensor of its own.
pub fn tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (d, f, e) = (config.hidden, config.ffn, config.head_dim);
    let (q, kv) = (config.q_width(), config.kv_width());
    let mut list = vec![("model.embed_tokens.weight".to_string(), vec![config.vocab, d])];
    for i in 0..config.layers {
        for (_, module, _) in INNER {
            let (shape, bias) = match module {
                "self_attn.q_proj" => (vec![q, d], config.qkv_bias),
                "self_attn.k_proj" | "self_attn.v_proj" => (vec![kv, d], config.qkv_bias),
                "self_attn.o_proj" => (vec![d, q], config.o_bias),
                "self_attn.q_norm" | "self_attn.k_norm" if !config.qk_norm => continue,
                "self_attn.q_norm" | "self_attn.k_norm" => (vec![e], false),
                "mlp.gate_proj" | "mlp.up_proj" => (vec![f, d], config.mlp_bias),
                "mlp.down_proj" => (vec![d, f], config.mlp_bias),
                _ => (vec![d], false),
            };
            let out = shape[0];
            list.push((format!("model.layers.{i}.{module}.weight"), shape));
            if bias {
                list.push((format!("model.layers.{i}.{module}.bias"), vec![out]));
            }
        }
    }
    list.push(("model.norm.weight".to_string(), vec![d]));
    if let Some(labels) = config.labels {
        list.push((format!("{SCORE}.weight"), vec![labels, d]));
    } else if !config.tied {
        list.push(("lm_head.weight".to_string(), vec![config.vocab, d]));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_both_ways() {
        let cases = [
            ("embed", "model.embed_tokens", "token_embd"),
            ("layers.12.attn.q", "model.layers.12.self_attn.q_proj", "blk.12.attn_q"),
            ("layers.0.attn.o", "model.layers.0.self_attn.o_proj", "blk.0.attn_output"),
            ("layers.0.attn.k_norm", "model.layers.0.self_attn.k_norm", "blk.0.attn_k_norm"),
            ("layers.0.mlp_norm", "model.layers.0.post_attention_layernorm", "blk.0.ffn_norm"),
            ("layers.0.attn_norm", "model.layers.0.input_layernorm", "blk.0.attn_norm"),
            ("layers.9.mlp.down", "model.layers.9.mlp.down_proj", "blk.9.ffn_down"),
            ("final_norm", "model.norm", "output_norm"),
            ("logits", "lm_head", "output"),
        ];
        for (ours, module, gguf) in cases {
            assert_eq!(hf_module(ours).as_deref(), Some(module));
            assert_eq!(site(module).as_deref(), Some(ours));
            for kind in ["weight", "bias"] {
                let (hf, gguf) = (format!("{module}.{kind}"), format!("{gguf}.{kind}"));
                assert_eq!(gguf_tensor(&hf).as_ref(), Some(&gguf));
                assert_eq!(hf_tensor(&gguf).as_ref(), Some(&hf));
            }
        }
    }

    #[test]
    fn unknown_names_have_no_partner() {
        for name in ["", "layers.0", "layers.x.attn.q", "layers.+1.attn.q", "layers.01.attn.q"] {
            assert_eq!(hf_module(name), None, "{name}");
        }
        assert_eq!(gguf_tensor("model.norm.scale"), None);
        assert_eq!(hf_tensor("rope_freqs.weight"), None);
    }
}
