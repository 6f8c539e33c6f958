//! SentencePiece BPE from scores: the piece with the best score among all pairs of neighbours is merged first.
//!
//! Algorithm: SentencePiece's BPE model (`bpe_model.cc`), Kudo and Richardson 2018. No merge list is made from the
//! scores, so that a vocabulary of 262,144 pieces loads in the time it takes to hash it.
use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::names::Names;
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

/// A part of the text: one character at first, longer after merges. `len` 0: merged into its left neighbour.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    prev: usize,
    next: usize,
}

const NONE: usize = usize::MAX;

/// Two neighbours whose text is a piece.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Candidate {
    /// Best score first, then leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

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
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        for (index, (start, c)) in text.char_indices().enumerate() {
            let prev = index.checked_sub(1).unwrap_or(NONE);
            symbols.push(Symbol { start, len: c.len_utf8(), prev, next: index + 1 });
        }
        let Some(last) = symbols.last_mut() else { return };
        last.next = NONE;

        let mut queue = BinaryHeap::new();
        for left in 0..symbols.len() - 1 {
            queue.extend(self.candidate(text, &symbols, left, left + 1));
        }
        while let Some(best) = queue.pop() {
            let (left, right) = (symbols[best.left], symbols[best.right]);
            // One of the two has been merged since.
            if left.len == 0 || right.len == 0 || left.len + right.len != best.len || left.next != best.right {
                continue;
            }
            symbols[best.left].len = best.len;
            symbols[best.left].next = right.next;
            symbols[best.right].len = 0;
            if right.next != NONE {
                symbols[right.next].prev = best.left;
                queue.extend(self.candidate(text, &symbols, best.left, right.next));
            }
            if left.prev != NONE {
                queue.extend(self.candidate(text, &symbols, left.prev, best.left));
            }
        }

        let mut after_unknown = false;
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &text[symbol.start..symbol.start + symbol.len];
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

    fn candidate(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Candidate> {
        let len = symbols[left].len + symbols[right].len;
        if len > self.longest {
            return None;
        }
        let start = symbols[left].start;
        let id = self.ids.id(&text[start..start + len])?;
        Some(Candidate { score: self.scores[id as usize], left, right, len })
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
