//! What steps cost, learnt from the last ones: how much of the waiting prompts a step may compute beside sequences that decode, and what a
//! guessed token costs beside them.
//!
//! Decoding sequences wait for the whole step, so a prompt's part in it is bounded by time: beside one prompt the step may take
//! twice what it takes without. Where several wait for their first token it may take longer: prompts stand in line, so that the time
//! they wait in all grows with the square of their number, and what a prompt takes from those who decode it takes from them sooner or
//! later; only how evenly their tokens come depends on it. What a step and a prompt token take is learnt from the last steps. Only the
//! speed of the answers depends on it: how a prompt is cut into chunks changes no byte of any output.
//!
//! For guesses a step is taken to cost something fixed (reading the weights and what is cached), and as much again for each of its rows. A busy
//! server hardly has a step without prompts, so that both are learnt from whatever steps there are: a row costs the median of the slopes between
//! those near each other (after Theil 1950, Sen 1968), which one step that the system held up does not change.
//! (Not so for chunks: beside one long prompt all steps have chunks of one size, which tell nothing, and a step that seems longer without its
//! prompt would get a longer one. The last steps without prompts do not drift.)

use std::collections::VecDeque;

/// Steps shorter than this are left alone: nobody sees the difference, and short steps measure the machine's other work.
const STEP_SECONDS_MIN: f64 = 0.005;
/// When more waits than these many chunks, chunks grow: with a long queue it matters more how fast it gets shorter.
const QUEUE_STEPS_MAX: usize = 256;
/// Fewer prompt tokens are not worth a pass over the weights.
const CHUNK_MIN: usize = 8;
/// What a decoded or guessed token costs, in tokens of a prompt: it has logits, too. (These are a fifth to a quarter of the products of small
/// models.)
const LOGITS_TOKENS: f64 = 1.25;
/// Sizes of batches that are told apart: 1, 2 to 3, 4 to 7, and so on.
const BATCHES: usize = 8;
/// Steps that are remembered of each.
const STEPS: usize = 16;
/// Two of them tell what a row costs if one came at most so many after the other (contexts grow, sequences come and go), and if they are this
/// far apart in tokens of a prompt. It takes so many such pairs.
const NEAR: usize = 4;
const APART: f64 = 8.0;
const PAIRS_MIN: usize = 3;

/// What the last steps say about the next one.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Seconds of a step that only decodes.
    decode: Batches,
    /// The same without its guesses.
    bare: Batches,
    /// Seconds that one more prompt token takes.
    prompt_token: Recent,
    /// Decoding sequences of the last step.
    decodes: usize,
    /// What steps computed, by the size of their batch.
    rows: [Rows; BATCHES],
}

impl Pace {
    /// A step took so long with so many decoding sequences, guesses of theirs and prompt tokens.
    pub(super) fn observe(&mut self, decodes: usize, guesses: usize, prompt_tokens: usize, seconds: f64) {
        self.decodes = decodes;
        let tokens = LOGITS_TOKENS * (decodes + guesses) as f64 + prompt_tokens as f64;
        self.rows[batch(decodes)].push(tokens, seconds);
        let bare = (seconds - guesses as f64 * self.guess_seconds().unwrap_or(0.0)).max(0.0);
        if prompt_tokens == 0 && decodes > 0 {
            self.decode.push(decodes, seconds);
            self.bare.push(decodes, bare);
        } else if prompt_tokens >= CHUNK_MIN {
            let without = self.bare.seconds(decodes).unwrap_or(0.0).min(bare);
            self.prompt_token.push((bare - without) / prompt_tokens as f64);
        }
    }

    /// Prompt tokens for the next step if sequences decode in it: at most `most`, and that as long as nothing was learnt.
    /// `queued`: prompt tokens that wait; `waiting`: sequences that have no token yet.
    pub(super) fn chunk(&self, queued: usize, waiting: usize, most: usize) -> usize {
        let (Some(step), Some(token)) = (self.decode.seconds(self.decodes), self.prompt_token.median()) else {
            return most;
        };
        // Twice the sum of 1 to `waiting`: the turns that they wait, each its own included.
        let waiting = waiting.max(1) as f64;
        let stretch = waiting * (waiting + 1.0);
        let seconds = (stretch * step).max(STEP_SECONDS_MIN) - step;
        // A cast saturates: tokens that take no time may all come.
        let in_time = (seconds / token.max(1e-12)) as usize;
        in_time.max(queued.div_ceil(QUEUE_STEPS_MAX)).max(CHUNK_MIN).min(most)
    }

