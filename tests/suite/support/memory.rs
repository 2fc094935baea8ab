//! What each thread of the tests holds and allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts what this thread holds: other tests run beside.
struct Counting;

thread_local! {
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn note(bytes: i64) {
    // A thread that ends frees memory after its locals are gone.
    if bytes > 0 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
    }
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

#[allow(unsafe_code)]
// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as i64);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as i64);
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(-(layout.size() as i64));
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size as i64);
        note(-(layout.size() as i64));
        // SAFETY: the caller's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that this thread holds: what it allocated less what it freed.
pub(crate) fn live() -> i64 {
    LIVE.with(Cell::get)
}

/// From now on [`peak`] is the most that this thread holds.
pub(crate) fn begin_peak() {
    PEAK.with(|peak| peak.set(live()));
}

/// The most that this thread held since [`begin_peak`].
pub(crate) fn peak() -> i64 {
    PEAK.with(Cell::get)
}

/// Does something that may hold at most so many bytes more than this thread does.
///
/// # Panics
/// Where it held more at a time.
pub(crate) fn within<T>(most: i64, act: impl FnOnce() -> T) -> T {
    let before = live();
    begin_peak();
    let done = act();
    let peak = peak() - before;
    assert!(peak <= most, "{peak} bytes were held, {most} may be");
    done
}

/// How often this thread has allocated.
pub(crate) fn allocations() -> u64 {
    COUNT.with(Cell::get)
}
