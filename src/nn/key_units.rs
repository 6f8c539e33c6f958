//! What the dimensions of keys are measured in where a cache rounds a group of them alike.
//!
//! Some models' keys have dimensions that their bias makes many times as large as the others (Qwen 2.5's first layers: 150 beside 1 to 8): an
//! 8-bit group that holds one has no bits left for the rest. A score is the same if a dimension of the key is divided by a number and the
//! query's multiplied by it (as in SmoothAttention of QServe: Lin et al. 2024, arXiv:2405.04532), for the two dimensions of a rotary pair the
//! same one; it is the same to the bit for a power of two. The bias tells which, so that nothing need be measured.

use candle_core::{Result, Tensor};

use super::linear::Linear;
use crate::model::spec::AttnSpec;
use crate::ops::{self, ExecContext};

/// The units of a layer.
pub struct KeyUnits {
    /// What queries are multiplied by, `[heads · head_dim]`.
    queries: Tensor,
    /// What keys are, `[kv_heads · head_dim]`.
    keys: Tensor,
}

impl KeyUnits {
    /// Those that the bias of `k` asks for, if it asks for any. (Where keys are normed it says nothing.)
    ///
    /// # Errors
    /// Candle failed.
    pub fn of(k: &Linear, spec: &AttnSpec) -> Result<Option<Self>> {
        let Some(bias) = k.bias().filter(|_| spec.qk_norm.is_none()) else { return Ok(None) };
        let device = bias.device();
        let bias: Vec<f32> = bias.to_vec1()?;
        let Some(units) = key_units(&bias, spec.head_dim, spec.rope.rotary_dim) else { return Ok(None) };
        let keys = Tensor::from_iter(units.iter().map(|unit| 1.0 / unit), device)?;
        let of_group = |head| std::iter::repeat_n(head, spec.heads / spec.kv_heads);
        let queries = units.chunks_exact(spec.head_dim).flat_map(of_group).flatten().copied();
        Ok(Some(Self { queries: Tensor::from_iter(queries, device)?, keys }))
    }

    /// Queries in the inverses of the units, keys in the units. Neither may be shared.
    ///
    /// # Errors
    /// As [`ops::scale_columns`].
    pub fn apply(&self, cx: &ExecContext, (q, k): (Tensor, Tensor)) -> Result<(Tensor, Tensor)> {
        Ok((ops::scale_columns(cx, q, &self.queries)?, ops::scale_columns(cx, k, &self.keys)?))
    }
}

/// Biases up to this many times the head's median are left alone. (Of 1, 2, 4 and 8 times, on qwen2.5-coder-0.5b, 4 loses least.)
const USUAL: f32 = 4.0;

/// For each dimension of the keys `[kv_heads · head_dim]` the power of two that they are divided by; nothing if all are 1. Of a head's first
/// `rotary_dim` dimensions i and `i + rotary_dim / 2` turn together.
fn key_units(bias: &[f32], head_dim: usize, rotary_dim: usize) -> Option<Vec<f32>> {
    let half = rotary_dim / 2;
    let mut units = vec![1.0; bias.len()];
    for (bias, units) in bias.chunks_exact(head_dim).zip(units.chunks_exact_mut(head_dim)) {
        let mut sizes: Vec<f32> = bias.iter().map(|b| b.abs()).collect();
        sizes.sort_by(f32::total_cmp);
        let usual = USUAL * sizes[head_dim / 2];
        for (i, unit) in units.iter_mut().enumerate() {
            let other = match i {
                i if i < half => i + half,
                i if i < 2 * half => i - half,
                i => i,
            };
            let size = bias[i].abs().max(bias[other].abs());
            // A head without a usual size has nothing to compare with.
            if usual > 0.0 && size > usual && size.is_finite() {
                *unit = (size / usual).log2().ceil().exp2();
            }
        }
    }
    units.iter().any(|&unit| unit != 1.0).then_some(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_dimensions_of_a_pair_are_measured_by_the_larger_bias() {
        // Two heads of 10, of which 8 turn: 3 beside 7, and 9 alone.
        let mut bias = vec![1.0; 20];
        (bias[7], bias[9], bias[13]) = (-33.0, 5.0, 4.0);
        let units = key_units(&bias, 10, 8).unwrap();
        let large: Vec<(usize, f32)> = units.into_iter().enumerate().filter(|(_, unit)| *unit != 1.0).collect();
        assert_eq!(large, [(3, 16.0), (7, 16.0), (9, 2.0)]);
    }

    #[test]
    fn heads_of_like_dimensions_and_of_none_are_left_alone() {
        assert_eq!(key_units(&[1.0, -3.9, 0.5, 1.2], 4, 4), None);
        assert_eq!(key_units(&[0.0, 0.0, 0.0, 9.0], 4, 4), None);
        assert_eq!(key_units(&[1.0, 1.0, f32::INFINITY, f32::NAN], 4, 4), None);
    }

    #[test]
    fn scores_are_the_same_to_the_bit() {
        let unit = key_units(&[1.0, 1.0, 1.0, 100.0], 4, 0).unwrap();
        let (q, k) = ([0.3, -1.7, 2.9, 0.011], [1.1, 0.7, -3.3, 97.3]);
        let dot = |q: [f32; 4], k: [f32; 4]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>();
        let [q2, k2]: [[f32; 4]; 2] = [true, false]
            .map(|query| std::array::from_fn(|i| if query { q[i] * unit[i] } else { k[i] * (1.0 / unit[i]) }));
        assert_ne!(k2, k);
        assert_eq!(dot(q2, k2).to_bits(), dot(q, k).to_bits());
    }
}
