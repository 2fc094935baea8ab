//! The memory of runs, and what is kept of it between them.

use std::sync::{Mutex, PoisonError};

use crate::engine::tensor::Buffer;

use super::step::Scratch;

/// Arenas that a session keeps for its next runs.
const SPARE_MAX: usize = 8;

/// The memory of one run.
pub(super) struct Arena {
    pub(super) buffer: Buffer,
    pub(super) scratch: Scratch,
}

impl Arena {
    /// For runs of a plan that takes so many bytes.
    pub(super) fn of(bytes: usize) -> Arena {
        Arena { buffer: Buffer::zeroed(bytes), scratch: Scratch::default() }
    }

    fn bytes(&self) -> usize {
        self.buffer.bytes().len()
    }
}

/// The arenas of runs that have ended, for the next ones of any plan: a batch of eight and one of seven lie in the same
/// memory.
#[derive(Default)]
pub(super) struct Arenas {
    spare: Mutex<Vec<Arena>>,
}

impl Arenas {
    /// The smallest that holds so many bytes; where none does, one is made in the place of the largest.
    pub(super) fn take(&self, bytes: usize) -> Arena {
        let found = {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            let size = |&i: &usize| spare[i].bytes();
            let holding = (0..spare.len()).filter(|i| size(i) >= bytes).min_by_key(size);
            holding.or_else(|| (0..spare.len()).max_by_key(size)).map(|i| spare.swap_remove(i))
        };
        match found {
            Some(arena) if arena.bytes() >= bytes => arena,
            Some(Arena { buffer, scratch }) => {
                drop(buffer);
                Arena { buffer: Buffer::zeroed(bytes), scratch }
            }
            None => Arena::of(bytes),
        }
    }

    /// Keeps an arena for the next run.
    pub(super) fn put(&self, arena: Arena) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(arena);
        }
    }

    /// Gives back those that are larger than any plan needs.
    pub(super) fn shrink(&self, most_bytes: usize) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.retain(|arena| arena.bytes() <= most_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_all_sizes_share_as_many_arenas_as_run_at_once() {
        let arenas = Arenas::default();
        let kept = || {
            let mut sizes: Vec<usize> = arenas.spare.lock().unwrap().iter().map(Arena::bytes).collect();
            sizes.sort_unstable();
            sizes
        };
        for bytes in [10, 1000, 100, 1000, 10] {
            arenas.put(arenas.take(bytes));
        }
        assert_eq!(kept(), [1000]);
        let (large, small) = (arenas.take(500), arenas.take(20));
        assert_eq!((large.bytes(), small.bytes()), (1000, 20));
        arenas.put(large);
        arenas.put(small);
        assert_eq!((arenas.take(15).bytes(), kept()), (20, vec![1000]));
        (0..2 * SPARE_MAX).for_each(|_| arenas.put(Arena::of(7)));
        assert_eq!(kept().len(), SPARE_MAX);
        arenas.shrink(100);
        assert_eq!(kept(), vec![7; SPARE_MAX - 1]);
    }
}
