//! The tokenizer of a Hugging Face folder: tokenizer.json, tokenizer_config.json, generation_config.json, config.json,
//! chat_template.jinja.
use super::added::{AddedToken, AddedTokens};
use super::merges::MergeBpe;
use super::names::Names;
use super::pretokenize::PreTokenizer;
use super::tokenizer::{Decoding, FirstSpace, PairFrame, Parts, Pipeline, Tokenizer, WordModel, byte_of_token};
use super::{Loaded, TemplateSource, TextError};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{
    DecoderWrapper, Encoding, Model as _, ModelWrapper, NormalizedString, Normalizer as _, NormalizerWrapper,
    PostProcessor as _, PostProcessorWrapper, PreTokenizerWrapper, Token,
};

pub(super) fn load(folder: &Path) -> Result<Loaded, TextError> {
    let path = folder.join("tokenizer.json");
    let file = read_json(&path)?.ok_or_else(|| {
        TextError::load(folder, "there is no tokenizer.json; wick reads tokenizers from tokenizer.json or GGUF files")
    })?;
    let mut parts = parts(file).map_err(|reason| TextError::load(&path, reason))?;

    let config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let map = read_json(&folder.join("special_tokens_map.json"))?.unwrap_or_default();
    let mut variables = Vec::new();
    for name in ["bos", "eos", "unk", "sep", "pad", "cls", "mask"] {
        let name = format!("{name}_token");
        if let Some(text) = config.get(&name).and_then(token_text).or_else(|| map.get(&name).and_then(token_text)) {
            variables.push((name, text));
        }
    }
    let id_of = |variable: &str| {
        let (_, content) = variables.iter().find(|(name, _)| name == variable)?;
        (0u32..)
            .zip(&parts.vocabulary)
            .find(|(_, token)| token.as_deref() == Some(content))
            .map(|(id, _)| id)
            .or_else(|| parts.added.tokens().iter().find(|token| token.content == *content).map(|token| token.id))
    };
    let (bos, eos) = (id_of("bos_token"), id_of("eos_token"));
    parts.bos = bos;
    parts.stop_ids.extend(eos);
    for name in ["generation_config.json", "config.json"] {
        let Some(settings) = read_json(&folder.join(name))? else { continue };
        let ids = match settings.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.clone(),
            Some(id) => vec![id.clone()],
            None => Vec::new(),
        };
        for id in ids.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()) {
            if !parts.stop_ids.contains(&id) {
                parts.stop_ids.push(id);
            }
        }
    }
    let sources = template_sources(folder, &config)?;
    Ok(Loaded { tokenizer: Tokenizer::new(parts), sources, variables })
}

impl Tokenizer {
    /// From the bytes of a tokenizer.json.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn from_tokenizer_json(bytes: &[u8]) -> Result<Self, String> {
        match serde_json::from_slice(bytes).map_err(|error| error.to_string())? {
            Value::Object(file) => Ok(Self::new(parts(file)?)),
            _ => Err("it is not a JSON object".into()),
        }
    }

    /// The tests' own: bytes are tokens of their value.
    #[cfg(test)]
    pub(crate) fn tiny() -> std::sync::Arc<Self> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-tokenizer/tokenizer.json");
        Self::from_tokenizer_json(&std::fs::read(path).unwrap()).unwrap().into()
    }
}

/// `None`: no such file.
fn read_json(path: &Path) -> Result<Option<Map<String, Value>>, TextError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TextError::load(path, error.to_string())),
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(TextError::load(path, "it is not a JSON object")),
        Err(error) => Err(TextError::load(path, format!("it is not JSON: {error}"))),
    }
}

/// A special token is written as its text or as an object with `content`.
fn token_text(value: &Value) -> Option<String> {
    let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
    Some(text.to_owned())
}

