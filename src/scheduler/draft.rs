//! Drafts by prompt lookup: what followed the last tokens where they stood before is guessed to follow again.
//!
//! The idea is Saxena's "Prompt Lookup Decoding" (2023), as llama.cpp, vLLM and transformers have it too. What differs:
//!
//! - One table from the hash of a 3-gram or 2-gram to its most recent end, filled token by token: no search through the
//!   context at each step.
//! - A match that predicts well is followed for as long as it does, instead of being looked up anew after each token:
//!   the longest match is the best one, and the most recent 3-gram is often another, shorter match.
//! - Every token is compared with the guess that the match made of it, also when no draft was computed. So how often
//!   guesses are right is known for nothing, and a sequence whose guesses are wrong stops paying for them.
//!
//! Whether a draft is right decides only how much one step gets done, never what is generated.
use std::array;

/// Lengths of the n-grams that are looked up, the first that is found counts.
const GRAMS: [usize; 2] = [3, 2];
/// Entries of the table: four for each token, so that half of them stay empty, within these bounds.
const ENTRIES_MIN: usize = 256;
const ENTRIES_MAX: usize = 1 << 17;
/// From this many equal tokens on, a match is rated as a long one.
const LONG: usize = 6;
/// What an earlier guess counts beside the next one. This and the numbers around it were chosen by replaying what two
/// models answered (code copied with a change, and essays); the gain hardly depends on them.
const FADE: f32 = 0.95;
/// How often guesses are right before any was seen, after a short and after a long match. Counts as one guess.
const PRIOR: [f32; 2] = [0.3, 0.8];

/// Where a sequence's next tokens may stand already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Match {
    /// Position of the token that is the guess of the next one.
    source: usize,
    /// Tokens before `source` that are known to be equal to the sequence's last ones.
    length: usize,
}

/// Guesses and right ones among them, fading.
#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    right: f32,
    all: f32,
}

/// Guesses what a sequence's next tokens are. Holds no tokens: every call gets the same growing list.
#[derive(Debug)]
pub(super) struct Drafter {
    /// Hash of an n-gram → position of the token after its most recent occurrence; 0: none. A colliding n-gram replaces
    /// the older one. At most 512 KiB.
    ends: Vec<u32>,
    /// Tokens taken in.
    seen: usize,
    current: Option<Match>,
    /// Of short and of long matches.
    rates: [Rate; 2],
}

impl Drafter {
    /// Takes in `tokens`. O(tokens): about 0.2 ms for 40,000.
    pub fn new(tokens: &[u32]) -> Self {
        let mut drafter = Self { ends: Vec::new(), seen: 0, current: None, rates: array::from_fn(|_| Rate::default()) };
        drafter.rebuild(tokens);
        drafter.seen = tokens.len();
        drafter.current = drafter.look_up(tokens);
        drafter
    }

    /// Takes in the tokens after those it has seen and compares them with what it guessed. O(new tokens), but for a
    /// rebuilt table each time their number has doubled.
    pub fn follow(&mut self, tokens: &[u32]) {
        while let Some(&token) = tokens.get(self.seen) {
            if let Some(found) = &mut self.current {
                let right = tokens[found.source] == token;
                self.rates[usize::from(found.length >= LONG)].add(right);
                found.source += 1;
                found.length += 1;
                if !right {
                    self.current = None;
                }
            }
            self.insert(&tokens[..self.seen]);
            self.seen += 1;
            if self.current.is_none() {
                self.current = self.look_up(&tokens[..self.seen]);
            }
        }
        if self.ends.len() < entries(self.seen) {
            self.rebuild(&tokens[..self.seen]);
        }
    }

    /// The guess of the token `depth` after the next one, if all guesses before it are right, and the chance that it then
    /// is right too. `tokens`: those it has seen. A draft that reaches the present repeats itself, as a loop would.
    pub fn guess(&self, tokens: &[u32], depth: usize) -> Option<(u32, f32)> {
        let found = self.current?;
        let long = usize::from(found.length + depth >= LONG);
        let period = self.seen - found.source;
        Some((tokens[found.source + depth % period], self.rates[long].chance(PRIOR[long])))
    }

