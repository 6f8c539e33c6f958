//! The architectures wick knows. To add one: a file in `arch/` and a line here.
use super::arch;
use super::config::{HfConfig, bad};
use super::spec::DecoderSpec;
use crate::weights::LoadError;

/// One architecture.
pub struct Architecture {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// The class in `architectures` of config.json.
    pub class: &'static str,
    /// The class of the same without an output matrix.
    pub base_class: &'static str,
    /// `general.architecture` in GGUF; empty if ggml knows it under another architecture's name.
    pub gguf: &'static str,
    /// Hugging Face's name of its activation, which GGUF does not store.
    pub gguf_act: &'static str,
    /// Configuration → specification.
    pub spec: fn(&HfConfig) -> Result<DecoderSpec, LoadError>,
}

/// All of them.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "llama",
        class: "LlamaForCausalLM",
        base_class: "LlamaModel",
        gguf: "llama",
        gguf_act: "silu",
        spec: arch::llama::spec,
    },
    Architecture {
        model_type: "mistral",
        class: "MistralForCausalLM",
        base_class: "MistralModel",
        gguf: "",
        gguf_act: "silu",
        spec: arch::mistral::spec,
    },
    Architecture {
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        base_class: "Qwen2Model",
        gguf: "qwen2",
        gguf_act: "silu",
        spec: arch::qwen2::spec,
    },
    Architecture {
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        base_class: "Qwen3Model",
        gguf: "qwen3",
        gguf_act: "silu",
        spec: arch::qwen3::spec,
    },
    Architecture {
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        base_class: "Gemma3TextModel",
        gguf: "gemma3",
        gguf_act: "gelu_pytorch_tanh",
        spec: arch::gemma3::spec,
    },
];

/// The specification of a configured model.
///
/// # Errors
/// `UnknownArchitecture`, or `Config` naming what the architecture does not support.
pub fn spec(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let architecture = find(&config.model_type)?;
    if let Some(classes) = config.strs("architectures")?
        && let Some(class) = classes.first()
        && *class != architecture.class
        && !(config.embedding.is_some() && *class == architecture.base_class)
    {
        return Err(LoadError::Config(format!(
            "`architectures` is {class}; of model type `{}` wick runs {}, and {} where modules.json says how it embeds",
            config.model_type, architecture.class, architecture.base_class
        )));
    }
    for (key, ahead) in [("is_causal", false), ("use_bidirectional_attention", true)] {
        if config.value(key).is_some_and(|value| *value == ahead) {
            return Err(bad(
                key,
                &format!("is {ahead}: tokens would see those after them, as in no decoder of wick's"),
            ));
        }
    }
    let mut spec = (architecture.spec)(config)?;
    spec.embedding = config.embedding;
    spec.max_context = config.input_max.map_or(spec.max_context, |most| most.min(spec.max_context));
    Ok(spec)
}

/// Whether wick has an architecture that config.json calls `model_type`.
pub(crate) fn knows(model_type: &str) -> bool {
    find(model_type).is_ok()
}

/// The architecture config.json calls `model_type`.
pub(crate) fn find(model_type: &str) -> Result<&'static Architecture, LoadError> {
    ARCHITECTURES.iter().find(|a| a.model_type == model_type).ok_or_else(|| unknown(model_type))
}

/// The architecture GGUF calls `name`.
pub(crate) fn find_gguf(name: &str) -> Result<&'static Architecture, LoadError> {
    ARCHITECTURES.iter().find(|a| !a.gguf.is_empty() && a.gguf == name).ok_or_else(|| unknown(name))
}

fn unknown(found: &str) -> LoadError {
    LoadError::UnknownArchitecture {
        found: found.to_owned(),
        known: ARCHITECTURES.iter().map(|a| a.model_type).collect(),
    }
}