    /// What a step costs beside its rows, in rows of guesses. Nothing as long as nothing was learnt.
    pub(super) fn fixed_rows(&self) -> Option<f32> {
        let token = nearest(&self.rows, self.decodes, |rows| rows.token)?;
        let fixed = nearest(&self.rows, self.decodes, |rows| rows.fixed(token))?;
        Some((fixed / (LOGITS_TOKENS * token)) as f32)
    }

    fn guess_seconds(&self) -> Option<f64> {
        self.prompt_token.median().map(|seconds| LOGITS_TOKENS * seconds.max(1e-9))
    }
}

/// Seconds of steps by the size of their batch.
#[derive(Debug, Default)]
struct Batches([Recent; BATCHES]);

impl Batches {
    fn push(&mut self, decodes: usize, seconds: f64) {
        self.0[batch(decodes)].push(seconds);
    }

    /// What a step takes that decodes so many sequences.
    fn seconds(&self, decodes: usize) -> Option<f64> {
        nearest(&self.0, decodes, Recent::median)
    }
}

/// What `known` knows of a batch of this size; where none was seen yet, of the nearest smaller one, or else of the nearest larger one.
fn nearest<T>(batches: &[T; BATCHES], decodes: usize, known: impl FnMut(&T) -> Option<f64>) -> Option<f64> {
    let (smaller, larger) = batches.split_at(batch(decodes) + 1);
    smaller.iter().rev().chain(larger).find_map(known)
}

fn batch(decodes: usize) -> usize {
    (decodes.max(1).ilog2() as usize).min(BATCHES - 1)
}

/// The last few values. Their median ignores a step that the system held up.
#[derive(Debug, Default)]
struct Recent {
    values: [f64; 5],
    count: usize,
}

impl Recent {
    fn push(&mut self, value: f64) {
        self.values[self.count % self.values.len()] = value;
        self.count += 1;
    }

    fn median(&self) -> Option<f64> {
        let mut values = self.values;
        median(&mut values[..self.count.min(self.values.len())])
    }
}

