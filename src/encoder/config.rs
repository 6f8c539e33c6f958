//! What an encoder's folder says of it: `config.json` as `transformers` writes it, and beside it the files of
//! `sentence-transformers` (`modules.json`, a pooling module's `config.json`, `sentence_bert_config.json`).
use std::fmt;
use std::path::Path;

use serde_json::{Map, Value};

use crate::model::embedding::{self, EmbeddingSpec, Pooling};
use crate::model::registry;
use crate::ops::Pointwise;
use crate::weights::{LoadError, read_json};

/// Largest JSON file that is read, in bytes.
const JSON_BYTES_MAX: u64 = 4 << 20;
/// Bounds on sizes: far above any encoder, low enough that products of them fit in a `usize`.
const WIDTH_MAX: usize = 1 << 16;
const LAYERS_MAX: usize = 1 << 8;
const VOCAB_MAX: usize = 1 << 24;
const POSITIONS_MAX: usize = 1 << 20;

/// Families of encoders: `model_type`, the prefix of its tensors below a head, and whether positions are counted from behind
/// the padding token's id.
const FAMILIES: [(&str, &str, bool); 4] = [
    ("bert", "bert.", false),
    ("roberta", "roberta.", true),
    ("xlm-roberta", "roberta.", true),
    ("camembert", "roberta.", true),
];

/// An encoder, normalised: below this, nobody reads JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSpec {
    pub hidden: usize,
    pub inner: usize,
    pub layers: usize,
    pub heads: usize,
    pub vocab: usize,
    /// Rows of the position embedding.
    pub positions: usize,
    /// The position of the first token.
    pub first_position: usize,
    /// Rows of the segment embedding.
    pub segments: usize,
    pub eps: f32,
    pub act: Pointwise,
    /// What tensors of the encoder are called where a head is around it, before `embeddings.…`.
    pub prefix: &'static str,
    /// Tokens of one input, special ones included.
    pub tokens_max: usize,
    pub head: HeadSpec,
}

/// What becomes of the last layer's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadSpec {
    /// One vector for a text.
    Embedding(EmbeddingSpec),
    /// One number for a pair of texts.
    Score { head: ScoreHead, sigmoid: bool },
}

/// How a classifier reads the first token's row. Both are a dense layer, tanh, and a projection to one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreHead {
    /// `bert.pooler.dense`, `classifier`.
    Pooler,
    /// `classifier.dense`, `classifier.out_proj`.
    Classifier,
}

/// Whether the folder at `path` holds an encoder, of a family that wick knows or of another one that its files give away. A decoder that
/// embeds is none.
#[must_use]
pub fn is_encoder(path: &Path) -> bool {
    let Ok(Value::Object(config)) = read_json(&path.join("config.json"), JSON_BYTES_MAX) else { return false };
    let known = text(&config, "model_type").is_some_and(|found| FAMILIES.iter().any(|(name, ..)| *name == found));
    known || (embedding::has_modules(path) && !text(&config, "model_type").is_some_and(registry::knows))
}

impl EncoderSpec {
    /// Reads the specification of the encoder in a folder.
    ///
    /// # Errors
    /// A file is missing or damaged, or says something that wick cannot do; the error names it.
    pub fn read(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join("config.json");
        let config = object(&path)?;
        let mut spec = Self::from_config(&config)?;
        if let HeadSpec::Embedding(_) = spec.head
            && let Some(embedding) = embedding::read_modules(folder, spec.hidden)?
        {
            spec.head = HeadSpec::Embedding(embedding);
        }
        spec.tokens_max = embedding::tokens_max(folder, spec.positions - spec.first_position)?;
        Ok(spec)
    }