    /// Fills a table that fits the number of tokens.
    fn rebuild(&mut self, tokens: &[u32]) {
        self.ends.clear();
        self.ends.resize(entries(tokens.len()), 0);
        for end in 1..tokens.len() {
            self.insert(&tokens[..end]);
        }
    }

    /// Notes the n-grams at the end of `tokens`; the token after them is known.
    fn insert(&mut self, tokens: &[u32]) {
        let Ok(end) = u32::try_from(tokens.len()) else { return };
        for gram in GRAMS {
            if let Some(gram) = suffix(tokens, gram) {
                let at = self.entry(gram);
                self.ends[at] = end;
            }
        }
    }

    fn look_up(&self, tokens: &[u32]) -> Option<Match> {
        GRAMS.into_iter().find_map(|gram| {
            let gram = suffix(tokens, gram)?;
            let source = self.ends[self.entry(gram)] as usize;
            // The entry may be another n-gram's.
            tokens[..source].ends_with(gram).then(|| {
                let before = tokens[..source].iter().rev().zip(tokens.iter().rev());
                Match { source, length: before.take(LONG).take_while(|(a, b)| a == b).count() }
            })
        })
    }

    /// Multiplicative hashing (Knuth): the top bits of a product.
    fn entry(&self, gram: &[u32]) -> usize {
        let hash = gram.iter().fold(gram.len() as u64, |hash, &token| {
            (hash.rotate_left(23) ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        (hash >> (64 - self.ends.len().ilog2())) as usize
    }
}

/// Entries of the table for so many tokens, a power of two.
fn entries(tokens: usize) -> usize {
    (4 * tokens).next_power_of_two().clamp(ENTRIES_MIN, ENTRIES_MAX)
}

fn suffix(tokens: &[u32], len: usize) -> Option<&[u32]> {
    tokens.len().checked_sub(len).map(|start| &tokens[start..])
}

impl Rate {
    fn add(&mut self, right: bool) {
        self.right = self.right * FADE + f32::from(u8::from(right));
        self.all = self.all * FADE + 1.0;
    }

    fn chance(self, prior: f32) -> f32 {
        (self.right + prior) / (self.all + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guesses(drafter: &Drafter, tokens: &[u32], count: usize) -> Vec<u32> {
        (0..count).map_while(|depth| Some(drafter.guess(tokens, depth)?.0)).collect()
    }

    #[test]
    fn what_followed_is_guessed_to_follow_again() {
        let tokens = [7, 1, 2, 3, 4, 5, 9, 1, 2, 8, 1, 2, 3];
        let drafter = Drafter::new(&tokens);
        assert_eq!(guesses(&drafter, &tokens, 4), [4, 5, 9, 1], "after the three tokens 1 2 3");
        assert_eq!(
            guesses(&Drafter::new(&tokens[..12]), &tokens[..12], 3),
            [8, 1, 2],
            "after 1 2, where it stood last"
        );
        assert_eq!(guesses(&Drafter::new(&tokens[..10]), &tokens[..10], 3), [0u32; 0], "2 8 is new");
        for short in 0..3 {
            assert_eq!(Drafter::new(&[5; 3][..short]).current, None);
        }
    }

    #[test]
    fn a_loop_is_guessed_to_go_on() {
        let tokens = [9, 1, 2, 3, 1, 2, 3];
        assert_eq!(guesses(&Drafter::new(&tokens), &tokens, 8), [1, 2, 3, 1, 2, 3, 1, 2]);
    }

    #[test]
    fn a_match_that_is_right_is_followed_past_more_recent_ones() {
        let mut tokens: Vec<u32> = (0..20).chain([100, 7, 8, 9, 200, 300]).collect();
        let mut drafter = Drafter::new(&tokens);
        for next in 3..10 {
            tokens.push(next);
            drafter.follow(&tokens);
        }
        assert_eq!(guesses(&drafter, &tokens, 3), [10, 11, 12], "not 200, which followed 7 8 9 last");
    }

    #[test]
    fn right_guesses_raise_the_chance_and_wrong_ones_lower_it() {
        let chance = |drafter: &Drafter, tokens: &[u32]| drafter.guess(tokens, 0).unwrap().1;
        let mut tokens: Vec<u32> = (0..40).chain([0, 1, 2]).collect();
        let mut drafter = Drafter::new(&tokens);
        assert!((chance(&drafter, &tokens) - 0.3).abs() < 1e-6, "nothing is known yet");
        for next in 3..33 {
            tokens.push(next);
            drafter.follow(&tokens);
        }
        assert!(chance(&drafter, &tokens) > 0.95);
        // The same two tokens, every time followed by another one.
        let mut tokens = vec![1, 2];
        let mut drafter = Drafter::new(&tokens);
        for other in 0..12 {
            tokens.extend([50 + other, 1, 2]);
            drafter.follow(&tokens);
        }
        assert!(chance(&drafter, &tokens) < 0.1);
    }

    /// The definition: the most recent earlier occurrence of the last three tokens, or else of the last two.
    fn searched(tokens: &[u32]) -> Option<usize> {
        GRAMS.into_iter().find_map(|gram| {
            let gram = suffix(tokens, gram)?;
            (gram.len()..tokens.len()).rev().find(|&end| tokens[..end].ends_with(gram))
        })
    }

    proptest! {
        #[test]
        fn finds_what_a_search_finds(tokens in prop::collection::vec(0u32..2, 0..200)) {
            // With so few n-grams none is lost to a collision.
            prop_assert_eq!(Drafter::new(&tokens).current.map(|m| m.source), searched(&tokens));
        }

        #[test]
        fn tokens_may_come_in_any_portions(
            tokens in prop::collection::vec(0u32..5, 0..400),
            cuts in prop::collection::vec(0usize..400, 0..9),
            many in 0u32..2,
        ) {
            // With many values of tokens entries do collide.
            let tokens: Vec<u32> = tokens.iter().enumerate().map(|(i, t)| t + many * (i as u32 % 97) * 1000).collect();
            let (mut at_once, mut in_portions) = (Drafter::new(&tokens[..0]), Drafter::new(&tokens[..0]));
            at_once.follow(&tokens);
            let mut cuts: Vec<usize> = cuts.iter().map(|&cut| cut.min(tokens.len())).collect();
            cuts.sort_unstable();
            for cut in cuts {
                in_portions.follow(&tokens[..cut]);
                if let Some(found) = in_portions.current {
                    let n = found.length;
                    prop_assert!(found.source < cut && n >= 2);
                    prop_assert_eq!(&tokens[found.source - n..found.source], &tokens[cut - n..cut]);
                }
            }
            in_portions.follow(&tokens);
            prop_assert_eq!(at_once.seen, tokens.len());
            if tokens.len() < ENTRIES_MIN / 4 {
                prop_assert_eq!(at_once.current, in_portions.current);
            }
            for (a, b) in at_once.rates.iter().zip(&in_portions.rates).filter(|_| tokens.len() < ENTRIES_MIN / 4) {
                prop_assert!((a.right - b.right).abs() < 1e-6 && (a.all - b.all).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn memory_is_bounded() {
        assert_eq!(entries(0), ENTRIES_MIN);
        assert_eq!(entries(1 << 30), ENTRIES_MAX);
        let tokens: Vec<u32> = (0..100_000).map(|i| i % 30_000).collect();
        let drafter = Drafter::new(&tokens);
        assert_eq!(drafter.ends.len() * size_of::<u32>(), 512 << 10);
        assert_eq!(guesses(&drafter, &tokens, 2), [100_000 % 30_000, 100_001 % 30_000]);
    }
}
