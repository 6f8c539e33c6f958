//! Text → ids and back, for one model. Built by `hf.rs` (tokenizer.json) and `gguf.rs` (GGUF metadata).
use super::TextError;
use super::added::{AddedToken, AddedTokens, Reading, Span};
use super::merges::MergeBpe;
use super::pretokenize::PreTokenizer;
use super::spm::ScoredBpe;
use std::borrow::Cow;
use tokenizers::{
    Decoder as _, DecoderWrapper, Model as _, ModelWrapper, NormalizedString, Normalizer as _, NormalizerWrapper,
    OffsetReferential, OffsetType, PreTokenizedString, tokenizer::normalizer::Range as TextRange,
};

/// How plain text (no added tokens in it) becomes ids.
pub(super) enum Pipeline {
    /// Words, each of which `model` cuts into tokens.
    Words { normalizer: Option<NormalizerWrapper>, pre_tokenizer: PreTokenizer, model: WordModel },
    /// SentencePiece BPE with scores; `space_prefix` puts a space before every run of plain text.
    Scored { model: ScoredBpe, space_prefix: bool },
}

/// How a word becomes ids.
pub(super) enum WordModel {
    Merges(Box<MergeBpe>),
    /// Any other one of the `tokenizers` crate.
    Library(Box<ModelWrapper>),
}

/// How ids become text.
#[derive(Debug, Clone)]
pub(super) enum Decoding {
    /// The tokens' bytes in a row; invalid UTF-8 is replaced (the reference's `ByteLevel`).
    Bytes,
    /// As SentencePiece decodes. A run of byte tokens that is not UTF-8 gives one U+FFFD per byte.
    Pieces { first_space: FirstSpace },
    /// Any other decoder of the reference. `None`: tokens joined by spaces.
    Library(Option<Box<DecoderWrapper>>),
}

/// What happens to the space a SentencePiece model puts before the first word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstSpace {
    Kept,
    /// One leading space of the text is dropped (`Strip`).
    Stripped,
    /// All spaces of the first token are dropped (`Metaspace`).
    NoneInFirstToken,
}

/// What a vocabulary entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Missing,
    Normal,
    Byte,
    Control,
}

/// The special tokens before, between and after two texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PairFrame {
    pub before: Vec<u32>,
    pub between: Vec<u32>,
    pub after: Vec<u32>,
}

/// Everything a tokenizer is built from.
pub(super) struct Parts<'a> {
    pub pipeline: Pipeline,
    pub added: AddedTokens,
    pub decoding: Decoding,
    /// `vocabulary[id]`: the token as the model writes it; `None` where there is no such id.
    pub vocabulary: Vec<Option<Cow<'a, str>>>,
    /// Ids of single-byte tokens (`<0xNN>`) and their bytes.
    pub byte_tokens: Vec<(u32, u8)>,
    /// What `add_special` puts around a text.
    pub prefix: Vec<u32>,
    pub suffix: Vec<u32>,
    /// What it puts around and between two texts.
    pub pair: Option<PairFrame>,
    pub bos: Option<u32>,
    pub stop_ids: Vec<u32>,
}

/// Text → ids and back.
pub struct Tokenizer {
    pipeline: Pipeline,
    added: AddedTokens,
    decoding: Decoding,
    kinds: Vec<Kind>,
    /// The bytes of token `id` are `bytes[starts[id]..starts[id + 1]]`.
    bytes: Vec<u8>,
    starts: Vec<usize>,
    /// The tokens' own spelling, where the decoder needs it.
    spelling: Vec<Option<String>>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    pair: Option<PairFrame>,
    bos: Option<u32>,
    stop_ids: Vec<u32>,
}

