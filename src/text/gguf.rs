//! The tokenizer in a GGUF file's metadata.
//!
//! Keys and token types: the GGUF specification of ggml. The pipelines behind `tokenizer.ggml.pre` are those of the
//! families' published tokenizer.json files.
use super::added::{AddedToken, AddedTokens};
use super::merges::MergeBpe;
use super::names::Names;
use super::pretokenize::{self, PreTokenizer};
use super::spm::{Piece, ScoredBpe};
use super::tokenizer::{Decoding, FirstSpace, Parts, Pipeline, Tokenizer, WordModel, byte_of_token};
use super::{Loaded, TemplateSource, TextError};
use crate::weights::LoadError;
use crate::weights::gguf::{GgufFile, GgufValue, Strings};
use std::borrow::Cow;
use std::path::Path;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// How a byte-level family splits text before the model.
struct Family {
    names: &'static [&'static str],
    expression: &'static str,
    /// Composes characters first (NFC).
    compose: bool,
    /// Each digit is a word of its own, before the expression.
    single_digits: bool,
    /// A word that is a token is taken whole, even where merges would not reach it.
    whole_words: bool,
    /// BOS is added unless the file says otherwise.
    adds_bos: bool,
}

const FAMILIES: &[Family] = &[
    Family {
        names: &["llama-bpe", "llama3", "llama-v3"],
        expression: pretokenize::LLAMA3,
        compose: false,
        single_digits: false,
        whole_words: true,
        adds_bos: true,
    },
    Family {
        names: &["smollm"],
        expression: pretokenize::GPT2,
        compose: false,
        single_digits: true,
        whole_words: false,
        adds_bos: false,
    },
    Family {
        names: &["qwen2", "deepseek-r1-qwen"],
        expression: pretokenize::QWEN2,
        compose: true,
        single_digits: false,
        whole_words: false,
        adds_bos: false,
    },
    Family {
        names: &["tekken"],
        expression: pretokenize::TEKKEN,
        compose: false,
        single_digits: false,
        whole_words: true,
        adds_bos: true,
    },
    Family {
        names: &["gpt-2"],
        expression: pretokenize::GPT2,
        compose: false,
        single_digits: false,
        whole_words: false,
        adds_bos: false,
    },
];

/// Most tokens or merges: ten times those of the largest vocabulary.
const STRINGS_MAX: usize = 1 << 22;
/// End-of-text tokens by name: files made before `eot_token_id` existed name only one end in their metadata.
const TEXT_ENDS: [&str; 2] = ["<|endoftext|>", "<|end_of_text|>"];

/// The tokenizer part of a GGUF file's metadata, as plain values.
#[derive(Debug, Clone, Default)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`
    pub model: String,
    /// `tokenizer.ggml.pre`
    pub pre: Option<String>,
    pub tokens: Strings,
    /// One per token.
    pub token_types: Vec<i32>,
    /// One per token; only for `llama`.
    pub scores: Option<Vec<f32>>,
    /// `left right` pairs; only for `gpt2`.
    pub merges: Option<Strings>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    /// Further ids that end a turn (`eot`, `eom`).
    pub ends: Vec<u32>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
}

pub(super) fn load(file: &GgufFile) -> Result<Loaded, TextError> {
    let path = file.path();
    let vocabulary = GgufVocabulary::read(file).map_err(|error| match error {
        LoadError::Malformed { path, reason } => TextError::Load { path, reason },
        other => TextError::load(path, other.to_string()),
    })?;
    let mut variables = Vec::new();
    for (name, key) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        let id = file.get_u32(&format!("tokenizer.ggml.{key}_token_id")).ok().flatten();
        if let Some(token) = id.and_then(|id| vocabulary.tokens.get(id as usize)) {
            variables.push((format!("{name}_token"), token.to_owned()));
        }
    }
    let mut sources = Vec::new();
    for (key, value) in file.entries() {
        let name = match key.strip_prefix("tokenizer.chat_template") {
            Some("") => "default",
            Some(rest) => match rest.strip_prefix('.') {
                Some(name) => name,
                None => continue,
            },
            None => continue,
        };
        let text = value.as_str().ok_or_else(|| {
            TextError::load(path, format!("metadata key `{key}` is {}, but must be a string", value.type_name()))
        })?;
        sources.push(TemplateSource { name: name.into(), text: text.into() });
    }
    Ok(Loaded { tokenizer: vocabulary.tokenizer(path)?, sources, variables })
}