    fn from_config(config: &Map<String, Value>) -> Result<Self, LoadError> {
        let model_type = text(config, "model_type").ok_or_else(|| bad("`model_type` is missing"))?;
        let Some((_, prefix, after_padding)) = FAMILIES.iter().find(|(name, ..)| *name == model_type) else {
            let known = FAMILIES.map(|(name, ..)| name).to_vec();
            return Err(LoadError::UnknownArchitecture { found: model_type.to_owned(), known });
        };
        let size = |key: &str, max: usize| {
            let value = config.get(key).and_then(Value::as_u64).and_then(|v| usize::try_from(v).ok());
            match value {
                Some(value) if (1..=max).contains(&value) => Ok(value),
                Some(value) => Err(bad(format!("`{key}` is {value}, but must be from 1 to {max}"))),
                None => Err(bad(format!("`{key}` is missing or no whole number"))),
            }
        };
        if let Some(kind) = text(config, "position_embedding_type")
            && kind != "absolute"
        {
            return Err(bad(format!("`position_embedding_type` is {kind}; wick knows `absolute`")));
        }
        let (hidden, heads) = (size("hidden_size", WIDTH_MAX)?, size("num_attention_heads", WIDTH_MAX)?);
        if !hidden.is_multiple_of(heads) {
            return Err(bad(format!("`num_attention_heads` is {heads}, which does not divide `hidden_size` {hidden}")));
        }
        let positions = size("max_position_embeddings", POSITIONS_MAX)?;
        let padding = config.get("pad_token_id").and_then(Value::as_u64).unwrap_or(1);
        let first_position =
            if *after_padding { usize::try_from(padding).unwrap_or(usize::MAX).saturating_add(1) } else { 0 };
        if first_position >= positions {
            return Err(bad(format!(
                "`pad_token_id` {padding} leaves none of the {positions} positions of `max_position_embeddings`"
            )));
        }
        let eps = config.get("layer_norm_eps").and_then(Value::as_f64).unwrap_or(1e-12);
        Ok(Self {
            hidden,
            inner: size("intermediate_size", WIDTH_MAX)?,
            layers: size("num_hidden_layers", LAYERS_MAX)?,
            heads,
            vocab: size("vocab_size", VOCAB_MAX)?,
            positions,
            first_position,
            segments: size("type_vocab_size", VOCAB_MAX)?,
            eps: eps as f32,
            act: activation(text(config, "hidden_act").unwrap_or("gelu"))?,
            prefix,
            tokens_max: positions - first_position,
            head: head(config)?,
        })
    }

    /// What a served model of this kind does, for messages.
    #[must_use]
    pub fn is_reranker(&self) -> bool {
        matches!(self.head, HeadSpec::Score { .. })
    }

    /// Values of the matrices in the layers: what products read.
    #[must_use]
    pub fn matrix_values(&self) -> u64 {
        (self.layers * (4 * self.hidden * self.hidden + 2 * self.hidden * self.inner)) as u64
    }
}

impl fmt::Display for EncoderSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hidden, layers, heads, inner, tokens_max, .. } = self;
        write!(f, "encoder: {layers} layers of {hidden}, {heads} heads, feed-forward {inner}, {tokens_max} tokens; ")?;
        match self.head {
            HeadSpec::Embedding(embedding) => write!(f, "{embedding}"),
            HeadSpec::Score { sigmoid, .. } => {
                write!(f, "scores pairs{}", if sigmoid { ", from 0 to 1" } else { "" })
            }
        }
    }
}

fn activation(name: &str) -> Result<Pointwise, LoadError> {
    match name {
        "gelu" => Ok(Pointwise::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Pointwise::GeluTanh),
        "relu" => Ok(Pointwise::Relu),
        "silu" | "swish" => Ok(Pointwise::Silu),
        other => Err(bad(format!("`hidden_act` is {other}; wick knows gelu, gelu_new, relu and silu"))),
    }
}

/// What the class of the checkpoint says: a classifier, or rows that are to be pooled (how, other files say).
fn head(config: &Map<String, Value>) -> Result<HeadSpec, LoadError> {
    let classes = config.get("architectures").and_then(Value::as_array);
    let class = classes.and_then(|classes| classes.first()).and_then(Value::as_str).unwrap_or_default();
    if !class.ends_with("ForSequenceClassification") {
        // Without other files the mean, as sentence-transformers does.
        return Ok(HeadSpec::Embedding(EmbeddingSpec { pooling: Pooling::Mean, normalize: false }));
    }
    // transformers writes labels rather than their number, and none for its default of two.
    let labels = match (config.get("num_labels").and_then(Value::as_u64), config.get("id2label")) {
        (Some(labels), _) => labels,
        (None, Some(Value::Object(names))) => names.len() as u64,
        (None, _) => 2,
    };
    if labels != 1 {
        return Err(bad(format!("the model gives {labels} numbers for a pair; a reranker gives one (`id2label`)")));
    }
    let head = if class == "BertForSequenceClassification" { ScoreHead::Pooler } else { ScoreHead::Classifier };
    Ok(HeadSpec::Score { head, sigmoid: applies_sigmoid(config)? })
}

/// sentence-transformers applies a sigmoid to one number, unless the configuration names another function.
fn applies_sigmoid(config: &Map<String, Value>) -> Result<bool, LoadError> {
    let newer = config.get("sentence_transformers").and_then(|s| s.get("activation_fn")).and_then(Value::as_str);
    let Some(name) = newer.or_else(|| text(config, "sbert_ce_default_activation_function")) else { return Ok(true) };
    match name.rsplit('.').next().unwrap_or_default() {
        "Sigmoid" => Ok(true),
        "Identity" => Ok(false),
        other => Err(bad(format!("the activation of scores is {other}; wick knows Sigmoid and Identity"))),
    }
}

