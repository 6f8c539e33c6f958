//! What packed matrices have in common, whatever lies in their strips: rows are cut into strips, strips are shared out to threads, and
//! products find their place.

use super::Cpu;
use super::matmul::MatrixRef;
use super::memory::Block;
use super::packed::WIDEST_TILE;
use super::quant::QuantType;
use super::shared::{Rows, SharedSlice};
use std::fmt;
use std::ops::Range;

/// Bytes of weights that one ticket takes. They are walked once for each tile of rows, so they should stay in a core's second-level cache
/// (1 MiB on Zen 4, where this was tuned) beside a tile.
const TICKET_BYTES: usize = 128 * 1024;
/// Most matrices of one region: a layer's queries, keys and values are three.
const MATRICES_MAX: usize = 4;
/// Most threads for which the rows of four tiles are shared out, as those of many are: each block of tiles reads the weights once more.
const FEW_THREADS: usize = 4;
/// Tiles that are few: they fit into a core's first-level cache, or nearly.
pub const FEW_TILES: usize = 3;

/// A weight matrix as strips of `LANES` rows; owns its bytes. The last strip of a matrix whose rows are no multiple of `LANES` is filled with
/// zeros.
pub struct Strips<const LANES: usize> {
    pub ty: QuantType,
    pub rows: usize,
    pub cols: usize,
    strip_bytes: usize,
    data: Block,
}

impl<const LANES: usize> Strips<LANES> {
    /// Strips of `strip_bytes` bytes, whole lines, on all threads: `fill` gets up to `LANES` rows, the bytes of each, and the strip as zeros.
    /// `done` is told of `w`'s bytes that are no longer needed, soon after, so that both forms need not be in memory as a whole.
    ///
    /// # Panics
    /// If the bytes are not those of a matrix of this shape.
    pub fn pack(
        cpu: &Cpu,
        w: MatrixRef<'_>,
        strip_bytes: usize,
        fill: impl Fn(&[u8], usize, &mut [u8]) + Sync,
        done: &(dyn Fn(Range<usize>) + Sync),
    ) -> Self {
        let row_bytes = w.ty.row_bytes(w.cols);
        assert!(
            row_bytes.and_then(|b| b.checked_mul(w.rows)) == Some(w.data.len()),
            "pack: {} bytes of {} are not {} rows of {}",
            w.data.len(),
            w.ty.name(),
            w.rows,
            w.cols
        );
        let row_bytes = row_bytes.unwrap_or(0);
        let data = Block::filled(cpu, w.rows.div_ceil(LANES), strip_bytes, &|piece, strips| {
            if row_bytes > 0 {
                let bytes = piece.start * LANES * row_bytes..w.data.len().min(piece.end * LANES * row_bytes);
                let rows = w.data[bytes.clone()].chunks(LANES * row_bytes);
                rows.zip(strips.chunks_exact_mut(strip_bytes)).for_each(|(rows, strip)| fill(rows, row_bytes, strip));
                done(bytes);
            }
        });
        Strips { ty: w.ty, rows: w.rows, cols: w.cols, strip_bytes, data }
    }

    /// Bytes they take.
    pub fn bytes(&self) -> usize {
        self.data.bytes().len()
    }

    /// The bytes of a strip, at a multiple of 64.
    pub fn strip(&self, index: usize) -> &[u8] {
        &self.data.bytes()[index * self.strip_bytes..(index + 1) * self.strip_bytes]
    }

    /// Where a row is: its strip and its lane.
    ///
    /// # Panics
    /// If there is no such row, or `out` has not as many values as it.
    pub fn place(&self, row: usize, out: &[f32]) -> (usize, usize) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {self:?} into {} values", out.len());
        (row / LANES, row % LANES)
    }

    fn count(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Has `dot` write the products of strip `s` with a tile of `height` rows, of which `rows` are some and the first is row `first_row` of
    /// the output: to where they belong, if all of them do.
    ///
    /// # Safety
    /// No one else touches these products; `dot` writes what it is given and no more.
    #[inline(always)]
    pub unsafe fn put(
        &self,
        s: usize,
        (first_row, rows, height): (usize, usize, usize),
        out: &SharedSlice<'_, f32>,
        dot: impl FnOnce(Rows<'_>),
    ) {
        let at = first_row * self.rows + s * LANES;
        let lanes = LANES.min(self.rows - s * LANES);
        if lanes == LANES && rows == height {
            // SAFETY: the caller's promise.
            dot(unsafe { out.rows(at, LANES, self.rows, rows) });
            return;
        }
        let mut products = [[0.0; LANES]; WIDEST_TILE];
        dot(Rows::contiguous(products[..height].as_flattened_mut(), LANES));
        for (r, products) in products[..rows].iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { out.slice(at + r * self.rows, lanes) }.copy_from_slice(&products[..lanes]);
        }
    }
}

impl<const LANES: usize> fmt::Debug for Strips<LANES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} x {}", self.ty.name(), self.rows, self.cols)
    }
}

/// Blocks of consecutive tiles that threads share out: enough tiles in each that reading the weights again for the next costs little beside the
/// products, and few enough to stay in the second-level cache with what is made of them. One thread shares nothing out.
pub fn blocks(tiles: usize, threads: usize) -> usize {
    match threads {
        1 => 1,
        2..=FEW_THREADS => (tiles / 4).max((tiles / 2).clamp(1, 2)),
        _ => (tiles / 4).max(1),
    }
}

/// Runs `body(lane, i, strips, tiles)` for all strips of all `matrices` with all of `tiles` tiles of activations, each pair once: `lane` is the
/// thread's number, `i` the matrix's. Many tiles are cut into blocks, which threads share out first: then most products are read, by what
/// follows, on the core that wrote them. Of few tiles each thread has all, and reads its strips in the order of memory.
pub fn for_tickets<const LANES: usize>(
    cpu: &Cpu,
    matrices: &[&Strips<LANES>],
    tiles: usize,
    body: impl Fn(usize, usize, Range<usize>, Range<usize>) + Sync,
) {
    let blocks = blocks(tiles, cpu.pool.threads());
    // A late thread should not hold up the region by much. Many tiles are walked anew for each ticket.
    let least = if tiles <= FEW_TILES { 16 } else { 8 } * cpu.pool.threads();
    for (n, matrices) in matrices.chunks(MATRICES_MAX).enumerate() {
        let mut tickets = 0;
        let mut plans = [Plan { first: usize::MAX, strips: 0, count: 0 }; MATRICES_MAX];
        for (plan, matrix) in plans.iter_mut().zip(matrices) {
            let by_cache = TICKET_BYTES / matrix.strip_bytes.max(1);
            let strips = by_cache.min(matrix.count().div_ceil(least)).max(1);
            *plan = Plan { first: tickets, strips, count: matrix.count() };
            tickets += matrix.count().div_ceil(strips);
        }
        let body = &body;
        cpu.pool.for_each(blocks * tickets, move |lane, item| {
            let (block, ticket) = (item / tickets, item % tickets);
            let i = plans.partition_point(|plan| plan.first <= ticket) - 1;
            let plan = plans[i];
            let start = (ticket - plan.first) * plan.strips;
            let strips = start..(start + plan.strips).min(plan.count);
            let tiles = tiles * block / blocks..tiles * (block + 1) / blocks;
            body(lane, n * MATRICES_MAX + i, strips, tiles);
        });
    }
}

/// A matrix's tickets.
#[derive(Clone, Copy)]
struct Plan {
    /// Number of the first.
    first: usize,
    /// Strips of each.
    strips: usize,
    /// Strips of the matrix.
    count: usize,
}
