//! What products of activations with several matrices have in common.

/// Checks that the lengths of a product fit together: `m` rows `x` with matrices of `shapes` (rows, columns) to `outs`. Returns the
/// number of columns, or `None` if that leaves nothing to multiply; the outputs are then as they should be.
///
/// # Panics
/// If they do not.
pub(super) fn columns(
    what: &str,
    shapes: impl ExactSizeIterator<Item = (usize, usize)>,
    x: &[f32],
    m: usize,
    outs: &mut [&mut [f32]],
) -> Option<usize> {
    assert!(shapes.len() == outs.len(), "{what}: {} matrices and {} outputs", shapes.len(), outs.len());
    let mut columns = None;
    for ((rows, cols), out) in shapes.zip(outs.iter()) {
        let k = *columns.get_or_insert(cols);
        assert!(cols == k, "{what}: matrices of one call have {k} and {cols} columns");
        assert!(k.checked_mul(m) == Some(x.len()), "{what}: x has {} values, not {m} rows of {k}", x.len());
        assert!(
            rows.checked_mul(m) == Some(out.len()),
            "{what}: an output of {} values, not {m} rows of {rows}",
            out.len()
        );
    }
    if columns == Some(0) {
        outs.iter_mut().for_each(|out| out.fill(0.0));
    }
    columns.filter(|&k| m > 0 && k > 0)
}
