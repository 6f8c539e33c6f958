//! The common form of 256 consecutive values of a row, weights or activations, and the plain-Rust unpacking of every block format to it.
//!
//! A weight is `d * q + min`, with `q` a 16-bit integer that includes the integer sub-scale of Q2_K, Q3_K and Q6_K (so `d` covers at
//! least 32 values), and `d` and `min` floats. An activation is `scale * q` with 16-bit `q`, one scale for each 32 values: the error is
//! about 2^-16 of the largest of the 32, against 2^-8 with the usual 8-bit activations.

use super::quant::QuantType;
use half::f16;

/// Values in a panel.
pub const PANEL: usize = 256;
/// Values that share a scale.
pub const GROUP: usize = 32;
/// Groups in a panel.
pub const GROUPS: usize = PANEL / GROUP;

/// 256 weights of one row. Rows that are no multiple of 256 end with a partly used panel whose unused groups are zero.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct WeightPanel {
    pub q: [i16; PANEL],
    /// Scale of each group.
    pub d: [f32; GROUPS],
    /// Offset of each group (first 8), or of each half group for formats with one for 16 values.
    pub min: [f32; 2 * GROUPS],
}

/// 256 activations of one row.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct ActPanel {
    pub q: [i16; PANEL],
    /// Scale of each group. NaN if the group held a value that is not finite: the row's results are NaN then.
    pub scale: [f32; GROUPS],
    /// scale * (exact sum of q) of each group.
    pub sum32: [f32; GROUPS],
    /// The same of each half group.
    pub sum16: [f32; 2 * GROUPS],
}

impl Default for WeightPanel {
    fn default() -> Self {
        WeightPanel { q: [0; PANEL], d: [0.0; GROUPS], min: [0.0; 2 * GROUPS] }
    }
}

impl Default for ActPanel {
    fn default() -> Self {
        ActPanel { q: [0; PANEL], scale: [0.0; GROUPS], sum32: [0.0; GROUPS], sum16: [0.0; 2 * GROUPS] }
    }
}

/// Groups whose largest magnitude is below this count as zero: the inverse of their scale would overflow.
pub const SMALLEST_AMAX: f32 = 1e-30;
/// Largest magnitude of a quantised activation.
pub const ACT_MAX: f32 = 32767.0;

fn half_at(src: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([src[at], src[at + 1]]).to_f32()
}

/// Unpacks `groups` groups: that many blocks of a 32-value format, or one block of a 256-value format.
///
/// # Panics
/// If `ty` is a plain float format, or `src` is too short.
pub fn unpack_panel(ty: QuantType, src: &[u8], groups: usize, out: &mut WeightPanel) {
    if groups < GROUPS {
        *out = WeightPanel::default();
    }
    match ty {
        QuantType::Q4_0 | QuantType::Q4_1 | QuantType::Q5_0 | QuantType::Q5_1 | QuantType::Q8_0 => {
            for (g, block) in src.chunks_exact(ty.block_bytes()).take(groups).enumerate() {
                unpack_legacy(ty, block, g, out);
            }
        }
        QuantType::Q2K => unpack_q2k(src, out),
        QuantType::Q3K => unpack_q3k(src, out),
        QuantType::Q4K => unpack_q45k(src, &src[16..144], None, out),
        QuantType::Q5K => unpack_q45k(src, &src[48..176], Some(&src[16..48]), out),
        QuantType::Q6K => unpack_q6k(src, out),
        QuantType::Q8K => {
            out.d = [f32::from_le_bytes([src[0], src[1], src[2], src[3]]); GROUPS];
            for (q, &b) in out.q.iter_mut().zip(&src[4..260]) {
                *q = i16::from(b as i8);
            }
        }
        QuantType::F32 | QuantType::F16 | QuantType::BF16 => panic!("{} has no blocks: this is a bug", ty.name()),
    }
}

