//! Ids → text, one token at a time.
use super::Tokenizer;
use super::tokenizer::FirstSpace;
use std::borrow::Borrow;
use std::sync::Arc;

/// Ids → text, one token at a time; never half a character.
///
/// The concatenation of all pushes and `finish` is the reference's decoding of the whole, except where bytes are not
/// UTF-8: here each maximal invalid part becomes one U+FFFD as soon as it can no longer complete.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// The start of a character whose rest has not come yet: at most three bytes.
    pending: Vec<u8>,
    /// What to do with spaces of the next token; `Kept` after the first one.
    first_space: FirstSpace,
    show_control: bool,
}

impl Detokenizer {
    /// For text that stands on its own (a chat answer): a SentencePiece model's first space is dropped as the
    /// reference's `decode` drops it.
    #[must_use]
    pub fn new(tokenizer: impl Borrow<Arc<Tokenizer>>) -> Self {
        let tokenizer = Arc::clone(tokenizer.borrow());
        let first_space = tokenizer.first_space();
        Self { tokenizer, pending: Vec::new(), first_space, show_control: false }
    }

    /// For text that continues other text (a completion): the first space is part of it.
    #[must_use]
    pub fn continuing(tokenizer: impl Borrow<Arc<Tokenizer>>) -> Self {
        Self { first_space: FirstSpace::Kept, ..Self::new(tokenizer) }
    }

    /// Shows control tokens as their text (`skip_special_tokens: false`).
    #[must_use]
    pub fn show_control(mut self, show: bool) -> Self {
        self.show_control = show;
        self
    }

    /// Text that became complete with this token (possibly empty). Control tokens give nothing unless shown.
    pub fn push(&mut self, id: u32) -> String {
        if !self.show_control && self.tokenizer.is_control(id) {
            return String::new();
        }
        self.push_shown(id)
    }

    /// As `push`; a control token gives its text, too.
    pub fn push_shown(&mut self, id: u32) -> String {
        let Some(bytes) = self.tokenizer.token_bytes(id) else { return String::new() };
        match self.first_space {
            FirstSpace::Kept => self.pending.extend_from_slice(bytes),
            FirstSpace::Stripped => self.pending.extend_from_slice(bytes.strip_prefix(b" ").unwrap_or(bytes)),
            FirstSpace::NoneInFirstToken => self.pending.extend(bytes.iter().filter(|&&byte| byte != b' ')),
        }
        if !bytes.is_empty() {
            self.first_space = FirstSpace::Kept;
        }
        self.take_complete()
    }

    /// What is still held back: an incomplete character, as U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    match error.error_len() {
                        Some(len) => {
                            text.push('\u{fffd}');
                            rest = &rest[len..];
                        }
                        None => break,
                    }
                }
            }
        }
        let held = rest.len();
        self.pending.drain(..self.pending.len() - held);
        text
    }
}
