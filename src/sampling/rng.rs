//! Counter-based random numbers: a pure function of (seed, index), so a token's draw depends on nothing else.
//!
//! The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
//! which passes the `BigCrush` tests and is what GPU frameworks use for the same reason.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Weyl increments of the key: the golden ratio and the square root of 3, less 1.
const KEY_STEP: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// High and low half of a 32 x 32 bit product.
fn multiply(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

/// Ten rounds of Philox on a 128-bit counter under a 64-bit key.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let (high0, low0) = multiply(MULTIPLIER[0], counter[0]);
        let (high1, low1) = multiply(MULTIPLIER[1], counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(KEY_STEP[0]), key[1].wrapping_add(KEY_STEP[1])];
    }
    counter
}

/// The uniform number in [0, 1) that belongs to output `index` under `seed`, with 53 random bits.
pub(super) fn uniform(seed: u64, index: u64) -> f64 {
    let words = philox([index as u32, (index >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(words[1]) << 32 | u64::from(words[0])) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the Random123 library for philox4x32 with 10 rounds.
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    /// 64 equal bins; with 63 degrees of freedom the 99.99 % quantile of chi-square is about 112.
    fn chi_square(numbers: impl Iterator<Item = f64>) -> f64 {
        let mut bins = [0u32; 64];
        let mut count = 0u32;
        for number in numbers {
            assert!((0.0..1.0).contains(&number));
            bins[(number * 64.0) as usize] += 1;
            count += 1;
        }
        let expected = f64::from(count) / 64.0;
        bins.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum()
    }

    #[test]
    fn uniform_over_indices_and_over_seeds() {
        for fixed in [0, 1, 42, u64::MAX] {
            assert!(chi_square((0..64_000).map(|i| uniform(fixed, i))) < 112.0);
            assert!(chi_square((0..64_000).map(|i| uniform(i, fixed))) < 112.0);
        }
    }

    #[test]
    fn neighbours_are_uncorrelated() {
        let n = 50_000u64;
        let product: f64 = (0..n).map(|i| (uniform(7, i) - 0.5) * (uniform(7, i + 1) - 0.5)).sum();
        // The standard deviation of the mean product is (1/12) / sqrt(n).
        assert!((product / n as f64).abs() < 4.0 / 12.0 / (n as f64).sqrt());
    }
}
