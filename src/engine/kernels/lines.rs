//! Memory in whole cache lines: packed weights that live long, and scratch that a thread keeps between calls.
//! Knows nothing of what is stored.

use crate::engine::buffer::Buffer;
use bytemuck::{Pod, Zeroable};
use std::cell::RefCell;

/// One cache line. Vector loads of packed weights must not straddle two.
#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Elements that start on a cache line; at first all zero.
#[derive(Clone)]
pub(super) struct Aligned<T> {
    buffer: Buffer,
    element: std::marker::PhantomData<T>,
}

impl<T: Pod> Aligned<T> {
    /// `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        Aligned { buffer: Buffer::zeroed(len * size_of::<T>()), element: std::marker::PhantomData }
    }

    /// Size in memory.
    pub(super) fn bytes(&self) -> usize {
        self.buffer.bytes().len()
    }
}

impl<T: Pod> std::ops::Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(self.buffer.bytes())
    }
}

impl<T: Pod> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.buffer.bytes_mut())
    }
}

thread_local! {
    /// Buffers not in use on this thread. Calls nest, so the last one returned is the next one taken and each
    /// depth finds its own buffer again, already large enough.
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` elements of scratch. What they hold is left from earlier calls.
pub(super) fn with_scratch<T: Pod, R>(len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    let mut lines = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if lines.len() < lines_for::<T>(len) {
        lines.resize(lines_for::<T>(len), Line::zeroed());
    }
    // What is left of a longer use may be no whole number of elements.
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut lines);
    let result = f(bytemuck::cast_slice_mut(&mut bytes[..len * size_of::<T>()]));
    FREE.with_borrow_mut(|free| free.push(lines));
    result
}

fn lines_for<T>(len: usize) -> usize {
    (len * size_of::<T>()).div_ceil(size_of::<Line>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_serves_elements_of_any_size() {
        with_scratch::<u8, _>(64 * 7, |bytes| bytes.fill(1));
        // 256 bytes each: four lines, of the seven that are there.
        with_scratch::<[u64; 32], _>(1, |wide| assert_eq!(wide.len(), 1));
        let mut odd = Aligned::<[u64; 3]>::zeros(3);
        odd[2] = [1, 2, 3];
        assert_eq!((odd.len(), odd[2], odd.bytes()), (3, [1, 2, 3], 72));
    }

    #[test]
    fn scratch_nests_and_is_aligned() {
        with_scratch::<u8, _>(70, |outer| {
            outer.fill(7);
            with_scratch::<i32, _>(100, |inner| {
                inner.fill(-1);
                assert_eq!(inner.as_ptr() as usize % 64, 0);
            });
            assert_eq!((outer.len(), outer.iter().all(|&v| v == 7)), (70, true));
        });
    }
}
