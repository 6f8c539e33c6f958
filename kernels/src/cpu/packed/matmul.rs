//! Products of activations with packed matrices, from one row to thousands.

use super::acts::{
    ActTile, GroupSource, Precision, TilePlan, WIDEST_TILE, aside_bytes, group_bytes, tile_bytes, tiles,
};
use super::{GROUP, LANES, PackedMatrix, Turn};
use crate::cpu::Cpu;
use crate::cpu::dispatch::PackedKernels;
use crate::cpu::elementwise::Activation;
use crate::cpu::isa::prefetch;
use crate::cpu::memory::Lines;
use crate::cpu::product;
use crate::cpu::shared::{Rows, SharedSlice};
use crate::cpu::strips::{FEW_TILES, Strips, for_tickets};

/// Bytes of activations of one parallel region, but for what few products touch: they are walked once for each ticket, so they should
/// stay in a core's second-level cache too.
const CHUNK_BYTES: usize = 512 * 1024;
/// Values that one piece of the quantising region takes, at least: a few microseconds.
const QUANTIZE_PIECE: usize = 4 * 1024;
/// Most values that all threads together quantise where each has the tile for itself: that costs no more than to wait for each other and
/// to read what another core has written.
const OWN_VALUES: usize = 32 * 1024;

/// Buffers of [`packed_matmul`] that stay between calls.
#[derive(Default)]
pub struct PackedScratch {
    pub(super) acts: Lines,
    pub(super) tiles: Vec<TilePlan>,
    /// What each thread has quantised for itself.
    own: Vec<Own>,
    /// Calls in which threads did so.
    calls: u64,
    /// Room for [`super::packed_refine`].
    pub(super) order: Vec<f32>,
}

/// A tile that a thread has quantised for itself, in cache lines that no other touches.
#[derive(Default)]
#[repr(align(64))]
struct Own {
    acts: Lines,
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
    let Some(cols) = product::columns("packed_matmul", shapes, x, m, outs) else { return };
    let outs: Vec<SharedSlice<'_, f32>> = outs.iter_mut().map(|out| SharedSlice::new(out)).collect();
    let source = Source { x, cols, precision, sums: ws.iter().any(|w| w.has_offset()) };
    in_regions(cpu, kernels, source, scratch, |region| {
        let strips: Vec<&Strips<LANES>> = ws.iter().map(|w| &w.strips).collect();
        region.for_products(cpu, &strips, |i, (s, turn), rows, acts| {
            let w = ws[i];
            // SAFETY: the table is this processor's; an output element belongs to one row of one strip, and that to one ticket.
            unsafe { w.strips.put(s, rows, &outs[i], |out| (kernels.dot)(&w.strip(s, turn), acts, out)) }
        });
    });
}

/// `out[r * gate.rows() + j]` = `act`(row `j` of `gate` . row `r` of `x`) times (row `j` of `up` . row `r` of `x`), for `x` of `m` rows: what
/// [`packed_matmul`] and [`crate::gated_activation`] give, to the bit, but no product leaves the core's first cache.
///
/// # Panics
/// If the lengths do not fit together.
#[allow(clippy::too_many_arguments)] // those of `packed_matmul` and the activation
pub fn packed_gated_matmul(
    cpu: &Cpu,
    act: Activation,
    [gate, up]: [&PackedMatrix; 2],
    x: &[f32],
    m: usize,
    out: &mut [f32],
    scratch: &mut PackedScratch,
    precision: Precision,
) {
    let (rows, cols) = (gate.rows(), gate.cols());
    assert!((up.rows(), up.cols()) == (rows, cols), "packed_gated_matmul: a gate of {gate:?} and up of {up:?}");
    let shapes = [(rows, cols)].into_iter();
    if product::columns("packed_gated_matmul", shapes, x, m, &mut [&mut *out]).is_none() {
        return;
    }
    let (table, out) = (cpu.isa.table(), SharedSlice::new(out));
    let source = Source { x, cols, precision, sums: gate.has_offset() || up.has_offset() };
    in_regions(cpu, &table.packed, source, scratch, |region| {
        region.for_products(cpu, &[&gate.strips], |_, (s, turn), rows, acts| {
            let gated = |out: Rows<'_>| {
                let mut products = [[[0.0; LANES]; WIDEST_TILE]; 3];
                let [gates, ups, both] = products.each_mut().map(|p| p[..acts.height].as_flattened_mut());
                // SAFETY: the table is this processor's.
                unsafe {
                    (table.packed.dot)(&gate.strip(s, turn), acts, Rows::contiguous(gates, LANES));
                    (table.packed.dot)(&up.strip(s, turn), acts, Rows::contiguous(ups, LANES));
                    (table.gated)(act, gates, ups, both);
                }
                out.fill(both.as_chunks::<LANES>().0);
            };
            // SAFETY: an output element belongs to one row of one strip, and that to one ticket.
            unsafe { gate.strips.put(s, rows, &out, gated) }
        });
    });
}