/// chat_template.jinja and additional_chat_templates/*.jinja win over the templates in tokenizer_config.json, as in
/// the reference; of those, a list has names.
fn template_sources(folder: &Path, config: &Map<String, Value>) -> Result<Vec<TemplateSource>, TextError> {
    let mut sources = Vec::new();
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|error| TextError::load(path, error.to_string()));
    let main = folder.join("chat_template.jinja");
    if main.exists() {
        sources.push(TemplateSource { name: "default".into(), text: read(&main)? });
    }
    let more = folder.join("additional_chat_templates");
    if more.is_dir() {
        let entries = std::fs::read_dir(&more).map_err(|error| TextError::load(&more, error.to_string()))?;
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|ext| ext == "jinja")) {
            if let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) {
                sources.push(TemplateSource { name: name.into(), text: read(path)? });
            }
        }
    }
    if sources.is_empty() {
        match config.get("chat_template") {
            Some(Value::String(text)) => sources.push(TemplateSource { name: "default".into(), text: text.clone() }),
            Some(Value::Array(list)) => {
                for entry in list {
                    let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                    let (Some(name), Some(text)) = (text("name"), text("template")) else {
                        let path = folder.join("tokenizer_config.json");
                        return Err(TextError::load(&path, "an entry of `chat_template` lacks `name` or `template`"));
                    };
                    sources.push(TemplateSource { name, text });
                }
            }
            _ => {}
        }
    }
    Ok(sources)
}

/// The parts of a tokenizer from the content of a tokenizer.json. Truncation and padding in it are not followed:
/// wick never truncates.
fn parts(mut file: Map<String, Value>) -> Result<Parts<'static>, String> {
    fn component<T: serde::de::DeserializeOwned>(
        file: &mut Map<String, Value>,
        key: &str,
    ) -> Result<Option<T>, String> {
        match file.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value).map(Some).map_err(|error| format!("`{key}`: {error}")),
        }
    }
    let normalizer: Option<NormalizerWrapper> = component(&mut file, "normalizer")?;
    let pre_tokenizer: Option<PreTokenizerWrapper> = component(&mut file, "pre_tokenizer")?;
    let post_processor: Option<PostProcessorWrapper> = component(&mut file, "post_processor")?;
    let decoder: Option<DecoderWrapper> = component(&mut file, "decoder")?;
    let added = match file.remove("added_tokens") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list.iter().map(added_token).collect::<Result<_, _>>()?,
        Some(_) => return Err("`added_tokens` is not a list".into()),
    };
    let (model, vocab) = model(file.remove("model").ok_or("`model` is missing")?)?;
    let ids = vocab.values().copied().chain(added.iter().map(|token| token.id));
    let mut vocabulary = vec![None; table_len(ids, vocab.len() + added.len())?];
    for (token, id) in vocab {
        vocabulary[id as usize] = Some(Cow::Owned(token));
    }
    let decoding = decoding(decoder)?;
    let byte_tokens = match decoding {
        Decoding::Pieces { .. } => {
            (0u32..).zip(&vocabulary).filter_map(|(id, token)| Some((id, byte_of_token(token.as_deref()?)?))).collect()
        }
        _ => Vec::new(),
    };
    let (prefix, suffix) = around(post_processor.as_ref())?;
    let pair = post_processor.as_ref().and_then(around_pair);
    let added = AddedTokens::new(added, |content| {
        let mut text = NormalizedString::from(content);
        if let Some(normalizer) = &normalizer {
            normalizer.normalize(&mut text).map_err(|error| error.to_string())?;
        }
        Ok(text.get().to_owned())
    })?;
    let pre_tokenizer = PreTokenizer::new(pre_tokenizer)?;
    let pipeline = Pipeline::Words { normalizer, pre_tokenizer, model };
    Ok(Parts {
        pipeline,
        added,
        decoding,
        vocabulary,
        byte_tokens,
        prefix,
        suffix,
        pair,
        bos: None,
        stop_ids: Vec::new(),
    })
}

/// Entries of a table of tokens by these ids: a file with one absurd id must not allocate gigabytes.
fn table_len(ids: impl Iterator<Item = u32>, tokens: usize) -> Result<usize, String> {
    let highest = ids.max().unwrap_or(0) as usize;
    if highest >= 2 * tokens + 65_536 {
        return Err(format!("token id {highest} is far above the number of tokens ({tokens})"));
    }
    Ok(highest + 1)
}

fn added_token(value: &Value) -> Result<AddedToken, String> {
    let flag = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(false);
    let id = value.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    let content = value.get("content").and_then(Value::as_str);
    let (Some(id), Some(content)) = (id, content) else {
        return Err(format!("added token {value} lacks a valid `id` or `content`"));
    };
    Ok(AddedToken {
        id,
        content: content.to_owned(),
        special: flag("special"),
        normalized: flag("normalized"),
        single_word: flag("single_word"),
        lstrip: flag("lstrip"),
        rstrip: flag("rstrip"),
    })
}