impl Tokenizer {
    pub(super) fn new(mut parts: Parts<'_>) -> Self {
        for token in parts.added.tokens() {
            let slot = token.id as usize;
            if slot >= parts.vocabulary.len() {
                parts.vocabulary.resize(slot + 1, None);
            }
            parts.vocabulary[slot] = Some(Cow::Owned(token.content.clone()));
        }
        let mut kinds: Vec<Kind> =
            parts.vocabulary.iter().map(|token| if token.is_some() { Kind::Normal } else { Kind::Missing }).collect();
        let mut single = std::collections::HashMap::new();
        for &(id, byte) in &parts.byte_tokens {
            if let Some(kind) = kinds.get_mut(id as usize) {
                *kind = Kind::Byte;
                single.insert(id as usize, byte);
            }
        }
        for token in parts.added.tokens().iter().filter(|token| token.special) {
            kinds[token.id as usize] = Kind::Control;
        }
        let mut bytes = Vec::new();
        let mut starts = Vec::with_capacity(kinds.len() + 1);
        for (id, token) in parts.vocabulary.iter().enumerate() {
            starts.push(bytes.len());
            let Some(token) = token else { continue };
            match (&parts.decoding, single.get(&id)) {
                (_, Some(&byte)) if kinds[id] == Kind::Byte => bytes.push(byte),
                (Decoding::Bytes, _) => bytes.extend(byte_level_decode(token)),
                (Decoding::Pieces { .. }, _) => bytes.extend_from_slice(token.replace('\u{2581}', " ").as_bytes()),
                (Decoding::Library(_), _) => bytes.extend_from_slice(token.as_bytes()),
            }
        }
        starts.push(bytes.len());
        let spelling = match parts.decoding {
            Decoding::Library(_) => parts.vocabulary.into_iter().map(|token| token.map(Cow::into_owned)).collect(),
            _ => Vec::new(),
        };
        Self {
            pipeline: parts.pipeline,
            added: parts.added,
            spelling,
            decoding: parts.decoding,
            kinds,
            bytes,
            starts,
            prefix: parts.prefix,
            suffix: parts.suffix,
            pair: parts.pair,
            bos: parts.bos,
            stop_ids: parts.stop_ids,
        }
    }