/// [`packed_matmul`] with one matrix, and in `peaks` for each row the largest product of each [`PackedMatrix::PEAK_OF`] in a row of the
/// output, those that are no numbers passed over: taken while they are at hand, for who looks for the largest of many.
///
/// # Panics
/// If the lengths do not fit together.
#[allow(clippy::too_many_arguments)] // those of `packed_matmul` and the peaks
pub fn packed_matmul_with_peaks(
    cpu: &Cpu,
    w: &PackedMatrix,
    x: &[f32],
    m: usize,
    (out, peaks): (&mut [f32], &mut [f32]),
    scratch: &mut PackedScratch,
    precision: Precision,
) {
    let (outputs, cols) = (w.rows(), w.cols());
    let strips = outputs.div_ceil(LANES);
    assert!(m.checked_mul(strips) == Some(peaks.len()), "packed_matmul_with_peaks: {} peaks", peaks.len());
    let shapes = [(outputs, cols)].into_iter();
    if product::columns("packed_matmul_with_peaks", shapes, x, m, &mut [&mut *out]).is_none() {
        return peaks.fill(0.0);
    }
    let (kernels, out, peaks) = (&cpu.isa.table().packed, SharedSlice::new(out), SharedSlice::new(peaks));
    let source = Source { x, cols, precision, sums: w.has_offset() };
    in_regions(cpu, kernels, source, scratch, |region| {
        region.for_products(cpu, &[&w.strips], |_, (s, turn), rows, acts| {
            let with_peaks = |mut out: Rows<'_>| {
                // Whole lines, straight to where they belong: in parts they would fill the buffer of what waits for memory.
                // SAFETY: the table is this processor's.
                unsafe { (kernels.dot)(&w.strip(s, turn), acts, out.reborrow()) };
                let lanes = LANES.min(outputs - s * LANES);
                // SAFETY: a strip's peak in a row belongs to the strip, and that to one ticket; the table is this processor's.
                unsafe { (kernels.peaks)(&out, lanes, peaks.rows(rows.0 * strips + s, 1, strips, rows.1)) };
            };
            // SAFETY: an output element belongs to one row of one strip, and that to one ticket.
            unsafe { w.strips.put(s, rows, &out, with_peaks) }
        });
    });
}

/// Quantises `source`, as many rows at a time as stay in the caches, and has `run` multiply them.
fn in_regions(
    cpu: &Cpu,
    kernels: &PackedKernels,
    source: Source<'_>,
    scratch: &mut PackedScratch,
    run: impl Fn(&Region<'_>),
) {
    let (cols, groups) = (source.cols, source.cols / GROUP);
    let rows = (CHUNK_BYTES / (groups * group_bytes(1)) / WIDEST_TILE).max(4) * WIDEST_TILE;
    for (first_row, x) in (0..).step_by(rows).zip(source.x.chunks(rows * cols)) {
        let source = Source { x, ..source };
        tiles(x.len() / cols, groups, &mut scratch.tiles);
        match scratch.tiles[..] {
            [tile] if x.len() * cpu.pool.threads() <= OWN_VALUES => {
                let acts = Acts::Own(OwnTiles::new(cpu, kernels, source, tile, scratch));
                run(&Region { tiles: &[tile], acts, groups, first_row });
            }
            _ => {
                quantize_tiles(cpu, kernels, source, scratch);
                run(&Region { tiles: &scratch.tiles, acts: Acts::Shared(scratch.acts.bytes()), groups, first_row });
            }
        }
    }
}

/// Tiles of activations that are multiplied in one parallel region.
struct Region<'a> {
    tiles: &'a [TilePlan],
    acts: Acts<'a>,
    groups: usize,
    /// Number of their first row in the outputs.
    first_row: usize,
}