/// The model, and its tokens with their ids.
fn model(mut value: Value) -> Result<(WordModel, HashMap<String, u32>), String> {
    let is_bpe = match value.get("type").and_then(Value::as_str) {
        Some(kind) => kind == "BPE",
        None => value.get("merges").is_some(),
    };
    if !is_bpe {
        let model: ModelWrapper = serde_json::from_value(value).map_err(|error| format!("`model`: {error}"))?;
        let vocab = model.get_vocab();
        return Ok((WordModel::Library(Box::new(model)), vocab));
    }
    let fields = value.as_object_mut().ok_or("`model` is not an object")?;
    let Some(Value::Object(entries)) = fields.remove("vocab") else {
        return Err("`model.vocab` is not an object".into());
    };
    let mut vocab: HashMap<String, u32> = HashMap::with_capacity(entries.len());
    for (token, id) in entries {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| format!("`model.vocab`: the id of `{token}` is not a 32-bit number"))?;
        vocab.insert(token, id);
    }
    let Some(Value::Array(lines)) = fields.remove("merges") else { return Err("`model.merges` is not a list".into()) };
    let merges = lines.into_iter().map(merge).collect::<Result<Merges, String>>()?;
    let text = |key: &str| fields.get(key).and_then(Value::as_str).map(str::to_owned);
    let flag = |key: &str| fields.get(key).and_then(Value::as_bool).unwrap_or(false);
    if text("continuing_subword_prefix").is_some_and(|prefix| !prefix.is_empty()) {
        return Err("`model.continuing_subword_prefix` is set: wick does not know this kind of BPE".into());
    }
    let bad = |reason: String| format!("`model.merges`: {reason}");
    let suffix = text("end_of_word_suffix").filter(|suffix| !suffix.is_empty());
    if text("unk_token").is_none() && suffix.is_none() && !flag("byte_fallback") {
        let mut by_id = vec![None; table_len(vocab.values().copied(), vocab.len())?];
        for (token, &id) in &vocab {
            by_id[id as usize] = Some(token.as_str());
        }
        // Tokens that share an id are left to the library.
        if by_id.iter().flatten().count() == vocab.len() {
            let names =
                Names::new(by_id.iter().map(|token| token.unwrap_or_default()).collect(), |id| by_id[id].is_some());
            let merges = merges.iter().map(|(left, right)| Ok((left.as_str(), right.as_str())));
            let model = MergeBpe::new(names, merges, flag("ignore_merges")).map_err(bad)?;
            return Ok((WordModel::Merges(Box::new(model)), vocab));
        }
    }
    check_merges(&merges, |token| vocab.contains_key(token)).map_err(bad)?;
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab.iter().map(|(token, &id)| (token.clone(), id)).collect::<Vocab>(), merges)
        .fuse_unk(flag("fuse_unk"))
        .byte_fallback(flag("byte_fallback"))
        .ignore_merges(flag("ignore_merges"));
    if let Some(unknown) = text("unk_token") {
        builder = builder.unk_token(unknown);
    }
    if let Some(suffix) = suffix {
        builder = builder.end_of_word_suffix(suffix);
    }
    let model = builder.build().map_err(|error| format!("`model`: {error}"))?;
    Ok((WordModel::Library(Box::new(ModelWrapper::BPE(model))), vocab))
}

/// Every merge joins two tokens into a third. The library relies on it (it would index out of bounds).
fn check_merges(merges: &[(String, String)], known: impl Fn(&str) -> bool) -> Result<(), String> {
    let mut whole = String::new();
    for (left, right) in merges {
        whole.clear();
        whole.push_str(left);
        whole.push_str(right);
        for token in [left.as_str(), right, &whole] {
            if !known(token) {
                return Err(format!("merge `{left} {right}` names the unknown token `{token}`"));
            }
        }
    }
    Ok(())
}

/// Written as `"left right"` or `["left", "right"]`.
fn merge(value: Value) -> Result<(String, String), String> {
    let pair = match &value {
        Value::String(line) => line.split_once(' '),
        Value::Array(pair) => match pair.as_slice() {
            [left, right] => left.as_str().zip(right.as_str()),
            _ => None,
        },
        _ => None,
    };
    let (left, right) = pair.ok_or_else(|| format!("`model.merges`: {value} is not two tokens"))?;
    Ok((left.to_owned(), right.to_owned()))
}

