//! Matrix products of activations with weights in ggml's formats, read in place.
//!
//! Activations are quantised once for all matrices of a call (see [`super::panel`]). A few activation rows are multiplied straight from
//! the blocks; more rows unpack a handful of weight rows once and reuse them. Both give the same bits: the instruction set's tile code is
//! one and the same, only the source of the 16-bit weights differs. Floats are multiplied by plain Rust.
//!
//! Where the instruction set packs ([`super::dispatch::Isa::packs`]), models come here with the formats that are not packed only.

use super::Cpu;
use super::dispatch::{KernelTable, TILE_ROWS, WeightRows};
use super::isa::scalar::dot_wide;
use super::panel::{ActPanel, PANEL, WeightPanel};
use super::product;
use super::quant::{QuantType, dequantize};
use super::shared::SharedSlice;
use std::sync::{Mutex, PoisonError};

/// Bytes of weights that one ticket of a product with few rows reads. Tuned on a Zen 3 with 2 cores.
const TICKET_BYTES: usize = 64 * 1024;
/// Bytes of unpacked weights that one ticket of a product with many rows keeps in the core's cache (half of Zen 3's 512 KiB L2).
const UNPACKED_BYTES: usize = 128 * 1024;
/// Bytes of activations that are walked for each of those: they should stay in the shared cache.
const CHUNK_BYTES: usize = 8 << 20;
/// Activation rows up to which weights are unpacked again for each tile of rows: where unpacking to memory begins to pay. Tuned on Zen 4.
fn direct_rows(ty: QuantType) -> usize {
    match ty {
        // Two instructions unpack them.
        QuantType::Q4_0 | QuantType::Q4_1 | QuantType::Q8_0 | QuantType::Q4K | QuantType::Q8K => 3 * TILE_ROWS,
        _ => 2 * TILE_ROWS,
    }
}

/// A weight matrix: `rows` outputs of `cols` values, row after row in the blocks of `ty`. The data may have any alignment.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a> {
    /// Format of the blocks.
    pub ty: QuantType,
    /// Outputs.
    pub rows: usize,
    /// Inputs: a whole number of blocks.
    pub cols: usize,
    /// `rows * ty.row_bytes(cols)` bytes.
    pub data: &'a [u8],
}

/// Buffers of [`matmul`] that stay between calls.
#[derive(Debug, Default)]
pub struct MatmulScratch {
    acts: Vec<ActPanel>,
    lanes: Vec<Mutex<Lane>>,
}

/// What one thread needs.
#[derive(Debug, Default)]
struct Lane {
    panels: Vec<WeightPanel>,
    wide: Vec<f32>,
    tile: Vec<f32>,
}

/// A run of rows of one matrix: the unit of work a thread takes.
struct Plan<'a> {
    matrix: &'a MatrixRef<'a>,
    row_bytes: usize,
    rows_per_ticket: usize,
    /// Number of the first ticket.
    first: usize,
}

/// `outs[i][r * ws[i].rows + j]` = row `j` of `ws[i]` . row `r` of `x`, for `x` of `m` rows. All matrices have the same `cols`.
///
/// Block formats multiply with activations rounded to 16 bits (one scale for 32 values); float formats with the f32 activations.
///
/// # Panics
/// If the lengths do not fit together.
pub fn matmul(
    cpu: &Cpu,
    ws: &[MatrixRef<'_>],
    x: &[f32],
    m: usize,
    outs: &mut [&mut [f32]],
    scratch: &mut MatmulScratch,
) {
    for w in ws {
        let bytes = w.ty.row_bytes(w.cols).and_then(|b| b.checked_mul(w.rows));
        assert!(
            bytes == Some(w.data.len()),
            "matmul: {} bytes of {} are not {} rows of {}",
            w.data.len(),
            w.ty.name(),
            w.rows,
            w.cols
        );
    }
    let Some(k) = product::columns("matmul", ws.iter().map(|w| (w.rows, w.cols)), x, m, outs) else { return };
    let table = cpu.isa.table();
    let panels = k.div_ceil(PANEL);
    let MatmulScratch { acts, lanes } = scratch;
    if ws.iter().any(|w| !w.ty.is_float()) {
        quantize(cpu, table, x, k, acts);
    }
    if lanes.len() < cpu.pool.threads() {
        lanes.resize_with(cpu.pool.threads(), Mutex::default);
    }
    let outs: Vec<SharedSlice<'_, f32>> = outs.iter_mut().map(|out| SharedSlice::new(out)).collect();
    let chunk = (CHUNK_BYTES / (panels * size_of::<ActPanel>())).max(64) / TILE_ROWS * TILE_ROWS;
    for start in (0..m).step_by(chunk) {
        let rows = start..(start + chunk).min(m);
        let batch =
            Batch { table, k, panels, rows: rows.len(), first_row: start, x: &x[rows.start * k..rows.end * k], acts };
        batch.run(cpu, ws, &outs, lanes);
    }
}

/// Quantises all rows of `x` to `acts`, `ceil(k / 256)` panels a row.
fn quantize(cpu: &Cpu, table: &KernelTable, x: &[f32], k: usize, acts: &mut Vec<ActPanel>) {
    let panels = k.div_ceil(PANEL);
    let m = x.len() / k;
    if acts.len() < m * panels {
        acts.resize(m * panels, ActPanel::default());
    }
    let acts = SharedSlice::new(acts);
    cpu.for_pieces(m, super::elementwise::PIECE / k, |start, end| {
        for r in start..end {
            // SAFETY: rows are disjoint and each belongs to one piece; the table is this processor's.
            unsafe { (table.quantize)(&x[r * k..(r + 1) * k], acts.slice(r * panels, panels)) }
        }
    });
}

/// Rows of activations that are multiplied in one parallel region.
struct Batch<'a> {
    table: &'a KernelTable,
    k: usize,
    panels: usize,
    rows: usize,
    first_row: usize,
    x: &'a [f32],
    /// All rows' panels, from row 0.
    acts: &'a [ActPanel],
}