fn object(path: &Path) -> Result<Map<String, Value>, LoadError> {
    match read_json(path, JSON_BYTES_MAX)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(LoadError::malformed(path, "not a JSON object")),
    }
}

fn text<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    config.get(key).and_then(Value::as_str)
}

fn bad(reason: impl Into<String>) -> LoadError {
    LoadError::Config(reason.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config() -> Value {
        json!({
            "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 40,
            "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0
        })
    }

    fn with(changes: Value) -> Value {
        let mut config = config();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        config
    }

    fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, json) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, json.to_string()).unwrap();
        }
        dir
    }

    #[test]
    fn a_sentence_transformer_is_read_with_its_modules() {
        let modules = json!([
            {"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
            {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}
        ]);
        let pooling =
            json!({"word_embedding_dimension": 32, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false});
        let dir = folder(&[
            ("config.json", config()),
            ("modules.json", modules),
            ("1_Pooling/config.json", pooling),
            ("sentence_bert_config.json", json!({"max_seq_length": 24})),
            ("tokenizer_config.json", json!({"model_max_length": 1e30})),
        ]);
        assert!(is_encoder(dir.path()));
        let spec = EncoderSpec::read(dir.path()).unwrap();
        assert_eq!(spec.head, HeadSpec::Embedding(EmbeddingSpec { pooling: Pooling::Cls, normalize: true }));
        assert_eq!((spec.tokens_max, spec.first_position, spec.act), (24, 0, Pointwise::Gelu));
    }

    #[test]
    fn positions_of_roberta_begin_behind_the_padding() {
        let dir = folder(&[(
            "config.json",
            with(json!({"model_type": "xlm-roberta", "architectures": ["XLMRobertaForSequenceClassification"],
                "pad_token_id": 1, "type_vocab_size": 1, "id2label": {"0": "LABEL_0"}})),
        )]);
        let spec = EncoderSpec::read(dir.path()).unwrap();
        assert_eq!((spec.first_position, spec.tokens_max), (2, 38));
        assert_eq!(spec.head, HeadSpec::Score { head: ScoreHead::Classifier, sigmoid: true });
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        let classifier = json!({"architectures": ["BertForSequenceClassification"]});
        for (changes, word) in [
            (json!({"model_type": "deberta-v2"}), "deberta-v2"),
            (json!({"position_embedding_type": "relative_key"}), "relative_key"),
            (json!({"hidden_act": "mish"}), "mish"),
            (json!({"num_attention_heads": 5}), "num_attention_heads"),
            (json!({"hidden_size": 0}), "hidden_size"),
            (json!({"layer_norm_eps": null, "vocab_size": "many"}), "vocab_size"),
            (classifier, "id2label"),
            (json!({"model_type": "roberta", "pad_token_id": u64::MAX}), "pad_token_id"),
        ] {
            let dir = folder(&[("config.json", with(changes))]);
            let error = EncoderSpec::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        for (module, pooling, word) in [
            ("Dense", json!({"pooling_mode_mean_tokens": true}), "Dense"),
            ("Normalize", json!({"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}), "mean_tokens"),
            ("Normalize", json!({"pooling_mode": "weightedmean"}), "weightedmean"),
            ("Normalize", json!({"pooling_mode": "mean", "embedding_dimension": 31}), "31"),
        ] {
            let modules =
                json!([{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "p"}, {"type": format!("a.{module}")}]);
            let dir = folder(&[("config.json", config()), ("modules.json", modules), ("p/config.json", pooling)]);
            let error = EncoderSpec::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        let escape = json!([{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "../p"}]);
        let dir = folder(&[("config.json", config()), ("modules.json", escape)]);
        assert!(EncoderSpec::read(dir.path()).unwrap_err().to_string().contains("../p"));
    }

    #[test]
    fn scores_go_through_the_function_that_the_configuration_names() {
        let one = json!({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}});
        let sigmoid = |extra: Value| {
            let mut config = with(one.clone());
            config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            EncoderSpec::from_config(config.as_object().unwrap()).map(|spec| spec.head)
        };
        let score = |sigmoid| HeadSpec::Score { head: ScoreHead::Pooler, sigmoid };
        assert_eq!(sigmoid(json!({})).unwrap(), score(true));
        let old = json!({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"});
        assert_eq!(sigmoid(old).unwrap(), score(false));
        let new = json!({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}});
        assert_eq!(sigmoid(new).unwrap(), score(true));
        let foreign = json!({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}});
        assert!(sigmoid(foreign).unwrap_err().to_string().contains("Tanh"));
    }
}