/// One block of 32: a half-precision scale, perhaps a minimum, perhaps 32 fifth bits, then nibbles (values 0..16 low, 16..32 high) or bytes.
fn unpack_legacy(ty: QuantType, block: &[u8], g: usize, out: &mut WeightPanel) {
    out.d[g] = half_at(block, 0);
    let q = &mut out.q[g * GROUP..(g + 1) * GROUP];
    if ty == QuantType::Q8_0 {
        for (q, &b) in q.iter_mut().zip(&block[2..34]) {
            *q = i16::from(b as i8);
        }
        return;
    }
    let (has_min, fifth, offset) = match ty {
        QuantType::Q4_0 => (false, false, 8),
        QuantType::Q4_1 => (true, false, 0),
        QuantType::Q5_0 => (false, true, 16),
        _ => (true, true, 0),
    };
    let mut at = 2;
    if has_min {
        out.min[g] = half_at(block, at);
        at += 2;
    }
    let mut high = 0;
    if fifth {
        high = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        at += 4;
    }
    for (i, &b) in block[at..at + 16].iter().enumerate() {
        q[i] = (i16::from(b & 15) | ((high >> i & 1) as i16) << 4) - offset;
        q[i + 16] = (i16::from(b >> 4) | ((high >> (i + 16) & 1) as i16) << 4) - offset;
    }
}

/// The eight 6-bit scales and eight 6-bit minimums packed into the 12 bytes of Q4_K and Q5_K.
pub fn scales_q45k(s: &[u8]) -> ([u8; GROUPS], [u8; GROUPS]) {
    let (mut scale, mut min) = ([0; GROUPS], [0; GROUPS]);
    for i in 0..4 {
        scale[i] = s[i] & 63;
        min[i] = s[i + 4] & 63;
        scale[i + 4] = (s[i + 8] & 15) | (s[i] >> 6) << 4;
        min[i + 4] = (s[i + 8] >> 4) | (s[i + 4] >> 6) << 4;
    }
    (scale, min)
}

fn unpack_q45k(src: &[u8], nibbles: &[u8], high: Option<&[u8]>, out: &mut WeightPanel) {
    let (d, dmin) = (half_at(src, 0), half_at(src, 2));
    let (scale, min) = scales_q45k(&src[4..16]);
    for g in 0..GROUPS {
        out.d[g] = d * f32::from(scale[g]);
        out.min[g] = -(dmin * f32::from(min[g]));
        for i in 0..GROUP {
            let low = nibbles[g / 2 * GROUP + i] >> (4 * (g % 2)) & 15;
            let fifth = high.map_or(0, |h| (h[i] >> g & 1) << 4);
            out.q[g * GROUP + i] = i16::from(low | fifth);
        }
    }
}

fn unpack_q2k(src: &[u8], out: &mut WeightPanel) {
    let (d, dmin) = (half_at(src, 80), half_at(src, 82));
    out.d = [d; GROUPS];
    for (min, &s) in out.min.iter_mut().zip(&src[..16]) {
        *min = -(dmin * f32::from(s >> 4));
    }
    for i in 0..PANEL {
        let g = i / GROUP;
        let q = src[16 + g / 4 * GROUP + i % GROUP] >> (2 * (g % 4)) & 3;
        out.q[i] = i16::from(q) * i16::from(src[i / 16] & 15);
    }
}

/// The sixteen 6-bit scales of Q3_K, offset removed.
pub fn scales_q3k(s: &[u8]) -> [i16; 16] {
    std::array::from_fn(|i| {
        let low = s[i % 8] >> (4 * (i / 8)) & 15;
        let high = s[8 + i % 4] >> (2 * (i / 4)) & 3;
        i16::from(low | high << 4) - 32
    })
}

fn unpack_q3k(src: &[u8], out: &mut WeightPanel) {
    out.d = [half_at(src, 108); GROUPS];
    let scales = scales_q3k(&src[96..108]);
    for i in 0..PANEL {
        let g = i / GROUP;
        let low = src[32 + g / 4 * GROUP + i % GROUP] >> (2 * (g % 4)) & 3;
        let high = src[i % GROUP] >> g & 1;
        out.q[i] = (i16::from(low | high << 2) - 4) * scales[i / 16];
    }
}

fn unpack_q6k(src: &[u8], out: &mut WeightPanel) {
    out.d = [half_at(src, 208); GROUPS];
    for i in 0..PANEL {
        let (g, l) = (i / GROUP, i % GROUP);
        let (half, part) = (g / 4, g % 4);
        let low = src[half * 64 + part % 2 * 32 + l] >> (4 * (part / 2)) & 15;
        let high = src[128 + half * 32 + l] >> (2 * part) & 3;
        out.q[i] = (i16::from(low | high << 4) - 32) * i16::from(src[192 + i / 16] as i8);
    }
}
