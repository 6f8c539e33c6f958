//! A mutable slice that tasks of one parallel region write at disjoint places.

use std::marker::PhantomData;

/// A `&mut [T]` that can be shared between threads which promise to touch disjoint parts of it.
pub struct SharedSlice<'a, T> {
    ptr: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is through `slice`, whose callers promise disjointness; `T: Send` lets another thread own an element.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedSlice<'_, T> {}

/// Some rows of a matrix, `stride` values from the beginning of one to that of the next, of which a task has the same columns. No copies:
/// it stands for the exclusive borrow of all of them.
pub struct Rows<'a> {
    at: *mut f32,
    stride: usize,
    rows: usize,
    columns: usize,
    _borrow: PhantomData<&'a mut [f32]>,
}

impl<'a> Rows<'a> {
    /// The first column of the first row.
    pub fn at(&self) -> *mut f32 {
        self.at
    }

    /// Values from a row's beginning to the next one's.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Rows, and columns of each.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// The same rows, until the result is gone.
    pub fn reborrow(&mut self) -> Rows<'_> {
        Rows { _borrow: PhantomData, ..*self }
    }

    /// Row `r`.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn row(&self, r: usize) -> &[f32] {
        assert!(r < self.rows, "row {r} of {}: this is a bug", self.rows);
        // SAFETY: row `r` has as many columns, and they are this value's alone.
        unsafe { std::slice::from_raw_parts(self.at.add(r * self.stride), self.columns) }
    }

    /// Sets the first column of row `r`.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn set(&mut self, r: usize, value: f32) {
        assert!(r < self.rows && self.columns > 0, "row {r} of {}: this is a bug", self.rows);
        // SAFETY: there is one, and it is this value's alone.
        unsafe { *self.at.add(r * self.stride) = value }
    }

    /// Copies `rows` into the first rows.
    ///
    /// # Panics
    /// If they are too many, or too wide.
    pub fn fill<const N: usize>(self, rows: &[[f32; N]]) {
        assert!(rows.len() <= self.rows && N <= self.columns, "rows of the wrong size: this is a bug");
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: row `r` has as many columns, and they are this value's alone.
            unsafe { self.at.add(r * self.stride).copy_from_nonoverlapping(row.as_ptr(), N) }
        }
    }

    /// Rows of `columns` (more than none) values, one behind the other.
    pub fn contiguous(values: &'a mut [f32], columns: usize) -> Rows<'a> {
        let rows = values.len() / columns;
        Rows { at: values.as_mut_ptr(), stride: columns, rows, columns, _borrow: PhantomData }
    }
}

impl SharedSlice<'_, f32> {
    /// `columns` values from `start` on, and as many at every `stride` after it: `rows` times.
    ///
    /// # Safety
    /// As for [`SharedSlice::slice`].
    pub unsafe fn rows(&self, start: usize, columns: usize, stride: usize, rows: usize) -> Rows<'_> {
        let end =
            rows.checked_sub(1).and_then(|before| before.checked_mul(stride)?.checked_add(start)?.checked_add(columns));
        assert!(
            end.is_some_and(|end| end <= self.len) && columns <= stride,
            "{rows} rows of {columns}, {stride} apart, from {start} are not in a slice of {}",
            self.len
        );
        // SAFETY: in bounds by the assertion.
        Rows { at: unsafe { self.ptr.add(start) }, stride, rows, columns, _borrow: PhantomData }
    }
}

impl<'a, T> SharedSlice<'a, T> {
    /// Takes the exclusive borrow that the parts are cut from.
    pub fn new(slice: &'a mut [T]) -> Self {
        SharedSlice { ptr: slice.as_mut_ptr(), len: slice.len(), _borrow: PhantomData }
    }

    /// The address of element `index`, which need not be inside: to be asked for, not to be read.
    pub fn address(&self, index: usize) -> *const T {
        self.ptr.wrapping_add(index)
    }

    /// The part `start..start + len`.
    ///
    /// # Safety
    /// No two live parts may overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(
            start.checked_add(len).is_some_and(|end| end <= self.len),
            "part {start}+{len} is outside a slice of {}",
            self.len
        );
        // SAFETY: in bounds by the assertion, disjoint from other parts by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}
