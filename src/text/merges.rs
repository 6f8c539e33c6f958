//! Byte-pair encoding by a list of merges: of all pairs of neighbours the one whose merge comes first in the list is merged first.
//!
//! Algorithm: Sennrich, Haddow and Birch 2016, with the order of the `tokenizers` crate's `BPE`, whose tables hold each token as three
//! strings: for 150,000 tokens tens of megabytes, and a third of a second of a server's start. Here a token is a number, and strings are
//! only looked at while the tables are made.
use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::names::Names;
use super::neighbours::merge;

/// A list of merges and what they are made of.
pub struct MergeBpe {
    /// The tokens of one character.
    characters: HashMap<char, u32>,
    /// What becomes of two neighbours.
    merges: HashMap<u64, Merge, BuildHasherDefault<PairHasher>>,
    /// Where a word that is a token is taken whole.
    words: Option<Names>,
}

/// The place of a merge in the list, and its result.
#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

/// Two neighbours as one number.
fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// One multiplication: pairs come from the model's own tables.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn write_u64(&mut self, pair: u64) {
        // The high half of the product depends on all bits of the pair, the low one is what tables index with.
        let product = u128::from(pair ^ 0x9e37_79b9_7f4a_7c15) * 0x2d35_8dcc_aa6c_78a5;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only pairs are hashed: this is a bug")
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl MergeBpe {
    /// From the tokens that words are made of and the merges, (left, right) each; `whole_words`: a word that is a token is taken whole, even
    /// where merges would not reach it.
    ///
    /// # Errors
    /// A merge that names an unknown token.
    pub fn new<'a>(
        tokens: Names,
        merges: impl ExactSizeIterator<Item = Result<(&'a str, &'a str), String>>,
        whole_words: bool,
    ) -> Result<Self, String> {
        let only = |token: &str| token.chars().next().filter(|c| c.len_utf8() == token.len());
        let characters = tokens.iter().filter_map(|(token, id)| Some((only(token)?, id))).collect();
        let mut table = HashMap::with_capacity_and_hasher(merges.len(), BuildHasherDefault::default());
        let mut whole = String::new();
        for (rank, merge) in (0u32..).zip(merges) {
            let (left, right) = merge?;
            whole.clear();
            whole.push_str(left);
            whole.push_str(right);
            let id = |token: &str| {
                let unknown = || format!("merge `{left} {right}` names the unknown token `{token}`");
                tokens.id(token).ok_or_else(unknown)
            };
            table.insert(pair(id(left)?, id(right)?), Merge { rank, id: id(&whole)? });
        }
        Ok(Self { characters, merges: table, words: whole_words.then_some(tokens) })
    }

    /// Appends the ids of a word. A character that is no token has none.
    pub fn encode(&self, word: &str, out: &mut Vec<u32>) {
        if let Some(id) = self.words.as_ref().and_then(|words| words.id(word)) {
            out.push(id);
            return;
        }
        let characters = word.chars().filter_map(|c| self.characters.get(&c).copied());
        out.extend(merge(characters, |left, right| {
            let merge = self.merges.get(&pair(left, right))?;
            Some((Reverse(merge.rank), merge.id))
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::Model as _;
    use tokenizers::models::bpe::BPE;

    fn model(tokens: &[&str], merges: &[(&str, &str)], whole_words: bool) -> Result<MergeBpe, String> {
        let names = Names::new(tokens.iter().collect(), |_| true);
        MergeBpe::new(names, merges.iter().map(|&merge| Ok(merge)), whole_words)
    }

    fn encode(model: &MergeBpe, word: &str) -> Vec<u32> {
        let mut out = Vec::new();
        model.encode(word, &mut out);
        out
    }

    #[test]
    fn words_are_merged_in_the_lists_order() {
        let tokens = ["a", "b", "c", "bc", "ab", "abc", "whole"];
        let merges = [("b", "c"), ("a", "b"), ("ab", "c")];
        let bpe = model(&tokens, &merges, false).unwrap();
        assert_eq!(encode(&bpe, "abc"), [0, 3]);
        assert_eq!(encode(&bpe, "abab"), [4, 4]);
        assert_eq!(encode(&bpe, "a?b"), [4]);
        assert!(encode(&bpe, "").is_empty() && encode(&bpe, "whole").is_empty());
        let whole = model(&tokens, &merges, true).unwrap();
        assert_eq!((encode(&whole, "whole"), encode(&whole, "abc")), (vec![6], vec![5]));
    }

    #[test]
    fn unknown_tokens_are_named() {
        let refused = |merge| model(&["a", "b", "ab"], &[merge], false).err().unwrap();
        assert_eq!(refused(("a", "x")), "merge `a x` names the unknown token `x`");
        assert_eq!(refused(("b", "a")), "merge `b a` names the unknown token `ba`");
    }

    #[test]
    fn a_megabyte_of_one_letter_is_encoded() {
        let bpe = model(&["a", "aa", "aaaa"], &[("a", "a"), ("aa", "aa")], false).unwrap();
        assert_eq!(encode(&bpe, &"a".repeat(1 << 20)).len(), 1 << 18);
    }

    proptest! {
        /// Any merges, also such that cannot be reached, come twice or have the same result.
        #[test]
        fn any_list_gives_the_librarys_tokens(
            seeds in prop::collection::vec((any::<u16>(), any::<u16>()), 1..40),
            words in prop::collection::vec("[abcx]{0,24}", 1..8),
        ) {
            let mut tokens: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
            let mut merges = Vec::new();
            for (left, right) in seeds {
                let [left, right] = [left, right].map(|i| tokens[usize::from(i) % tokens.len()].clone());
                let whole = format!("{left}{right}");
                if whole.len() <= 12 {
                    merges.push((left, right));
                    if !tokens.contains(&whole) {
                        tokens.push(whole);
                    }
                }
            }
            let vocab: tokenizers::models::bpe::Vocab = tokens.iter().cloned().zip(0..).collect();
            let library = BPE::builder().vocab_and_merges(vocab, merges.clone()).build().unwrap();
            let merges: Vec<_> = merges.iter().map(|(left, right)| (left.as_str(), right.as_str())).collect();
            let bpe = model(&tokens.iter().map(String::as_str).collect::<Vec<_>>(), &merges, false).unwrap();
            for word in &words {
                let expected: Vec<u32> = library.tokenize(word).unwrap().iter().map(|token| token.id).collect();
                prop_assert_eq!(encode(&bpe, word), expected, "{}", word);
            }
        }
    }
}
