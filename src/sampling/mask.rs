//! Which tokens a grammar allows.

/// A set of token ids: bit `id % 32` of word `id / 32`. Ids beyond the words are not in it.
#[derive(Debug, Clone, Copy)]
pub struct TokenMask<'a>(&'a [u32]);

impl<'a> TokenMask<'a> {
    #[must_use]
    pub fn new(words: &'a [u32]) -> Self {
        Self(words)
    }

    #[must_use]
    pub fn allows(self, id: u32) -> bool {
        self.0.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Whether every id below `vocab` that is allowed is one of `tokens`.
    #[must_use]
    pub(super) fn allows_only(self, tokens: &[u32], vocab: usize) -> bool {
        let allowed: usize = self.0.iter().map(|word| word.count_ones() as usize).sum();
        let mut distinct: Vec<u32> = tokens.iter().copied().filter(|&id| self.allows(id)).collect();
        distinct.sort_unstable();
        distinct.dedup();
        // Most masks are decided by the count; one that may have ids beyond the row is looked at closely.
        allowed == distinct.len()
            || self.ids().filter(|&id| (id as usize) < vocab).all(|id| distinct.binary_search(&id).is_ok())
    }

    fn ids(self) -> impl Iterator<Item = u32> + 'a {
        let bits = |(word, at): (&u32, u32)| {
            let word = *word;
            (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at + bit)
        };
        self.0.iter().zip((0..).step_by(32)).flat_map(bits)
    }

    /// Makes every other token impossible.
    pub(super) fn apply(self, logits: &mut [f32]) {
        let words = self.0.iter().copied().chain(std::iter::repeat(0));
        for (part, word) in logits.chunks_mut(32).zip(words) {
            match word {
                0 => part.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                _ => {
                    for (bit, logit) in part.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_its_bits() {
        let words = [0b101, 0, u32::MAX];
        let mask = TokenMask::new(&words);
        let ids: Vec<u32> = (0..200).filter(|&id| mask.allows(id)).collect();
        assert_eq!(ids[..2], [0, 2]);
        assert_eq!(ids[2..], (64..96).collect::<Vec<u32>>());
        let mut row = vec![1.0f32; 130];
        mask.apply(&mut row);
        for (id, logit) in (0..).zip(&row) {
            assert_eq!(logit.is_finite(), mask.allows(id), "{id}");
        }
    }

    #[test]
    fn only_some_tokens_are_left() {
        let mask = |words: &'static [u32]| TokenMask::new(words);
        assert!(mask(&[0b110]).allows_only(&[1, 2, 1, 7], 40));
        assert!(!mask(&[0b111]).allows_only(&[1, 2], 40));
        assert!(mask(&[0b110, 1 << 9]).allows_only(&[1, 2], 40), "id 41 is beyond the row");
        assert!(!mask(&[0b110, 1 << 7]).allows_only(&[1, 2], 40));
    }
}
