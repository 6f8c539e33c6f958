//! Products of activations with packed matrices, from one row to thousands.

use super::acts::{ActTile, GroupSource, Precision, TilePlan, WIDEST_TILE, group_bytes, low_bytes, tile_bytes, tiles};
use super::{GROUP, LANES, PackedMatrix};
use crate::cpu::Cpu;
use crate::cpu::dispatch::PackedKernels;
use crate::cpu::isa::prefetch;
use crate::cpu::memory::Lines;
use crate::cpu::product;
use crate::cpu::shared::SharedSlice;
use crate::cpu::strips::{Strips, for_tickets};
use std::ops::Range;

/// Bytes of activations of one parallel region, low bytes left out: they are walked once for each ticket, so they should stay in a core's
/// second-level cache too.
const CHUNK_BYTES: usize = 512 * 1024;
/// Values that one piece of the quantising region takes, at least: a few microseconds.
const QUANTIZE_PIECE: usize = 4 * 1024;
/// Most values that all threads together quantise where each has the tile for itself: that costs no more than to wait for each other and
/// to read what another core has written.
const OWN_VALUES: usize = 16 * 1024;

/// Buffers of [`packed_matmul`] that stay between calls.
#[derive(Default)]
pub struct PackedScratch {
    pub(super) acts: Lines,
    pub(super) tiles: Vec<TilePlan>,
    /// For each row the magnitude above which a group is fine.
    limits: Vec<f32>,
    /// What each thread has quantised for itself.
    own: Vec<Own>,
    /// Calls in which threads did so.
    calls: u64,
    /// Room for [`super::packed_refine`].
    pub(super) peaks: Vec<f32>,
}

/// A tile that a thread has quantised for itself, in cache lines that no other touches.
#[derive(Default)]
#[repr(align(64))]
struct Own {
    acts: Lines,
    limits: Vec<f32>,
    /// The call it was for.
    call: u64,
}

impl std::fmt::Debug for PackedScratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedScratch({} bytes)", self.acts.bytes().len())
    }
}

/// `outs[i][r * ws[i].rows() + j]` = row `j` of `ws[i]` . row `r` of `x`, for `x` of `m` rows. All matrices have the same number of columns.
///
/// Activations are rounded to `precision`, once for all matrices. An output is a sum over groups of 32 columns, in order: the exact
/// integer dot product, made a float and multiplied into the sum with the product of the two scales (where a group's halves have scales
/// of their own, the sum of both products with them, times the activations' scale), then the format's minimum times the sum of the
/// activations. All instruction sets give the same bits.
///
/// # Panics
/// If the lengths do not fit together.
pub fn packed_matmul(
    cpu: &Cpu,
    ws: &[&PackedMatrix],
    x: &[f32],
    m: usize,
    outs: &mut [&mut [f32]],
    scratch: &mut PackedScratch,
    precision: Precision,
) {
    matmul_with(cpu, &cpu.isa.table().packed, ws, x, m, outs, scratch, precision);
}

/// [`packed_matmul`] with the kernels of any table that this processor can run.
#[allow(clippy::too_many_arguments)] // those of `packed_matmul` and the kernels
pub(crate) fn matmul_with(
    cpu: &Cpu,
    kernels: &PackedKernels,
    ws: &[&PackedMatrix],
    x: &[f32],
    m: usize,
    outs: &mut [&mut [f32]],
    scratch: &mut PackedScratch,
    precision: Precision,
) {
    let shapes = ws.iter().map(|w| (w.rows(), w.cols()));
    let Some(k) = product::columns("packed_matmul", shapes, x, m, outs) else { return };
    let outs: Vec<SharedSlice<'_, f32>> = outs.iter_mut().map(|out| SharedSlice::new(out)).collect();
    let row_bytes = k / GROUP * group_bytes(1);
    let chunk = (CHUNK_BYTES / row_bytes / WIDEST_TILE).max(4) * WIDEST_TILE;
    for start in (0..m).step_by(chunk) {
        let rows = start..(start + chunk).min(m);
        let x = &x[rows.start * k..rows.end * k];
        tiles(rows.len(), k / GROUP, cpu.pool.threads(), &mut scratch.tiles);
        match scratch.tiles[..] {
            [tile] if x.len() * cpu.pool.threads() <= OWN_VALUES => {
                let own = OwnTiles::new(cpu, kernels, x, k, precision, tile, scratch);
                multiply(cpu, kernels, ws, &[tile], &Acts::Own(own), start, &outs);
            }
            _ => {
                quantize_tiles(cpu, kernels, x, k, precision, scratch);
                multiply(cpu, kernels, ws, &scratch.tiles, &Acts::Shared(scratch.acts.bytes()), start, &outs);
            }
        }
    }
}