/// Of an even number the larger one of the two in the middle. Reorders the values.
fn median(values: &mut [f64]) -> Option<f64> {
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

/// The last steps of a size of batch.
#[derive(Debug, Default)]
struct Rows {
    /// What each computed, in tokens of a prompt, and its seconds.
    last: VecDeque<(f64, f64)>,
    /// What such a token costs, once they have told: more than nothing.
    token: Option<f64>,
}

impl Rows {
    fn push(&mut self, tokens: f64, seconds: f64) {
        if self.last.len() == STEPS {
            self.last.pop_front();
        }
        self.last.push_back((tokens, seconds));
        let (mut slopes, mut count) = ([0.0; STEPS * NEAR], 0);
        for (i, a) in self.last.iter().enumerate() {
            for b in self.last.range(i.saturating_sub(NEAR)..i).filter(|b| (a.0 - b.0).abs() >= APART) {
                slopes[count] = (a.1 - b.1) / (a.0 - b.0);
                count += 1;
            }
        }
        // They may have become too equal to tell: what they told before stands.
        if count >= PAIRS_MIN {
            self.token = median(&mut slopes[..count]).filter(|token| *token > 0.0).or(self.token);
        }
    }

    /// Seconds of the last steps that are not their tokens'.
    fn fixed(&self, token: f64) -> Option<f64> {
        let mut fixed = Recent::default();
        let last = self.last.iter().rev().take(fixed.values.len());
        last.for_each(|(tokens, seconds)| fixed.push(seconds - token * tokens));
        fixed.median().map(|seconds| seconds.max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(decode_ms: f64, token_ms: f64) -> Pace {
        let mut pace = Pace::default();
        for _ in 0..5 {
            pace.observe(8, 0, 100, (decode_ms + 100.0 * token_ms) / 1e3);
            pace.observe(8, 0, 0, decode_ms / 1e3);
        }
        // What was learnt before the first step without prompts counts that step's time, too.
        for _ in 0..5 {
            pace.observe(8, 0, 100, (decode_ms + 100.0 * token_ms) / 1e3);
        }
        pace
    }

    #[test]
    fn without_a_measurement_the_bound_is_the_configuration() {
        let mut pace = Pace::default();
        assert_eq!(pace.chunk(5000, 1, 128), 128);
        pace.observe(8, 0, 0, 0.01);
        assert_eq!(pace.chunk(5000, 1, 128), 128);
    }

    #[test]
    fn a_prompt_lengthens_a_step_to_no_more_than_its_multiple() {
        // Another 10 ms are left, for 0.25 ms a token.
        assert_eq!(pace(10.0, 0.25).chunk(100, 1, 128), 40);
        assert_eq!(pace(10.0, 0.01).chunk(100, 1, 128), 128, "the configured bound stands");
        assert_eq!(pace(10.0, 5.0).chunk(100, 1, 128), CHUNK_MIN);
        assert_eq!(pace(10.0, 5.0).chunk(100, 1, 4), 4, "the configured bound stands, however small");
        assert_eq!(pace(0.1, 0.04).chunk(100, 1, 128), 122, "5 ms are always there");
    }

    #[test]
    fn the_more_wait_the_longer_others_do() {
        // 2 * 3 times 10 ms less the step itself are left, then 3 * 4 times.
        assert_eq!(pace(10.0, 0.26).chunk(100, 2, 512), 192);
        assert_eq!(pace(10.0, 0.26).chunk(100, 3, 512), 423);
        assert_eq!(pace(10.0, 0.26).chunk(100, 3, 128), 128, "the configured bound stands");
        assert_eq!(pace(10.0, 0.25).chunk(100, 0, 512), 40, "a prompt that goes on after a preemption");
    }

    #[test]
    fn a_long_queue_gets_larger_chunks() {
        assert_eq!(pace(10.0, 0.25).chunk(256 * 70, 1, 128), 70);
        assert_eq!(pace(10.0, 0.25).chunk(1 << 30, 1, 128), 128);
    }

    #[test]
    fn one_step_that_was_held_up_changes_nothing() {
        let mut pace = pace(10.0, 0.25);
        pace.observe(8, 0, 48, 2.0);
        pace.observe(8, 0, 0, 1.0);
        assert_eq!(pace.chunk(100, 1, 128), 40);
    }

    #[test]
    fn the_cost_of_a_step_is_told_in_rows() {
        assert_eq!(Pace::default().fixed_rows(), None);
        // 20 ms beside 8 guesses of 1.25 ms.
        let mut pace = pace(30.0, 1.0);
        assert_eq!(pace.fixed_rows(), Some(16.0));
        for _ in 0..5 {
            pace.observe(8, 6, 0, 0.0275);
        }
        assert_eq!(pace.fixed_rows(), Some(8.0), "what guesses took is not the step's");
        // 27.5 ms more, of 1 ms a token: who decodes waits for the guesses anyway.
        assert_eq!(pace.chunk(100, 1, 128), 27);
        for _ in 0..5 {
            pace.observe(8, 0, 0, 0.002);
        }
        assert_eq!(pace.fixed_rows(), Some(0.0));
    }

    #[test]
    fn a_busy_server_learns_from_steps_that_all_have_prompts() {
        let mut pace = Pace::default();
        let mut rng = 1_u64;
        for i in 0..40 {
            rng = rng.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let (prompt, guesses, noise) = ((rng >> 33) % 120, (rng >> 45) % 6, (rng >> 55) as f64 / 512.0);
            let tokens = prompt as f64 + 1.25 * (32.0 + guesses as f64);
            // The system holds every seventh step up.
            let held_up = if i % 7 == 0 { 3.0 } else { 1.0 };
            pace.observe(
                32,
                guesses as usize,
                prompt as usize,
                held_up * (0.98 + 0.04 * noise) * (0.016 + 0.0004 * tokens),
            );
        }
        // 16 ms are 32 guesses of 0.5 ms.
        let fixed = pace.fixed_rows();
        assert!(fixed.is_some_and(|rows| (25.0..40.0).contains(&rows)), "{fixed:?}");
    }

    #[test]
    fn batches_are_told_apart() {
        let mut pace = pace(10.0, 0.25);
        pace.observe(32, 0, 0, 0.03);
        assert_eq!(pace.chunk(100, 1, 256), 120, "the larger batch's own time");
        pace.observe(16, 0, 20, 0.015);
        assert_eq!(pace.chunk(100, 1, 256), 40, "the nearest smaller batch's time");
        pace.observe(1, 0, 20, 0.015);
        assert_eq!(pace.chunk(100, 1, 256), 40, "the nearest larger one's where there is none");
    }
}