impl GgufVocabulary {
    fn read(file: &GgufFile) -> Result<Self, LoadError> {
        let missing = |key: &str| LoadError::Malformed {
            path: file.path().to_owned(),
            reason: format!("metadata key `{key}` is missing: the file carries no usable tokenizer"),
        };
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let strings = |name: &str| {
            let Some(strings) = file.get_strings(&key(name))? else { return Ok(None) };
            if strings.len() > STRINGS_MAX {
                let reason = format!(
                    "metadata key `{}` has {} strings; wick reads at most {STRINGS_MAX}",
                    key(name),
                    strings.len()
                );
                return Err(LoadError::Malformed { path: file.path().to_owned(), reason });
            }
            Ok(Some(strings.clone()))
        };
        let id = |name: &str| file.get_u32(&key(&format!("{name}_token_id")));
        let mut ends = Vec::new();
        for name in ["eot", "eom"] {
            ends.extend(id(name)?);
        }
        // Some writers list end ids as an array.
        if let Some(GgufValue::Array(_)) = file.metadata(&key("eos_token_ids")) {
            let listed = file.get_i32s(&key("eos_token_ids"))?.unwrap_or_default();
            ends.extend(listed.iter().filter_map(|&id| u32::try_from(id).ok()));
        }
        Ok(Self {
            model: file.get_str(&key("model"))?.ok_or_else(|| missing(&key("model")))?.to_owned(),
            pre: file.get_str(&key("pre"))?.map(str::to_owned),
            tokens: strings("tokens")?.ok_or_else(|| missing(&key("tokens")))?,
            token_types: file.get_i32s(&key("token_type"))?.ok_or_else(|| missing(&key("token_type")))?.to_vec(),
            scores: file.get_f32s(&key("scores"))?.map(<[f32]>::to_vec),
            merges: strings("merges")?,
            bos: id("bos")?,
            eos: id("eos")?,
            unknown: id("unknown")?,
            ends,
            add_bos: file.get_bool(&key("add_bos_token"))?,
            add_eos: file.get_bool(&key("add_eos_token"))?,
            add_space_prefix: file.get_bool(&key("add_space_prefix"))?,
        })
    }

    /// Builds the tokenizer. `path` names the file in errors.
    ///
    /// # Errors
    /// `Load` for arrays that do not fit together, merges or ids that name no token; `UnknownPreTokenizer`;
    /// `UnknownTokenizerModel`.
    pub fn tokenizer(self, path: &Path) -> Result<Tokenizer, TextError> {
        let bad = |reason: String| TextError::load(path, format!("tokenizer: {reason}"));
        if self.tokens.len() != self.token_types.len() {
            return Err(bad(format!("{} tokens but {} token types", self.tokens.len(), self.token_types.len())));
        }
        if self.tokens.len() > u32::MAX as usize {
            return Err(bad("more tokens than ids".into()));
        }
        let named = [("bos", self.bos), ("eos", self.eos), ("unknown", self.unknown)];
        let ends = self.ends.iter().map(|&id| ("eot", Some(id)));
        for (name, id) in named.into_iter().chain(ends) {
            if let Some(id) = id.filter(|&id| id as usize >= self.tokens.len()) {
                return Err(bad(format!("the {name} token's id {id} is not below the {} tokens", self.tokens.len())));
            }
        }
        let scored = self.model == "llama";
        let added = self.added_tokens(scored);
        let (pipeline, decoding, adds_bos) = match self.model.as_str() {
            "gpt2" => {
                let (pipeline, adds_bos) = self.byte_level(&bad)?;
                (pipeline, Decoding::Bytes, adds_bos)
            }
            "llama" => {
                let space_prefix = self.add_space_prefix.unwrap_or(true);
                let first_space = if space_prefix { FirstSpace::Stripped } else { FirstSpace::Kept };
                (self.scored(space_prefix).map_err(&bad)?, Decoding::Pieces { first_space }, true)
            }
            other => {
                let known = vec!["gpt2", "llama"];
                return Err(TextError::UnknownTokenizerModel { found: other.into(), known });
            }
        };
        let byte_tokens = self.byte_tokens().filter(|_| scored).collect();
        let around = |add: Option<bool>, default: bool, id: Option<u32>| {
            if add.unwrap_or(default) { id.into_iter().collect() } else { Vec::new() }
        };
        let mut stop_ids: Vec<u32> = Vec::new();
        let text_ends = (0u32..)
            .zip(self.tokens.iter())
            .filter(|&(id, token)| self.token_types[id as usize] == CONTROL && TEXT_ENDS.contains(&token));
        for id in self.eos.into_iter().chain(self.ends.iter().copied()).chain(text_ends.map(|(id, _)| id)) {
            if !stop_ids.contains(&id) {
                stop_ids.push(id);
            }
        }
        Ok(Tokenizer::new(Parts {
            pipeline,
            added: AddedTokens::new(added, |content| Ok(content.to_owned())).map_err(&bad)?,
            decoding,
            byte_tokens,
            prefix: around(self.add_bos, adds_bos, self.bos),
            suffix: around(self.add_eos, false, self.eos),
            pair: None,
            bos: self.bos,
            stop_ids,
            vocabulary: self.tokens.iter().map(|token| Some(Cow::Borrowed(token))).collect(),
        }))
    }