/// The quantised activations of a region of products.
enum Acts<'a> {
    /// Of all tiles, for all threads.
    Shared(&'a [u8]),
    /// Of the only tile, for each thread its own.
    Own(OwnTiles<'a>),
}

impl Acts<'_> {
    /// Those for thread `lane`, which will multiply `weights` with them first.
    ///
    /// # Safety
    /// This is that thread, and no longer uses what it was given before.
    unsafe fn of(&self, lane: usize, weights: &[u8]) -> &[u8] {
        match self {
            Acts::Shared(acts) => acts,
            // SAFETY: the caller's promise.
            Acts::Own(own) => unsafe { own.of(lane, weights) },
        }
    }
}

/// A tile that each thread quantises for itself, when it first asks for it.
struct OwnTiles<'a> {
    kernels: &'a PackedKernels,
    x: &'a [f32],
    cols: usize,
    precision: Precision,
    tile: TilePlan,
    call: u64,
    own: SharedSlice<'a, Own>,
}

impl<'a> OwnTiles<'a> {
    fn new(
        cpu: &Cpu,
        kernels: &'a PackedKernels,
        x: &'a [f32],
        cols: usize,
        precision: Precision,
        tile: TilePlan,
        scratch: &'a mut PackedScratch,
    ) -> Self {
        // What is in them is not even looked at: each is in its thread's cache.
        scratch.own.resize_with(cpu.pool.threads(), Own::default);
        scratch.calls += 1;
        OwnTiles { kernels, x, cols, precision, tile, call: scratch.calls, own: SharedSlice::new(&mut scratch.own) }
    }

    /// # Safety
    /// As for [`Acts::of`].
    unsafe fn of(&self, lane: usize, weights: &[u8]) -> &[u8] {
        let OwnTiles { kernels, x, cols, tile, .. } = *self;
        // SAFETY: each thread has its own, which it uses no longer.
        let own = &mut unsafe { self.own.slice(lane, 1) }[0];
        if own.call != self.call {
            own.call = self.call;
            prefetch(weights);
            own.limits.resize(tile.rows, 0.0);
            set_limits(kernels, x, cols, self.precision, &mut own.limits);
            let bytes = tile_bytes(tile.height, cols / GROUP);
            if own.acts.bytes().len() < bytes {
                own.acts = Lines::zeroed(bytes);
            }
            let (high, low) = own.acts.bytes_mut()[..bytes].split_at_mut(cols / GROUP * group_bytes(tile.height));
            let source = GroupSource { x, cols, first: 0, height: tile.height, limits: &own.limits };
            // SAFETY: the table is this processor's.
            unsafe { (kernels.quantize)(&source, high, low) }
        }
        own.acts.bytes()
    }
}

/// For each row of `x` the magnitude above which a group is fine.
fn set_limits(kernels: &PackedKernels, x: &[f32], cols: usize, precision: Precision, limits: &mut [f32]) {
    for (row, limit) in x.chunks_exact(cols).zip(limits) {
        // SAFETY: the table is this processor's.
        *limit = precision.fine_above() * unsafe { (kernels.root_mean_square)(row) };
    }
}