    /// Plain text: control tokens in it stay text; BOS/EOS as the model's tokenizer adds them if `add_special`.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        self.encode_as(text, Reading::Text, add_special)
    }

    /// Control tokens written in the text become control tokens (`/v1/completions` prompts, as every other server does).
    pub fn encode_with_special(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        self.encode_as(text, Reading::Parse, add_special)
    }

    /// The ids of a rendered chat: control tokens where the template wrote them, plain text where users did. Adds
    /// neither BOS nor EOS: the template writes them.
    pub fn encode_prompt(&self, prompt: &super::RenderedPrompt) -> Result<Vec<u32>, TextError> {
        self.encode_as(&prompt.text, Reading::Prompt { guard: prompt.guard }, false)
    }

    fn encode_as(&self, text: &str, reading: Reading, add_special: bool) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 4);
        if add_special {
            ids.extend_from_slice(&self.prefix);
        }
        for span in self.added.split_raw(text, reading) {
            match span {
                Span::Token(id) => ids.push(id),
                Span::Text(range) => {
                    let starts_text = range.start == 0;
                    self.encode_plain(&text[range], starts_text, reading, &mut ids).map_err(TextError::Encode)?;
                }
            }
        }
        if add_special {
            ids.extend_from_slice(&self.suffix);
        }
        Ok(ids)
    }

    /// A run of text between the tokens that are found before normalisation.
    fn encode_plain(&self, text: &str, starts_text: bool, reading: Reading, out: &mut Vec<u32>) -> Result<(), String> {
        let guard = match reading {
            Reading::Prompt { guard: Some(guard) } if text.contains(guard) => Some(guard),
            _ => None,
        };
        match &self.pipeline {
            Pipeline::Scored { model, space_prefix } => {
                let mut piece = String::with_capacity(text.len() + 3);
                if *space_prefix {
                    piece.push('\u{2581}');
                }
                let kept = text.chars().filter(|&c| Some(c) != guard);
                piece.extend(kept.map(|c| if c == ' ' { '\u{2581}' } else { c }));
                model.encode(&piece, out);
                Ok(())
            }
            Pipeline::Words { normalizer, pre_tokenizer, model } => {
                let mut normalized = NormalizedString::from(text);
                if let Some(normalizer) = normalizer {
                    normalizer.normalize(&mut normalized).map_err(|error| error.to_string())?;
                }
                let spans = if self.added.has_normalized() {
                    self.added.split_normalized(normalized.get(), reading, |range| {
                        normalized.get_range_original(TextRange::Normalized(range)).map(str::to_owned)
                    })
                } else {
                    vec![Span::Text(0..normalized.get().len())]
                };
                let single = spans.len() == 1;
                let mut words = Words { pre_tokenizer, model, guard, starts_text };
                for span in spans {
                    match span {
                        Span::Token(id) => out.push(id),
                        Span::Text(_) if single => return words.encode(normalized, out),
                        Span::Text(range) => {
                            let Some(slice) = normalized.slice(TextRange::Normalized(range)) else { continue };
                            words.encode(slice, out)?;
                            words.starts_text = false;
                        }
                    }
                }
                Ok(())
            }
        }
    }

    /// Whether `text` has far more than `max` tokens (false: tokenize it to know). The work is bounded by `max`, not by the
    /// text: a text is only looked at if it is long for so few tokens, in pieces, until they have twice `max` tokens.
    /// Tokens next to a cut may differ from those of the whole text: far fewer than `max`.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn is_far_longer_than(&self, text: &str, max: usize) -> Result<bool, TextError> {
        const BYTES_PER_TOKEN: usize = 16;
        const PIECE_BYTES: usize = 16 << 10;
        if text.len() / BYTES_PER_TOKEN <= max {
            return Ok(false);
        }
        let (mut rest, mut tokens) = (text, 0);
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
            tokens += self.encode(piece, false)?.len();
            if tokens / 2 > max {
                return Ok(true);
            }
            rest = after;
        }
        Ok(false)
    }

    /// The bytes a token stands for (byte-level tokens decoded, `▁` as a space). Control tokens: their text. `None`: no such id.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        match self.kinds.get(id)? {
            Kind::Missing => None,
            _ => Some(&self.bytes[self.starts[id]..self.starts[id + 1]]),
        }
    }

    #[must_use]
    pub fn is_control(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&Kind::Control)
    }

    /// Whole-sequence decoding as the reference does it (without its optional clean-up of spaces); invalid UTF-8
    /// becomes U+FFFD, ids outside the vocabulary give nothing.
    #[must_use]
    pub fn decode(&self, ids: &[u32], skip_control: bool) -> String {
        let kept = ids.iter().copied().filter(|&id| !(skip_control && self.is_control(id)));
        match &self.decoding {
            Decoding::Bytes => {
                let bytes: Vec<u8> = kept.filter_map(|id| self.token_bytes(id)).flatten().copied().collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Decoding::Pieces { first_space } => self.decode_pieces(kept, *first_space),
            Decoding::Library(decoder) => {
                let tokens: Vec<String> =
                    kept.filter_map(|id| self.spelling.get(id as usize).cloned().flatten()).collect();
                match decoder {
                    None => tokens.join(" "),
                    // The library's decoders fail on no token list; should one, the raw tokens are the honest answer.
                    Some(decoder) => decoder.decode(tokens.clone()).unwrap_or_else(|_| tokens.concat()),
                }
            }
        }
    }

    fn decode_pieces(&self, ids: impl Iterator<Item = u32>, first_space: FirstSpace) -> String {
        let mut text = String::new();
        let mut run: Vec<u8> = Vec::new();
        let end_run = |run: &mut Vec<u8>, text: &mut String| {
            match std::str::from_utf8(run) {
                Ok(valid) => text.push_str(valid),
                Err(_) => text.extend(run.iter().map(|_| '\u{fffd}')),
            }
            run.clear();
        };
        let mut first = true;
        for id in ids {
            let Some(bytes) = self.token_bytes(id) else { continue };
            if self.kinds[id as usize] == Kind::Byte {
                run.extend_from_slice(bytes);
            } else {
                end_run(&mut run, &mut text);
                let piece = String::from_utf8_lossy(bytes);
                if first && first_space == FirstSpace::NoneInFirstToken {
                    text.push_str(&piece.replace(' ', ""));
                } else {
                    text.push_str(&piece);
                }
            }
            first = false;
        }
        end_run(&mut run, &mut text);
        if first_space == FirstSpace::Stripped && text.starts_with(' ') {
            text.remove(0);
        }
        text
    }

    /// Whether a text is the bytes of its tokens in a row (but for a space that SentencePiece puts first).
    #[must_use]
    pub fn is_bytewise(&self) -> bool {
        !matches!(self.decoding, Decoding::Library(_))
    }

    pub(super) fn first_space(&self) -> FirstSpace {
        match self.decoding {
            Decoding::Pieces { first_space } => first_space,
            _ => FirstSpace::Kept,
        }
    }

    /// One more than the highest id.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.kinds.len()
    }

    /// Ids that end a turn or the text: from generation_config, the tokenizer's eos, and eot/eom tokens of the template.
    #[must_use]
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The tokens of a text, without special ones, with those that the model wants around it.
    #[must_use]
    pub fn frame(&self, text: &[u32]) -> Vec<u32> {
        [&self.prefix, text, &self.suffix].concat()
    }

    /// How many special tokens [`Self::frame`] adds.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        self.prefix.len() + self.suffix.len()
    }

    /// The tokens of two texts with the special ones around and between them, and where the second text begins. `None`: the model has no
    /// form for two texts.
    #[must_use]
    pub fn frame_pair(&self, first: &[u32], second: &[u32]) -> Option<(Vec<u32>, usize)> {
        let PairFrame { before, between, after } = self.pair.as_ref()?;
        let at = before.len() + first.len() + between.len();
        Some(([before, first, between, second, after].concat(), at))
    }

    /// How many special tokens [`Self::frame_pair`] adds; `None` as there.
    #[must_use]
    pub fn frame_pair_len(&self) -> Option<usize> {
        self.pair.as_ref().map(|frame| frame.before.len() + frame.between.len() + frame.after.len())
    }

    /// Tokens that `add_special` puts before a text.
    #[must_use]
    pub fn prefix_len(&self) -> usize {
        self.prefix.len()
    }

    #[must_use]
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// Tokens that are found in a text as a whole: control tokens (`special`) and others (`<tool_call>`, `<think>`).
    #[must_use]
    pub fn added_tokens(&self) -> &[AddedToken] {
        self.added.tokens()
    }

    /// The id of an added token with exactly this text.
    #[must_use]
    pub fn added_token_id(&self, content: &str) -> Option<u32> {
        self.added.tokens().iter().find(|token| token.content == content).map(|token| token.id)
    }

    pub(super) fn add_stop_ids(&mut self, ids: impl IntoIterator<Item = u32>) {
        for id in ids {
            if !self.stop_ids.contains(&id) {
                self.stop_ids.push(id);
            }
        }
    }
}

