//! What the load generator sends: seeded prompts of a given length, shared prefixes, growing agent conversations.
//! Everything follows from the seed, so two servers can be given the same load.
use std::fmt::Write as _;

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable, good enough to choose words and waiting times.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1].
    pub fn unit(&mut self) -> f64 {
        ((self.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Waiting time to the next of Poisson arrivals, in seconds.
    pub fn exponential(&mut self, per_second: f64) -> f64 {
        -self.unit().ln() / per_second
    }
}

/// Words that most vocabularies hold as one token each when a space precedes them.
const WORDS: &[&str] = &[
    "the", "of", "and", "to", "in", "is", "for", "that", "on", "with", "as", "it", "at", "by", "from", "this", "be",
    "are", "was", "have", "not", "or", "an", "they", "which", "one", "you", "had", "her", "all", "there", "would",
    "their", "we", "him", "been", "has", "when", "who", "will", "more", "no", "if", "out", "so", "said", "what", "up",
    "its", "about", "than", "into", "them", "can", "only", "other", "new", "some", "could", "time", "these", "two",
    "may", "then", "do", "first", "any", "my", "now", "such", "like", "our", "over", "man", "me", "even", "most",
    "made", "after", "also", "did", "many", "before", "must", "through", "years", "where", "much", "your", "way",
    "well", "down", "should", "because", "each", "just", "those", "people", "how", "too", "little", "state", "good",
    "very", "make", "world", "still", "own", "see", "men", "work", "long", "get", "here", "between", "both", "life",
    "being", "under", "never", "day", "same", "another", "know", "while", "last", "might", "us", "great", "old",
    "year", "off", "come", "since", "against", "go", "came", "right", "used", "take", "three",
];

/// About `tokens` tokens of text, different for every seed.
#[must_use]
pub fn text(tokens: usize, seed: u64) -> String {
    let mut rng = Rng::new(seed);
    let mut out = String::with_capacity(tokens * 5);
    for i in 0..tokens {
        let word = WORDS[(rng.next_u64() % WORDS.len() as u64) as usize];
        if i > 0 {
            out.push(' ');
        }
        let _ = write!(out, "{word}");
    }
    out
}

/// The prompt of request `index`: `shared` tokens that all have in common, then its own.
#[must_use]
pub fn prompt(seed: u64, index: usize, shared: usize, tokens: usize) -> String {
    let own = text(tokens.saturating_sub(shared).max(1), seed ^ (index as u64 + 1).wrapping_mul(0x1000_0000_01b3));
    if shared == 0 { own } else { format!("{} {own}", text(shared, seed)) }
}

/// Sizes of one turn of an agent's conversation, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// New input (the task, or a tool's result).
    pub new_input: usize,
    pub output: usize,
}

/// Of an agent's input, the share that the turn before had already sent.
const SEEN: f64 = 0.85;
/// Input tokens for each output token.
const INPUT_PER_OUTPUT: f64 = 142.0;
/// Part of the context the last turn fills.
const FILL: f64 = 0.9;

/// A conversation of `turns` turns whose last input fills 90% of `context`: each input is 1/0.85 times the one before,
/// each output 1/142 of its input. Returns the tokens of the system prompt all agents share, and the turns.
#[must_use]
pub fn agent_turns(context: usize, turns: usize) -> (usize, Vec<Turn>) {
    let last = FILL * context as f64;
    let input = |t: usize| last * SEEN.powi((turns - 1 - t) as i32);
    let output = |t: usize| (input(t) / INPUT_PER_OUTPUT).round().max(1.0) as usize;
    let system = (SEEN * input(0)).round() as usize;
    let sizes = (0..turns)
        .map(|t| {
            let before = if t == 0 { system as f64 } else { input(t - 1) + output(t - 1) as f64 };
            Turn { new_input: (input(t) - before).round().max(1.0) as usize, output: output(t) }
        })
        .collect();
    (system, sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_seeded_and_share_their_prefix() {
        let (a, b) = (prompt(1, 0, 50, 80), prompt(1, 1, 50, 80));
        assert_eq!(a, prompt(1, 0, 50, 80));
        assert_ne!(a, b);
        assert_ne!(a, prompt(2, 0, 50, 80));
        let shared = text(50, 1);
        assert!(a.starts_with(&shared) && b.starts_with(&shared));
        assert_eq!(a.split(' ').count(), 80);
    }

    #[test]
    fn agents_send_142_to_1_with_85_percent_seen() {
        let (system, turns) = agent_turns(40_000, 8);
        let (mut before, mut inputs, mut outputs, mut seen) = (system, 0, 0, 0);
        for t in &turns {
            let input = before + t.new_input;
            inputs += input;
            outputs += t.output;
            seen += before;
            before = input + t.output;
        }
        let ratio = inputs as f64 / outputs as f64;
        assert!((140.0..144.0).contains(&ratio), "{ratio}");
        let share = seen as f64 / inputs as f64;
        assert!((0.84..0.87).contains(&share), "{share}");
        assert!(before < 40_000);
    }

    #[test]
    fn arrivals_have_the_asked_rate() {
        let mut rng = Rng::new(7);
        let mean = (0..20_000).map(|_| rng.exponential(4.0)).sum::<f64>() / 20_000.0;
        assert!((mean - 0.25).abs() < 0.01, "{mean}");
    }
}
