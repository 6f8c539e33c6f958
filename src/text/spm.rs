//! SentencePiece BPE from scores: the piece with the best score among all pairs of neighbours is merged first.
//!
//! Algorithm: SentencePiece's BPE model (`bpe_model.cc`), Kudo and Richardson 2018. No merge list is made from the
//! scores, so that a vocabulary of 262,144 pieces loads in the time it takes to hash it.
use std::cmp::Ordering;

use super::names::Names;
use super::neighbours::merge;
use crate::weights::gguf::Strings;

/// What a vocabulary entry may do in encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// A result of merges, or a character.
    Mergeable,
    /// Stands for one byte of a character that is no piece.
    Byte(u8),
    /// Never produced from text.
    Inert,
}

/// A SentencePiece BPE vocabulary.
pub struct ScoredBpe {
    ids: Names,
    scores: Vec<f32>,
    bytes: Option<Box<[u32; 256]>>,
    unknown: Option<u32>,
    longest: usize,
}

/// A part of the text: one character at first, longer after merges.
#[derive(Clone, Copy, PartialEq)]
struct Symbol {
    start: usize,
    len: usize,
}

impl Symbol {
    fn of(self, text: &str) -> &str {
        &text[self.start..self.start + self.len]
    }
}

/// A score of a piece; none is NaN.
struct Score(f32);

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Score {}

impl ScoredBpe {
    /// `pieces[id]` of kind `kinds[id]` with `scores[id]`: one of each per token. Of equal pieces the first counts.
    pub fn new(pieces: Strings, kinds: Vec<Piece>, scores: Vec<f32>, unknown: Option<u32>) -> Result<Self, String> {
        if pieces.len() != scores.len() {
            return Err(format!("{} tokens but {} scores", pieces.len(), scores.len()));
        }
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(format!("the score of token {id} is not a number"));
        }
        let mut bytes = [None; 256];
        for (id, kind) in (0u32..).zip(&kinds) {
            if let Piece::Byte(byte) = *kind {
                bytes[usize::from(byte)] = Some(id);
            }
        }
        let ids = Names::new(pieces, |id| kinds[id] == Piece::Mergeable);
        let longest = ids.iter().map(|(piece, _)| piece.len()).max().unwrap_or(0);
        let bytes: Option<Vec<u32>> = bytes.into_iter().collect();
        let bytes = bytes.and_then(|all| all.into_boxed_slice().try_into().ok());
        if bytes.is_none() && unknown.is_none() {
            return Err("the vocabulary has neither all byte tokens nor an unknown token".into());
        }
        Ok(Self { ids, scores, bytes, unknown, longest })
    }

    /// Appends the ids of `text`, in which spaces are already U+2581.
    pub fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let characters = text.char_indices().map(|(start, c)| Symbol { start, len: c.len_utf8() });
        let symbols = merge(characters, |left, right| {
            let whole = Symbol { start: left.start, len: left.len + right.len };
            let id = (whole.len <= self.longest).then(|| self.ids.id(whole.of(text)))??;
            Some((Score(self.scores[id as usize]), whole))
        });
        let mut after_unknown = false;
        for symbol in symbols {
            let piece = symbol.of(text);
            if let Some(id) = self.ids.id(piece) {
                out.push(id);
                after_unknown = false;
            } else if let Some(bytes) = &self.bytes {
                out.extend(piece.bytes().map(|byte| bytes[usize::from(byte)]));
                after_unknown = false;
            } else if let Some(unknown) = self.unknown
                && !std::mem::replace(&mut after_unknown, true)
            {
                out.push(unknown);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(pieces: &[&str], unknown: Option<u32>) -> Result<ScoredBpe, String> {
        let scores = (0..pieces.len()).map(|rank| -(rank as f32)).collect();
        ScoredBpe::new(pieces.iter().collect(), vec![Piece::Mergeable; pieces.len()], scores, unknown)
    }

    fn encode(model: &ScoredBpe, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        model.encode(text, &mut out);
        out
    }

    #[test]
    fn the_best_score_merges_first() {
        let model = model(&["?", "bc", "ab", "abc", "a", "b", "c"], Some(0)).unwrap();
        assert_eq!(encode(&model, "abc"), [3]);
        assert_eq!(encode(&model, "abcb"), [3, 5]);
        assert_eq!(encode(&model, "bcxyab"), [1, 0, 2]);
        assert!(encode(&model, "").is_empty());
    }

    #[test]
    fn ties_go_left_and_stale_pairs_are_dropped() {
        let model = model(&["?", "aa", "a"], Some(0)).unwrap();
        assert_eq!(encode(&model, "aaaaa"), [1, 1, 2]);
    }

    #[test]
    fn bad_vocabularies_are_errors() {
        assert!(model(&["a"], None).is_err_and(|e| e.contains("byte tokens")));
        let one = || ["a"].into_iter().collect();
        let nan = ScoredBpe::new(one(), vec![Piece::Mergeable], vec![f32::NAN], Some(0));
        assert!(nan.is_err_and(|e| e.contains("not a number")));
        let short = ScoredBpe::new(one(), vec![Piece::Mergeable], vec![], Some(0));
        assert!(short.is_err_and(|e| e.contains("scores")));
    }

    #[test]
    fn a_megabyte_of_one_letter_is_encoded() {
        let model = model(&["?", "aaaa", "aa", "a"], Some(0)).unwrap();
        assert_eq!(encode(&model, &"a".repeat(1 << 20)).len(), 1 << 18);
    }
}
