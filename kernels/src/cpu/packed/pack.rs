//! Packing: from rows of ggml's blocks to strips.

use super::pieces::{EIGHT_BITS, FIVE_BITS, FOUR_BITS, Piece, SIX_BITS};
use super::{GROUP, LANES, LINE, PackedMatrix, Packing, STEPS};
use crate::cpu::Cpu;
use crate::cpu::matmul::MatrixRef;
use crate::cpu::panel::scales_q45k;
use crate::cpu::quant::QuantType;
use crate::cpu::strips::Strips;
use std::ops::Range;

impl PackedMatrix {
    /// Packs `w`, on all threads; `None` if its format is multiplied as it is. `done` is told which of its bytes are no longer needed, while
    /// others still are.
    ///
    /// # Panics
    /// If the bytes are not those of a matrix of this shape.
    pub fn pack(cpu: &Cpu, w: MatrixRef<'_>, done: &(dyn Fn(Range<usize>) + Sync)) -> Option<PackedMatrix> {
        let packing = Packing::of(w.ty)?;
        let groups = w.cols / GROUP;
        let fill = |rows: &[u8], row_bytes: usize, strip: &mut [u8]| {
            pack_strip(w.ty, packing, groups, rows, row_bytes, strip);
        };
        let strips = Strips::pack(cpu, w, packing.strip_bytes(groups)?, fill, done);
        Some(PackedMatrix { packing, strips })
    }
}

/// Packs up to 16 rows. Records in the outer loops and rows in the inner one: the lines that the rows share stay in the cache.
fn pack_strip(ty: QuantType, packing: Packing, groups: usize, rows: &[u8], row_bytes: usize, strip: &mut [u8]) {
    let block_groups = ty.block_len() / GROUP;
    for first in (0..groups).step_by(block_groups) {
        let record = &mut strip[first / packing.record_groups * packing.record_bytes()..];
        let (scales, quants) = record.split_at_mut(packing.scale_bytes);
        let place = first % packing.record_groups;
        let quants = &mut quants[place * packing.quant_bytes()..][..block_groups * packing.quant_bytes()];
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            let block = &row[first / block_groups * ty.block_bytes()..][..ty.block_bytes()];
            pack_scales(ty, block, lane, place, scales);
            for (g, quants) in quants.chunks_exact_mut(packing.quant_bytes()).enumerate() {
                pack_quants(packing, &unsigned(ty, block, g), lane, quants);
            }
        }
    }
}

/// The scales of one block of the row in `lane`, which is at `place` in its record.
fn pack_scales(ty: QuantType, block: &[u8], lane: usize, place: usize, scales: &mut [u8]) {
    let mut half = |slot: usize, at: usize| {
        scales[2 * (slot * LANES + lane)..][..2].copy_from_slice(&block[at..at + 2]);
    };
    match ty {
        QuantType::Q4_1 | QuantType::Q5_1 => {
            half(0, 0);
            half(1, 2);
        }
        QuantType::Q4K | QuantType::Q5K => {
            half(0, 0);
            half(1, 2);
            let (scale, min) = scales_q45k(&block[4..16]);
            for (g, own) in scales[LINE..].chunks_exact_mut(2 * LANES).enumerate() {
                own[lane] = scale[g];
                own[LANES + lane] = min[g];
            }
        }
        QuantType::Q6K => {
            half(0, 208);
            for (g, own) in scales[LINE..].chunks_exact_mut(2 * LANES).enumerate() {
                own[lane] = block[192 + 2 * g];
                own[LANES + lane] = block[193 + 2 * g];
            }
        }
        _ => half(place, 0),
    }
}

/// The quants of group `g` of a block, offset added.
fn unsigned(ty: QuantType, block: &[u8], g: usize) -> [u8; GROUP] {
    let mut q = [0; GROUP];
    // A block of 32: nibbles (values 0..16 low, 16..32 high) behind the scales, fifth bits in a word before them.
    let mut block_of_32 = |nibbles: usize, fifth: Option<usize>| {
        let high = fifth.map_or(0, |at| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]));
        for (i, &b) in block[nibbles..nibbles + 16].iter().enumerate() {
            q[i] = (b & 15) | ((high >> i & 1) as u8) << 4;
            q[i + 16] = (b >> 4) | ((high >> (i + 16) & 1) as u8) << 4;
        }
    };
    match ty {
        QuantType::Q4_0 => block_of_32(2, None),
        QuantType::Q4_1 => block_of_32(4, None),
        QuantType::Q5_0 => block_of_32(6, Some(2)),
        QuantType::Q5_1 => block_of_32(8, Some(4)),
        QuantType::Q8_0 => {
            for (q, &b) in q.iter_mut().zip(&block[2..34]) {
                *q = b ^ 128;
            }
        }
        QuantType::Q4K => {
            let nibbles = &block[16 + g / 2 * GROUP..][..GROUP];
            for (q, &b) in q.iter_mut().zip(nibbles) {
                *q = b >> (4 * (g % 2)) & 15;
            }
        }
        QuantType::Q5K => {
            let nibbles = &block[48 + g / 2 * GROUP..][..GROUP];
            for ((q, &b), &h) in q.iter_mut().zip(nibbles).zip(&block[16..48]) {
                *q = (b >> (4 * (g % 2)) & 15) | (h >> g & 1) << 4;
            }
        }
        QuantType::Q6K => {
            let (half, part) = (g / 4, g % 4);
            let low = &block[half * 64 + part % 2 * GROUP..][..GROUP];
            let high = &block[128 + half * GROUP..][..GROUP];
            for ((q, &b), &h) in q.iter_mut().zip(low).zip(high) {
                *q = (b >> (4 * (part / 2)) & 15) | (h >> (2 * part) & 3) << 4;
            }
        }
        ty => panic!("{} is not packed: this is a bug", ty.name()),
    }
    q
}

/// Writes one group of the row in `lane`, 4 values at a time.
fn pack_quants(packing: Packing, q: &[u8; GROUP], lane: usize, quants: &mut [u8]) {
    let steps: [u32; STEPS] =
        std::array::from_fn(|j| u32::from_le_bytes([q[4 * j], q[4 * j + 1], q[4 * j + 2], q[4 * j + 3]]));
    // As the bits of a value are a constant, so is where each piece goes.
    match packing.bits {
        4 => put_pieces::<4>(FOUR_BITS, steps, lane, quants),
        5 => put_pieces::<5>(FIVE_BITS, steps, lane, quants),
        6 => put_pieces::<6>(SIX_BITS, steps, lane, quants),
        _ => put_pieces::<8>(EIGHT_BITS, steps, lane, quants),
    }
}

#[inline(always)]
fn put_pieces<const LINES: usize>(pieces: &[Piece], steps: [u32; STEPS], lane: usize, quants: &mut [u8]) {
    let mut lines = [0; LINES];
    for piece in pieces {
        lines[piece.line] |= (steps[piece.step] >> piece.to & piece.mask()) << piece.at;
    }
    for (line, word) in lines.into_iter().enumerate() {
        quants[line * LINE + 4 * lane..][..4].copy_from_slice(&word.to_le_bytes());
    }
}