/// Fills the scratch's tiles, of which there is at least one, from the rows `x`.
pub(super) fn quantize_tiles(
    cpu: &Cpu,
    kernels: &PackedKernels,
    x: &[f32],
    cols: usize,
    precision: Precision,
    scratch: &mut PackedScratch,
) {
    let PackedScratch { acts, tiles: plans, limits, .. } = scratch;
    let groups = cols / GROUP;
    let bytes = plans.last().map_or(0, |last| last.at + tile_bytes(last.height, groups));
    if acts.bytes().len() < bytes {
        *acts = Lines::zeroed(bytes);
    }
    let out = SharedSlice::new(acts.bytes_mut());
    limits.resize(x.len() / cols, 0.0);
    let limits = SharedSlice::new(limits);
    // Of many tiles each is one run of groups; of fewer, runs are about as many as spread them evenly.
    let spread = 4 * cpu.pool.threads();
    let run = if plans.len() >= spread {
        groups
    } else {
        (groups * plans.len()).div_ceil(spread).max(QUANTIZE_PIECE.div_ceil(plans[0].height * GROUP)).min(groups)
    };
    let runs = groups.div_ceil(run);
    let run = groups.div_ceil(runs);
    let limits_of = |rows: Range<usize>| {
        // SAFETY: rows belong to one tile, and a row's limit is written by one piece.
        let limits = unsafe { limits.slice(rows.start, rows.len()) };
        set_limits(kernels, &x[rows.start * cols..], cols, precision, limits);
        &*limits
    };
    let quantize_run = |plan: &TilePlan, limits: &[f32], first: usize| {
        let count = run.min(groups - first);
        let x = &x[plan.first_row * cols..(plan.first_row + plan.rows) * cols];
        let (size, low_size) = (group_bytes(plan.height), low_bytes(plan.height));
        let low_at = plan.at + groups * size + first * low_size;
        let source = GroupSource { x, cols, first, height: plan.height, limits };
        // SAFETY: tiles and their runs of groups are disjoint; the table is this processor's.
        unsafe {
            let out_groups = out.slice(plan.at + first * size, count * size);
            (kernels.quantize)(&source, out_groups, out.slice(low_at, count * low_size));
        }
    };
    if runs == 1 {
        let tiles_per_piece = QUANTIZE_PIECE.div_ceil(plans[0].height * cols);
        cpu.for_pieces(plans.len(), tiles_per_piece, |start, end| {
            for plan in &plans[start..end] {
                quantize_run(plan, limits_of(plan.first_row..plan.first_row + plan.rows), 0);
            }
        });
    } else {
        cpu.for_pieces(x.len() / cols, QUANTIZE_PIECE.div_ceil(cols), |start, end| {
            limits_of(start..end);
        });
        // SAFETY: nothing writes the limits any more.
        let limits = unsafe { &*limits.slice(0, x.len() / cols) };
        cpu.for_pieces(plans.len() * runs, 1, |start, end| {
            for piece in start..end {
                let plan = &plans[piece / runs];
                quantize_run(plan, &limits[plan.first_row..][..plan.rows], piece % runs * run);
            }
        });
    }
}

/// All products of `tiles`, whose first row is row `first_row` of the outputs.
fn multiply(
    cpu: &Cpu,
    kernels: &PackedKernels,
    ws: &[&PackedMatrix],
    tiles: &[TilePlan],
    acts: &Acts<'_>,
    first_row: usize,
    outs: &[SharedSlice<'_, f32>],
) {
    let strips: Vec<&Strips<LANES>> = ws.iter().map(|w| &w.strips).collect();
    for_tickets(cpu, &strips, tiles.len(), move |lane, i, range, part| {
        let (matrix, groups) = (ws[i], ws[i].cols() / GROUP);
        // SAFETY: the thread asks once for each ticket.
        let acts = unsafe { acts.of(lane, matrix.strips.strip(range.start)) };
        for tile in &tiles[part] {
            let bytes = &acts[tile.at..tile.at + tile_bytes(tile.height, groups)];
            let acts = ActTile::new(tile.height, groups, bytes);
            let rows = (first_row + tile.first_row, tile.rows, tile.height);
            for s in range.clone() {
                // SAFETY: the table is this processor's; an output element belongs to one row of one strip, and that to one ticket.
                unsafe { matrix.strips.put(s, rows, &outs[i], |out| (kernels.dot)(&matrix.strip(s), &acts, out)) }
            }
        }
    });
}
