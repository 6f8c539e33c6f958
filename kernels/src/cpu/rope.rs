//! Rotary position embedding, the half-split (GPT-NeoX) pairing, and the norms of heads that precede it.

use super::Cpu;
use super::elementwise::PIECE;
use super::math::MAX_ANGLE;
use super::shared::SharedSlice;

/// Cosines and sines of the angles by which the tokens of a step turn; the same for all layers and heads.
#[derive(Debug, Default)]
pub struct Rotation {
    /// Values of a head that turn.
    rotary_dim: usize,
    /// `[tokens, rotary_dim / 2]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    /// The angle of pair `i` is `position * inv_freq[i]` (a product of two f32, as the reference implementations compute it); cosines and
    /// sines are multiplied by `mscale`.
    pub fn new(cpu: &Cpu, positions: &[u32], inv_freq: &[f32], mscale: f32) -> Rotation {
        let half = inv_freq.len();
        let (mut cos, mut sin) = (vec![0.0; positions.len() * half], vec![0.0; positions.len() * half]);
        if half > 0 {
            let table = cpu.isa.table();
            let (all_cos, all_sin) = (SharedSlice::new(&mut cos), SharedSlice::new(&mut sin));
            // Sines in double precision cost about ten times what a value of a norm does.
            cpu.for_pieces(positions.len(), PIECE / (10 * half), |start, end| {
                let mut angles = vec![0.0f32; half];
                for (t, &position) in positions.iter().enumerate().take(end).skip(start) {
                    for (angle, &f) in angles.iter_mut().zip(inv_freq) {
                        *angle = position as f32 * f;
                    }
                    // SAFETY: tokens are disjoint and each belongs to one piece; the table is this processor's.
                    let (cos, sin) = unsafe { (all_cos.slice(t * half, half), all_sin.slice(t * half, half)) };
                    if angles.iter().all(|a| a.abs() <= MAX_ANGLE) {
                        // SAFETY: the table is this processor's.
                        unsafe { (table.sin_cos)(&angles, cos, sin) }
                    } else {
                        for ((&a, c), s) in angles.iter().zip(&mut *cos).zip(&mut *sin) {
                            let (wide_sin, wide_cos) = f64::from(a).sin_cos();
                            (*s, *c) = (wide_sin as f32, wide_cos as f32);
                        }
                    }
                    for value in cos.iter_mut().chain(sin) {
                        *value *= mscale;
                    }
                }
            });
        }
        Rotation { rotary_dim: 2 * half, cos, sin }
    }
}

/// The queries or the keys of a step, `[tokens, heads, head_dim]`.
#[derive(Debug)]
pub struct Heads<'a> {
    /// The values, changed in place.
    pub x: &'a mut [f32],
    /// The weight (`head_dim` values) and epsilon of the RMS norm that each head goes through before it is rotated.
    pub norm: Option<(&'a [f32], f32)>,
}

/// Norms each head, where there is a norm, and rotates its pairs `(i, i + rotary_dim / 2)` by its token's angles, in place.
///
/// # Panics
/// If the lengths do not fit together.
pub fn rotate_heads(cpu: &Cpu, parts: &mut [Heads<'_>], head_dim: usize, tokens: usize, rotation: &Rotation) {
    let half = rotation.rotary_dim / 2;
    assert!(
        rotation.rotary_dim <= head_dim && rotation.cos.len() == tokens * half,
        "rotate_heads: angles of {} values for {tokens} tokens with heads of {head_dim}",
        rotation.cos.len()
    );
    if tokens == 0 {
        return;
    }
    let mut width = 0;
    for part in &*parts {
        assert!(
            part.x.len().is_multiple_of(tokens * head_dim),
            "rotate_heads: {} values are not whole heads of {head_dim} for {tokens} tokens",
            part.x.len()
        );
        assert!(
            part.norm.is_none_or(|(weight, _)| weight.len() == head_dim),
            "rotate_heads: a norm that is not for heads of {head_dim}"
        );
        width += part.x.len() / tokens;
    }
    let table = cpu.isa.table();
    let parts: Vec<_> = parts.iter_mut().map(|p| (p.x.len() / tokens, SharedSlice::new(p.x), p.norm)).collect();
    cpu.for_pieces(tokens, PIECE / width.max(1), move |start, end| {
        let mut before = Vec::new();
        for t in start..end {
            let (cos, sin) = (&rotation.cos[t * half..(t + 1) * half], &rotation.sin[t * half..(t + 1) * half]);
            for (width, x, norm) in &parts {
                // SAFETY: tokens are disjoint and each belongs to one piece.
                let token = unsafe { x.slice(t * width, *width) };
                for head in token.chunks_exact_mut(head_dim) {
                    if let Some((weight, eps)) = norm {
                        before.clear();
                        before.extend_from_slice(head);
                        // SAFETY: the table is this processor's.
                        unsafe { (table.rms_norm)(&before, weight, *eps, head) }
                    }
                    // SAFETY: the table is this processor's.
                    unsafe { (table.rotate)(&mut head[..2 * half], cos, sin) }
                }
            }
        }
    });
}

/// Inlined into each instruction set.
#[inline(always)]
pub(crate) fn rotate_head(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}