impl Region<'_> {
    /// Runs `body(i, (strip, turn), (first row, rows, height), tile)` for all strips of all `matrices` with all tiles.
    fn for_products(
        &self,
        cpu: &Cpu,
        matrices: &[&Strips<LANES>],
        body: impl Fn(usize, (usize, Turn), (usize, usize, usize), &ActTile<'_>) + Sync,
    ) {
        let &Region { tiles, ref acts, groups, first_row } = self;
        for_tickets(cpu, matrices, tiles.len(), move |lane, i, range, part| {
            // SAFETY: the thread asks once for each ticket.
            let acts = unsafe { acts.of(lane, matrices[i].strip(range.start)) };
            let tiles = &tiles[part];
            let multiply = |s: usize, turn: Turn| {
                let tile = &tiles[turn.number];
                let acts = &acts[tile.at..tile.at + tile_bytes(tile.height, groups)];
                let acts = ActTile::new(tile.height, groups, acts);
                body(i, (s, turn), (first_row + tile.first_row, tile.rows, tile.height), &acts);
            };
            if tiles.len() <= FEW_TILES {
                for s in range {
                    (0..tiles.len()).for_each(|number| multiply(s, Turn { number, of: tiles.len() }));
                }
            } else {
                for number in 0..tiles.len() {
                    range.clone().for_each(|s| multiply(s, Turn { number, of: 1 }));
                }
            }
        });
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

/// Rows of activations to quantise.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    /// Whole rows of `cols` values.
    pub x: &'a [f32],
    pub cols: usize,
    pub precision: Precision,
    /// As [`GroupSource::sums`].
    pub sums: bool,
}

impl Source<'_> {
    /// Quantises `count` groups of a tile from number `first` on.
    ///
    /// # Safety
    /// The kernels are this processor's.
    unsafe fn quantize(
        &self,
        kernels: &PackedKernels,
        tile: &TilePlan,
        first: usize,
        groups: &mut [u8],
        aside: &mut [u8],
    ) {
        let x = &self.x[tile.first_row * self.cols..(tile.first_row + tile.rows) * self.cols];
        let mut limits = [0.0; WIDEST_TILE];
        let limits = &mut limits[..tile.rows];
        // SAFETY: the caller's promise.
        unsafe {
            (kernels.root_mean_squares)(x, self.cols, limits);
            limits.iter_mut().for_each(|limit| *limit *= self.precision.fine_above());
            let source = GroupSource { x, cols: self.cols, first, height: tile.height, limits, sums: self.sums };
            (kernels.quantize)(&source, groups, aside);
        }
    }
}

/// A tile that each thread quantises for itself, when it first asks for it.
struct OwnTiles<'a> {
    kernels: &'a PackedKernels,
    source: Source<'a>,
    tile: TilePlan,
    call: u64,
    own: SharedSlice<'a, Own>,
}

impl<'a> OwnTiles<'a> {
    fn new(
        cpu: &Cpu,
        kernels: &'a PackedKernels,
        source: Source<'a>,
        tile: TilePlan,
        scratch: &'a mut PackedScratch,
    ) -> Self {
        // What is in them is not even looked at: each is in its thread's cache.
        scratch.own.resize_with(cpu.pool.threads(), Own::default);
        scratch.calls += 1;
        OwnTiles { kernels, source, tile, call: scratch.calls, own: SharedSlice::new(&mut scratch.own) }
    }

    /// # Safety
    /// As for [`Acts::of`].
    unsafe fn of(&self, lane: usize, weights: &[u8]) -> &[u8] {
        let OwnTiles { kernels, source, tile, .. } = *self;
        // SAFETY: each thread has its own, which it uses no longer.
        let own = &mut unsafe { self.own.slice(lane, 1) }[0];
        if own.call != self.call {
            own.call = self.call;
            prefetch(weights);
            let groups = source.cols / GROUP;
            let bytes = tile_bytes(tile.height, groups);
            if own.acts.bytes().len() < bytes {
                own.acts = Lines::zeroed(bytes);
            }
            let (high, aside) = own.acts.bytes_mut()[..bytes].split_at_mut(groups * group_bytes(tile.height));
            // SAFETY: the table is this processor's.
            unsafe { source.quantize(kernels, &tile, 0, high, aside) }
        }
        own.acts.bytes()
    }
}

/// Fills the scratch's tiles, of which there is at least one.
pub(super) fn quantize_tiles(cpu: &Cpu, kernels: &PackedKernels, source: Source<'_>, scratch: &mut PackedScratch) {
    let PackedScratch { acts, tiles: plans, .. } = scratch;
    let groups = source.cols / GROUP;
    let bytes = plans.last().map_or(0, |last| last.at + tile_bytes(last.height, groups));
    if acts.bytes().len() < bytes {
        *acts = Lines::zeroed(bytes);
    }
    let out = SharedSlice::new(acts.bytes_mut());
    // Of many tiles each is one run of groups; of fewer, runs are as many as spread them evenly. Each run looks at whole rows first.
    let (threads, height) = (cpu.pool.threads(), plans[0].height);
    let even = (1..threads).find(|runs| plans.len() * runs % threads == 0).unwrap_or(threads);
    let most = groups.div_ceil(QUANTIZE_PIECE.div_ceil(height * GROUP));
    let run = groups.div_ceil(if plans.len() < 2 * threads { even.min(most) } else { 1 });
    let runs = groups.div_ceil(run);
    cpu.for_pieces(plans.len() * runs, QUANTIZE_PIECE.div_ceil(height * run * GROUP), |start, end| {
        for piece in start..end {
            let (plan, first) = (&plans[piece / runs], piece % runs * run);
            let count = run.min(groups - first);
            let (size, aside) = (group_bytes(plan.height), aside_bytes(plan.height));
            let aside_at = plan.at + groups * size + first * aside;
            // SAFETY: tiles and their runs of groups are disjoint; the table is this processor's.
            unsafe {
                let out_groups = out.slice(plan.at + first * size, count * size);
                source.quantize(kernels, plan, first, out_groups, out.slice(aside_at, count * aside));
            }
        }
    });
}