/// Recognises the decoders of the supported families; any other one is the library's own.
fn decoding(decoder: Option<DecoderWrapper>) -> Result<Decoding, String> {
    Ok(match decoder {
        Some(DecoderWrapper::ByteLevel(_)) => Decoding::Bytes,
        Some(DecoderWrapper::Metaspace(meta)) if meta.get_replacement() == '\u{2581}' => Decoding::Pieces {
            first_space: match meta.prepend_scheme {
                PrependScheme::Never => FirstSpace::Kept,
                _ => FirstSpace::NoneInFirstToken,
            },
        },
        Some(DecoderWrapper::Sequence(sequence)) => {
            let shape = serde_json::to_value(&sequence).map_err(|error| format!("`decoder`: {error}"))?;
            let steps = shape.get("decoders").and_then(Value::as_array).cloned().unwrap_or_default();
            let kind = |step: &Value| step.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
            let kinds: Vec<String> = steps.iter().map(kind).collect();
            let space = |step: &Value| {
                step.pointer("/pattern/String").and_then(Value::as_str) == Some("\u{2581}")
                    && step.get("content").and_then(Value::as_str) == Some(" ")
            };
            let strip = |step: &Value| {
                step.get("content").and_then(Value::as_str) == Some(" ")
                    && step.get("start").and_then(Value::as_u64) == Some(1)
                    && step.get("stop").and_then(Value::as_u64) == Some(0)
            };
            match kinds.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
                ["Replace", "ByteFallback", "Fuse"] if space(&steps[0]) => {
                    Decoding::Pieces { first_space: FirstSpace::Kept }
                }
                ["Replace", "ByteFallback", "Fuse", "Strip"] if space(&steps[0]) && strip(&steps[3]) => {
                    Decoding::Pieces { first_space: FirstSpace::Stripped }
                }
                _ if steps.iter().any(|step| step.get("stop").and_then(Value::as_u64).unwrap_or(0) > 0) => {
                    return Err("`decoder`: a Strip that cuts the end of tokens is not supported".into());
                }
                _ => Decoding::Library(Some(Box::new(DecoderWrapper::Sequence(sequence)))),
            }
        }
        Some(DecoderWrapper::Strip(strip)) if strip.stop > 0 => {
            return Err("`decoder`: a Strip that cuts the end of tokens is not supported".into());
        }
        Some(other) => Decoding::Library(Some(Box::new(other))),
        None => Decoding::Library(None),
    })
}

/// What the post-processor puts before and after a text: found by giving it a text of one token.
fn around(post_processor: Option<&PostProcessorWrapper>) -> Result<(Vec<u32>, Vec<u32>), String> {
    let Some(post_processor) = post_processor else { return Ok((Vec::new(), Vec::new())) };
    const TEXT: u32 = u32::MAX;
    let text = Encoding::from_tokens(vec![Token::new(TEXT, String::new(), (0, 0))], 0);
    let whole = post_processor.process(text, None, true).map_err(|error| format!("`post_processor`: {error}"))?;
    let ids = whole.get_ids();
    let at = ids.iter().position(|&id| id == TEXT).ok_or("`post_processor` drops the text")?;
    Ok((ids[..at].to_vec(), ids[at + 1..].to_vec()))
}

/// What the post-processor puts around and between two texts; `None` if it keeps no two texts apart.
fn around_pair(post_processor: &PostProcessorWrapper) -> Option<PairFrame> {
    const TEXTS: [u32; 2] = [u32::MAX, u32::MAX - 1];
    let [first, second] = TEXTS.map(|id| Encoding::from_tokens(vec![Token::new(id, String::new(), (0, 0))], 0));
    let whole = post_processor.process(first, Some(second), true).ok()?;
    let ids = whole.get_ids();
    let at = |id: u32| ids.iter().position(|&found| found == id);
    let (first, second) = (at(TEXTS[0])?, at(TEXTS[1])?);
    let between = ids.get(first + 1..second)?.to_vec();
    (!between.is_empty()).then(|| PairFrame {
        before: ids[..first].to_vec(),
        between,
        after: ids[second + 1..].to_vec(),
    })
}
