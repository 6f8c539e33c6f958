//! The number formats of weights, as ggml lays them out.

use super::panel::{GROUP, PANEL, WeightPanel, unpack_panel};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// A storage format of weights: plain floats, or ggml's block formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types)] // ggml's own names
pub enum QuantType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
}

use QuantType::*;

impl QuantType {
    /// Every format.
    pub const ALL: [QuantType; 14] = [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, Q8K];

    /// Values in one block (1 for plain floats).
    pub fn block_len(self) -> usize {
        match self {
            F32 | F16 | BF16 => 1,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 => 32,
            Q2K | Q3K | Q4K | Q5K | Q6K | Q8K => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            Q4_0 => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q2K => 84,
            Q3K => 110,
            Q4K => 144,
            Q5K => 176,
            Q6K => 210,
            Q8K => 292,
        }
    }

    /// Bytes of a row of `cols` values; `None` if that is no whole number of blocks, or overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        (cols.is_multiple_of(self.block_len())).then(|| (cols / self.block_len()).checked_mul(self.block_bytes()))?
    }

    /// ggml's name of the format.
    pub fn name(self) -> &'static str {
        match self {
            F32 => "F32",
            F16 => "F16",
            BF16 => "BF16",
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q8_0 => "Q8_0",
            Q2K => "Q2_K",
            Q3K => "Q3_K",
            Q4K => "Q4_K",
            Q5K => "Q5_K",
            Q6K => "Q6_K",
            Q8K => "Q8_K",
        }
    }

    /// The format with this number in GGUF files, if it is one of these.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => F32,
            1 => F16,
            2 => Q4_0,
            3 => Q4_1,
            6 => Q5_0,
            7 => Q5_1,
            8 => Q8_0,
            10 => Q2K,
            11 => Q3K,
            12 => Q4K,
            13 => Q5K,
            14 => Q6K,
            15 => Q8K,
            30 => BF16,
            _ => return None,
        })
    }

    /// Whether it is a plain float format.
    pub(crate) fn is_float(self) -> bool {
        matches!(self, F32 | F16 | BF16)
    }

    /// The minimums its blocks carry.
    pub(crate) fn mins(self) -> Mins {
        match self {
            Q4_1 | Q5_1 | Q4K | Q5K => Mins::Per32,
            Q2K => Mins::Per16,
            _ => Mins::None,
        }
    }
}

/// How a format's offsets (ggml: minimums) are spread over a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mins {
    /// Symmetric: no offsets.
    None,
    /// One for each 32 values.
    Per32,
    /// One for each 16 values.
    Per16,
}

/// Turns whole blocks of `ty` into floats, to the bit as ggml does. `src` may have any alignment.
///
/// # Panics
/// If `dst` is no whole number of blocks or `src` has not exactly their bytes.
pub fn dequantize(ty: QuantType, src: &[u8], dst: &mut [f32]) {
    assert!(
        ty.row_bytes(dst.len()) == Some(src.len()),
        "dequantize: {} bytes of {} do not hold {} values",
        src.len(),
        ty.name(),
        dst.len()
    );
    match ty {
        F32 => {
            for (y, b) in dst.iter_mut().zip(src.chunks_exact(4)) {
                *y = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        F16 => {
            // By way of an aligned buffer: a slice is converted by the processor's instruction, eight values at a time.
            let mut halves = [f16::ZERO; 64];
            for (dst, src) in dst.chunks_mut(64).zip(src.chunks(128)) {
                for (h, b) in halves.iter_mut().zip(src.chunks_exact(2)) {
                    *h = f16::from_le_bytes([b[0], b[1]]);
                }
                halves[..dst.len()].convert_to_f32_slice(dst);
            }
        }
        BF16 => {
            for (y, b) in dst.iter_mut().zip(src.chunks_exact(2)) {
                *y = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
            }
        }
        _ => dequantize_blocks(ty, src, dst),
    }
}

/// Every value is `d * q + min` with one rounding: the products d * q fit a float exactly, because d has 11 significant bits and
/// q (sub-scale included) at most 13 (Q8_K: one rounding in the product, no minimum).
fn dequantize_blocks(ty: QuantType, src: &[u8], dst: &mut [f32]) {
    let panel_bytes = PANEL / ty.block_len() * ty.block_bytes();
    let mut panel = WeightPanel::default();
    for (values, bytes) in dst.chunks_mut(PANEL).zip(src.chunks(panel_bytes)) {
        let groups = values.len() / GROUP;
        unpack_panel(ty, bytes, groups, &mut panel);
        for (i, y) in values.iter_mut().enumerate() {
            let product = panel.d[i / GROUP] * f32::from(panel.q[i]);
            *y = match ty.mins() {
                Mins::None => product,
                Mins::Per32 => product + panel.min[i / GROUP],
                Mins::Per16 => product + panel.min[i / 16],
            };
        }
    }
}