    /// Control tokens and user-defined ones, found in text exactly as written. SentencePiece writes the spaces of
    /// user-defined pieces as U+2581; text has plain spaces.
    fn added_tokens(&self, scored: bool) -> Vec<AddedToken> {
        (0u32..)
            .zip(self.tokens.iter().zip(&self.token_types))
            .filter_map(|(id, (token, &kind))| match kind {
                CONTROL => Some(AddedToken::exact(id, token.to_owned(), true)),
                USER_DEFINED if scored => Some(AddedToken::exact(id, token.replace('\u{2581}', " "), false)),
                USER_DEFINED => Some(AddedToken::exact(id, token.to_owned(), false)),
                _ => None,
            })
            .collect()
    }

    fn byte_tokens(&self) -> impl Iterator<Item = (u32, u8)> {
        (0u32..)
            .zip(self.tokens.iter().zip(&self.token_types))
            .filter(|(_, (_, kind))| **kind == BYTE)
            .filter_map(|(id, (token, _))| Some((id, byte_of_token(token)?)))
    }

    fn scored(&self, space_prefix: bool) -> Result<Pipeline, String> {
        let scores = self.scores.clone().ok_or("metadata key `tokenizer.ggml.scores` is missing")?;
        let kinds = self.tokens.iter().zip(&self.token_types).map(|(token, &kind)| match kind {
            BYTE => byte_of_token(token).map_or(Piece::Inert, Piece::Byte),
            UNKNOWN | CONTROL | UNUSED => Piece::Inert,
            _ => Piece::Mergeable,
        });
        let pieces = self.tokens.iter().map(|token| token.replace(' ', "\u{2581}")).collect();
        let model = ScoredBpe::new(pieces, kinds.collect(), scores, self.unknown)?;
        Ok(Pipeline::Scored { model, space_prefix })
    }

    fn byte_level(&self, bad: &impl Fn(String) -> TextError) -> Result<(Pipeline, bool), TextError> {
        let pre = self.pre.as_deref();
        let Some(family) = FAMILIES.iter().find(|family| pre.is_some_and(|pre| family.names.contains(&pre))) else {
            return Err(TextError::UnknownPreTokenizer {
                found: pre.unwrap_or("(none)").into(),
                known: FAMILIES.iter().flat_map(|family| family.names).copied().collect(),
            });
        };
        let lines = self.merges.as_ref();
        let lines = lines.ok_or_else(|| bad("metadata key `tokenizer.ggml.merges` is missing".into()))?;
        let merges =
            lines.iter().map(|line| split_merge(line).ok_or_else(|| format!("merge `{line}` is not two tokens")));
        let tokens = Names::new(self.tokens.clone(), |id| self.token_types[id] != UNUSED);
        let model = MergeBpe::new(tokens, merges, family.whole_words).map_err(bad)?;
        let digits = family.single_digits.then(|| PreTokenizerWrapper::Digits(Digits::new(true)));
        let pipeline = Pipeline::Words {
            normalizer: family.compose.then_some(NormalizerWrapper::NFC(NFC)),
            pre_tokenizer: PreTokenizer::byte_level(digits, family.expression).map_err(bad)?,
            model: WordModel::Merges(Box::new(model)),
        };
        Ok((pipeline, family.adds_bos))
    }
}

/// `left right`; tokens contain no space.
fn split_merge(line: &str) -> Option<(&str, &str)> {
    line.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '))
}