impl Batch<'_> {
    fn run(&self, cpu: &Cpu, ws: &[MatrixRef<'_>], outs: &[SharedSlice<'_, f32>], lanes: &[Mutex<Lane>]) {
        let threads = cpu.pool.threads();
        let mut tickets = 0;
        let plans: Vec<Plan<'_>> = ws
            .iter()
            .map(|matrix| {
                let row_bytes = matrix.data.len().checked_div(matrix.rows).unwrap_or(0);
                let by_cache = if self.rows > direct_rows(matrix.ty) {
                    UNPACKED_BYTES / (self.panels * size_of::<WeightPanel>())
                } else {
                    TICKET_BYTES / row_bytes.max(1)
                };
                // At least 4 tickets a thread, so that a late thread does not hold up the region by much; whole pairs of rows.
                let rows_per_ticket = by_cache.min(matrix.rows.div_ceil(4 * threads)).clamp(4, 256).next_multiple_of(4);
                let first = tickets;
                tickets += matrix.rows.div_ceil(rows_per_ticket);
                Plan { matrix, row_bytes, rows_per_ticket, first }
            })
            .collect();
        cpu.pool.for_each(tickets, |lane, ticket| {
            let mut lane = lanes[lane].lock().unwrap_or_else(PoisonError::into_inner);
            let i = plans.partition_point(|plan| plan.first <= ticket) - 1;
            let plan = &plans[i];
            let start = (ticket - plan.first) * plan.rows_per_ticket;
            let end = (start + plan.rows_per_ticket).min(plan.matrix.rows);
            self.ticket(plan, start, end, &outs[i], &mut lane);
        });
    }

    /// The products of weight rows `start..end` with every row of the batch.
    fn ticket(&self, plan: &Plan<'_>, start: usize, end: usize, out: &SharedSlice<'_, f32>, lane: &mut Lane) {
        let (ty, count) = (plan.matrix.ty, end - start);
        let data = &plan.matrix.data[start * plan.row_bytes..end * plan.row_bytes];
        let w = WeightRows { ty, cols: self.k, row_bytes: plan.row_bytes, data };
        let Lane { panels, wide, tile } = lane;
        tile.resize(count * TILE_ROWS, 0.0);
        let unpacked = self.rows > direct_rows(ty);
        if ty.is_float() {
            wide.resize(count * self.k, 0.0);
            dequantize(ty, data, wide);
        } else if unpacked {
            panels.resize(count * self.panels, WeightPanel::default());
            // SAFETY: the table is this processor's.
            unsafe { (self.table.unpack)(&w, panels) };
        }
        for r in (0..self.rows).step_by(TILE_ROWS) {
            let n = TILE_ROWS.min(self.rows - r);
            let tile = &mut tile[..count * n];
            if ty.is_float() {
                let x: [&[f32]; TILE_ROWS] = std::array::from_fn(|i| {
                    let row = (r + i).min(self.rows - 1);
                    &self.x[row * self.k..(row + 1) * self.k]
                });
                dot_wide(wide, &x[..n], tile);
            } else {
                let acts: [&[ActPanel]; TILE_ROWS] = std::array::from_fn(|i| {
                    let row = self.first_row + (r + i).min(self.rows - 1);
                    &self.acts[row * self.panels..(row + 1) * self.panels]
                });
                // SAFETY: the table is this processor's.
                unsafe {
                    if unpacked {
                        (self.table.dot_panels)(ty, self.k, panels, &acts[..n], tile);
                    } else {
                        (self.table.dot_blocks)(&w, &acts[..n], tile);
                    }
                }
            }
            for i in 0..n {
                let at = (self.first_row + r + i) * plan.matrix.rows + start;
                // SAFETY: an output element belongs to one weight row, and that to one ticket.
                let y = unsafe { out.slice(at, count) };
                for (y, tile) in y.iter_mut().zip(tile.chunks_exact(n)) {
                    *y = tile[i];
                }
            }
        }
    }
}
