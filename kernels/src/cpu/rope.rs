//! Rotary position embedding, the half-split (GPT-NeoX) pairing.

use super::Cpu;
use super::elementwise::PIECE;
use super::math::MAX_ANGLE;
use super::shared::SharedSlice;

/// Rotates the pairs `(i, i + rotary_dim / 2)` of the first `rotary_dim` values of every head, in place, by the angle
/// `position * inv_freq[i]` (a product of two f32, as the reference implementations compute it); sine and cosine are multiplied by `mscale`.
///
/// `x` holds one token at each multiple of `token_stride`, its heads `head_dim` values apart: q or k inside a wider row is a slice that
/// begins at the first head. One position for each token.
///
/// # Panics
/// If the lengths do not fit together.
#[allow(clippy::too_many_arguments)] // a kernel's shape is its arguments
pub fn rope(
    cpu: &Cpu,
    x: &mut [f32],
    heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    token_stride: usize,
    positions: &[u32],
    inv_freq: &[f32],
    mscale: f32,
) {
    let (tokens, half) = (positions.len(), rotary_dim / 2);
    let width = heads * head_dim;
    assert!(
        rotary_dim.is_multiple_of(2) && rotary_dim <= head_dim,
        "rope: rotary_dim {rotary_dim} does not fit a head of {head_dim}"
    );
    assert!(inv_freq.len() == half, "rope: {} inverse frequencies for a rotary_dim of {rotary_dim}", inv_freq.len());
    if tokens == 0 || width == 0 {
        return;
    }
    assert!(token_stride >= width, "rope: tokens {token_stride} values apart do not hold {heads} heads of {head_dim}");
    assert!(
        x.len() >= (tokens - 1) * token_stride + width,
        "rope: x has {} values, too few for {tokens} tokens",
        x.len()
    );
    let table = cpu.isa.table();
    let x = SharedSlice::new(x);
    cpu.for_pieces(tokens, PIECE / width, &|start, end| {
        let mut buffer = vec![0.0f32; 3 * half];
        let (angles, rest) = buffer.split_at_mut(half);
        let (cos, sin) = rest.split_at_mut(half);
        for (t, &position) in positions.iter().enumerate().take(end).skip(start) {
            let position = position as f32;
            for (angle, &f) in angles.iter_mut().zip(inv_freq) {
                *angle = position * f;
            }
            if angles.iter().all(|a| a.abs() <= MAX_ANGLE) {
                // SAFETY: the table is this processor's.
                unsafe { (table.sin_cos)(angles, cos, sin) }
            } else {
                for ((&a, c), s) in angles.iter().zip(&mut *cos).zip(&mut *sin) {
                    let (wide_sin, wide_cos) = f64::from(a).sin_cos();
                    (*s, *c) = (wide_sin as f32, wide_cos as f32);
                }
            }
            for (c, s) in cos.iter_mut().zip(&mut *sin) {
                *c *= mscale;
                *s *= mscale;
            }
            // SAFETY: tokens do not overlap (stride >= width), and each belongs to one piece.
            let token = unsafe { x.slice(t * token_stride, width) };
            for head in token.chunks_exact_mut(head_dim) {
                let (first, second) = head[..rotary_dim].split_at_mut(half);
                for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(&*cos).zip(&*sin) {
                    (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                }
            }
        }
    });
}
