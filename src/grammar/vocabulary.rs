//! A model's tokens as llguidance sees them.
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokRxInfo, TokTrie};

use super::GrammarError;
use crate::text::Tokenizer;

/// The bytes of every token of a model that has `vocab` of them (the tokenizer may know more or fewer) as a trie.
///
/// The environment is an approximate one: how a text is tokenized is the model's choice, also where the grammar leaves no
/// choice about the text. With a tokenizer llguidance would tokenize such a text ahead, however long it is, which no limit
/// of work bounds.
pub(super) fn environment(tokenizer: &Tokenizer, vocab: usize) -> Result<ApproximateTokEnv, GrammarError> {
    if !tokenizer.is_bytewise() {
        return Err(GrammarError::Tokenizer);
    }
    let ids = 0..u32::try_from(vocab).unwrap_or(u32::MAX);
    let words: Vec<Vec<u8>> = ids.map(|id| word(tokenizer, id)).collect();
    let ends: Vec<u32> = tokenizer.stop_ids().iter().copied().filter(|&id| (id as usize) < vocab).collect();
    let info = TokRxInfo::new(vocab as u32, ends.first().copied().unwrap_or(INVALID_TOKEN));
    let trie = TokTrie::from(&info, &words);
    Ok(ApproximateTokEnv::new(if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) }))
}

/// What a token stands for in the trie: its bytes, or for control tokens and ends of text a name that no text has. Tokens
/// that stand for nothing are never allowed.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    if tokenizer.is_control(id) || tokenizer.stop_ids().contains(&id) {
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat();
    }
    // A byte that begins no character in UTF-8, and the marker of control tokens here.
    if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) { Vec::new() } else { bytes.to_vec() }
}