/// The last part of a pipeline of words.
struct Words<'a> {
    pre_tokenizer: &'a PreTokenizer,
    model: &'a WordModel,
    guard: Option<char>,
    starts_text: bool,
}

impl Words<'_> {
    fn encode(&self, mut text: NormalizedString, out: &mut Vec<u32>) -> Result<(), String> {
        if let Some(guard) = self.guard {
            text.filter(|c| c != guard);
        }
        let mut pieces = PreTokenizedString::from(text);
        self.pre_tokenizer.split(&mut pieces, self.starts_text)?;
        for (piece, _, _) in pieces.get_splits(OffsetReferential::Original, OffsetType::None) {
            match self.model {
                _ if piece.is_empty() => {}
                WordModel::Merges(model) => model.encode(piece, out),
                WordModel::Library(model) => {
                    let tokens = model.tokenize(piece).map_err(|error| error.to_string())?;
                    out.extend(tokens.iter().map(|token| token.id));
                }
            }
        }
        Ok(())
    }
}

/// The byte a character of the byte-level alphabet stands for (GPT-2's `bytes_to_unicode`, inverted).
pub(super) fn byte_of_char(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        // The other bytes in order: 0..=0x20, 0x7f..=0xa0, 0xad.
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// A token's bytes: its characters through the byte-level alphabet, or its own UTF-8 if one is not in it (as the
/// reference treats added tokens).
fn byte_level_decode(token: &str) -> Vec<u8> {
    token.chars().map(byte_of_char).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte of a token spelled `<0xNN>`.
pub(super) fn byte_of_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let mut seen = [false; 256];
        for c in (0..0x200).filter_map(char::from_u32) {
            if let Some(byte) = byte_of_char(c) {
                assert!(!std::mem::replace(&mut seen[usize::from(byte)], true), "{c:?}");
            }
        }
        assert!(seen.iter().all(|&s| s));
        assert_eq!(byte_level_decode("ĠhelloĊ"), b" hello\n");
        assert_eq!(byte_level_decode("<wick b>"), b"<wick b>");
        assert_eq!(byte_level_decode("<｜User｜>"), "<｜User｜>".as_bytes());
    }

    #[test]
    fn byte_tokens_are_read_strictly() {
        assert_eq!(byte_of_token("<0x0A>"), Some(10));
        for wrong in ["<0xA>", "<0x+A>", "<0x00A>", "0x0A", "<0xGG>", "<0xé>"] {
            assert_eq!(byte_of_token(wrong), None);
        }
    }
}
