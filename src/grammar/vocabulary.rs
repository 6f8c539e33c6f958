//! A model's tokens as llguidance sees them.
use std::sync::Arc;

use llguidance::toktrie::{INVALID_TOKEN, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use super::GrammarError;
use crate::text::Tokenizer;

/// The bytes of every token as a trie, and the tokenizer for text that the grammar leaves no choice about.
pub(super) struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl Vocabulary {
    /// `vocab`: tokens of the model, which may be more than the tokenizer knows or fewer.
    pub(super) fn new(tokenizer: Arc<Tokenizer>, vocab: usize) -> Result<Self, GrammarError> {
        if !tokenizer.is_bytewise() {
            return Err(GrammarError::Tokenizer);
        }
        let ids = 0..u32::try_from(vocab).unwrap_or(u32::MAX);
        let words: Vec<Vec<u8>> = ids.map(|id| word(&tokenizer, id)).collect();
        let ends: Vec<u32> = tokenizer.stop_ids().iter().copied().filter(|&id| (id as usize) < vocab).collect();
        let info = TokRxInfo::new(vocab as u32, ends.first().copied().unwrap_or(INVALID_TOKEN));
        let trie = TokTrie::from(&info, &words);
        let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) };
        Ok(Self { trie, tokenizer })
    }
}

/// What a token stands for in the trie: its bytes, or for control tokens a name that no text has. Tokens that stand for
/// nothing are never allowed.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    if tokenizer.is_control(id) {
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat();
    }
    // A byte that begins no character in UTF-8, and the marker of control tokens here.
    if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) { Vec::new() } else { bytes.to_vec() }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        // A tokenizer that normalises may change the text; then the longest tokens are taken, one after the other.
        let exact = |ids: &Vec<u32>| {
            let spelt = ids.iter().filter_map(|&id| self.tokenizer.token_bytes(id)).flatten();
            spelt.eq(bytes) && ids.iter().all(|&id| (id as usize) < self.trie.vocab_size())
        };
        let encoded = std::str::from_utf8(bytes).ok().and_then(|text| self.tokenizer.encode(text, false).ok());
        encoded.filter(exact).unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }

    /// Whether text that the grammar forces is forced in the tokens that the model would see in a prompt. A SentencePiece
    /// tokenizer puts a space before every text, so it cannot tell the tokens of a text's middle.
    fn tokenize_is_canonical(&self) -> bool {
        self.tokenizer.is_byte_level()
    }
}
