//! The global allocator of the extension module: the system's, with a small reserve for when the system has no memory.
//!
//! fastclip's own allocations report failure (`allocation.rs`). Those that the standard library and `PyO3` make
//! for themselves cannot: they abort the process where memory runs out. These allocations are small, and are served from
//! the reserve instead. (Two kinds bypass this allocator: those of glibc, and the handle of a thread that the standard
//! library starts.) The thread that was served is marked, and the call that it runs raises a `MemoryError` before it
//! writes anything. See `call::entry`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicBool, Ordering};

#[global_allocator]
static ALLOCATOR: WithReserve = WithReserve;

/// Bytes of a unit of the reserve, and the largest alignment that is served: that of a part of a job.
const UNIT: usize = 128;
/// Number of units: 256 KiB.
const UNITS: usize = 2048;
/// Bytes of the largest allocation that is served. Larger ones are requested by code that handles failure.
const LARGEST: usize = 16 << 10;

thread_local! {
    static WAS_USED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread was served from the reserve since its mark was last cleared.
pub fn was_used() -> bool {
    WAS_USED.get()
}

/// Sets or clears the mark of this thread. Returns the mark before.
pub fn set_used(used: bool) -> bool {
    WAS_USED.replace(used)
}

/// The allocator.
struct WithReserve;

static RESERVE: Reserve = Reserve {
    is_locked: AtomicBool::new(false),
    taken: UnsafeCell::new([0; UNITS / 64]),
    memory: UnsafeCell::new(Memory([0; UNIT * UNITS])),
};

#[repr(align(128))]
struct Memory(#[allow(dead_code, reason = "reached by pointers")] [u8; UNIT * UNITS]);

struct Reserve {
    /// A spin lock of `taken`.
    is_locked: AtomicBool,
    /// One bit per unit: whether it is in use.
    taken: UnsafeCell<[u64; UNITS / 64]>,
    memory: UnsafeCell<Memory>,
}

// SAFETY: `taken` is accessed only with `is_locked` held, and each unit of the memory only through the allocation that
// it belongs to.
unsafe impl Sync for Reserve {}

impl Reserve {
    fn start(&self) -> *mut u8 {
        self.memory.get().cast()
    }

    fn owns(&self, pointer: *mut u8) -> bool {
        pointer.addr().wrapping_sub(self.start().addr()) < UNIT * UNITS
    }

    /// Calls `f` with the bits of the units, under the lock.
    fn with_taken<R>(&self, f: impl FnOnce(&mut [u64; UNITS / 64]) -> R) -> R {
        while self.is_locked.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        // SAFETY: this thread holds the lock, so that no other accesses the bits before it is released.
        let result = f(unsafe { &mut *self.taken.get() });
        self.is_locked.store(false, Ordering::Release);
        result
    }

    /// Allocates adjacent units and marks the thread. Returns null if the layout is too large or too few units are free.
    fn allocate(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LARGEST || layout.align() > UNIT {
            return std::ptr::null_mut();
        }
        let needed = layout.size().div_ceil(UNIT).max(1);
        let first = self.with_taken(|taken| {
            let mut free = 0;
            for unit in 0..UNITS {
                free = if taken[unit / 64] >> (unit % 64) & 1 == 0 { free + 1 } else { 0 };
                if free == needed {
                    let first = unit + 1 - needed;
                    (first..=unit).for_each(|unit| taken[unit / 64] |= 1 << (unit % 64));
                    return Some(first);
                }
            }
            None
        });
        let Some(first) = first else { return std::ptr::null_mut() };
        // Access fails only where the thread is ending, and so runs no call.
        let _ = WAS_USED.try_with(|used| used.set(true));
        self.start().wrapping_add(first * UNIT)
    }

    /// Frees memory that [`Reserve::allocate`] returned for this layout.
    fn free(&self, pointer: *mut u8, layout: Layout) {
        let first = (pointer.addr() - self.start().addr()) / UNIT;
        let units = layout.size().div_ceil(UNIT).max(1);
        self.with_taken(|taken| {
            (first..first + units).for_each(|unit| taken[unit / 64] &= !(1 << (unit % 64)));
        });
    }
}

// SAFETY: memory comes from the system's allocator, or from units of the reserve that belong to no other allocation. Both
// have the size and the alignment of the layout, and memory is freed where it was allocated.
unsafe impl GlobalAlloc for WithReserve {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        let pointer = unsafe { System.alloc(layout) };
        if pointer.is_null() { RESERVE.allocate(layout) } else { pointer }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if !pointer.is_null() {
            return pointer;
        }
        let pointer = RESERVE.allocate(layout);
        if !pointer.is_null() {
            // SAFETY: new memory of the layout's size.
            unsafe { pointer.write_bytes(0, layout.size()) };
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if RESERVE.owns(pointer) {
            RESERVE.free(pointer, layout);
        } else {
            // SAFETY: the memory came from the system's allocator, with this layout.
            unsafe { System.dealloc(pointer, layout) };
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !RESERVE.owns(pointer) {
            // SAFETY: the memory came from the system's allocator, with this layout.
            let moved = unsafe { System.realloc(pointer, layout, size) };
            if !moved.is_null() {
                return moved;
            }
        }
        // SAFETY: by the caller's contract the size is a valid layout with this alignment. The memory at `pointer` is as
        // large as its layout says, and does not overlap the new memory.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                std::ptr::copy_nonoverlapping(pointer, moved, layout.size().min(size));
                self.dealloc(pointer, layout);
            }
            moved
        }
    }
}
