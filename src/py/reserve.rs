//! The allocator of the extension module: the system's, with a small reserve for when that gives nothing.
//!
//! fastclip's own allocations report failure (`allocation.rs`). Those that the standard library, rayon and `PyO3` make
//! for themselves cannot: they abort the process where memory runs out. They are small, and are served from a reserve
//! instead. (Some do not come here: glibc's own, and the handle of a thread that the standard library starts.) The thread that was served is marked, and the call it is in raises a `MemoryError` before it writes
//! anything. See `raise::entry`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicBool, Ordering};

#[global_allocator]
static ALLOCATOR: Reserving = Reserving;

/// The unit of the reserve, and its largest alignment: that of what rayon keeps for each thread.
const UNIT: usize = 128;
/// How many units there are: 256 KiB.
const UNITS: usize = 2048;
/// The largest allocation that is served: what is larger was asked for by code that handles failure.
const LARGEST: usize = 16 << 10;

thread_local! {
    static SERVED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread was served from the reserve since the mark was taken away.
pub fn was_used() -> bool {
    SERVED.get()
}

/// Clears the mark of this thread, or sets it. Returns whether it was set.
pub fn mark(served: bool) -> bool {
    SERVED.replace(served)
}

struct Reserving;

static RESERVE: Reserve = Reserve {
    busy: AtomicBool::new(false),
    taken: UnsafeCell::new([0; UNITS / 64]),
    memory: UnsafeCell::new(Memory([0; UNIT * UNITS])),
};

#[repr(align(128))]
struct Memory(#[allow(dead_code, reason = "reached by pointers")] [u8; UNIT * UNITS]);

struct Reserve {
    busy: AtomicBool,
    /// A bit for each unit that is in use.
    taken: UnsafeCell<[u64; UNITS / 64]>,
    memory: UnsafeCell<Memory>,
}

// SAFETY: `taken` is used only by who has set `busy`, and each part of the memory only by whom it was given to.
unsafe impl Sync for Reserve {}

impl Reserve {
    fn start(&self) -> *mut u8 {
        self.memory.get().cast()
    }

    fn owns(&self, pointer: *mut u8) -> bool {
        pointer.addr().wrapping_sub(self.start().addr()) < UNIT * UNITS
    }

    /// Lends `f` the bits of the units.
    fn with_taken<R>(&self, f: impl FnOnce(&mut [u64; UNITS / 64]) -> R) -> R {
        while self.busy.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        // SAFETY: `busy` was not set, and nobody else goes on before it is taken away.
        let result = f(unsafe { &mut *self.taken.get() });
        self.busy.store(false, Ordering::Release);
        result
    }

    /// Memory for a small allocation; null if there is none.
    fn allocate(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LARGEST || layout.align() > UNIT {
            return std::ptr::null_mut();
        }
        let needed = layout.size().div_ceil(UNIT).max(1);
        let found = self.with_taken(|taken| {
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
        let Some(first) = found else { return std::ptr::null_mut() };
        // It fails only where the thread is ending, and nobody will ask.
        let _ = SERVED.try_with(|served| served.set(true));
        self.start().wrapping_add(first * UNIT)
    }

    /// Takes back memory that [`Reserve::allocate`] gave for this layout.
    fn free(&self, pointer: *mut u8, layout: Layout) {
        let first = (pointer.addr() - self.start().addr()) / UNIT;
        let units = layout.size().div_ceil(UNIT).max(1);
        self.with_taken(|taken| {
            (first..first + units).for_each(|unit| taken[unit / 64] &= !(1 << (unit % 64)));
        });
    }
}

// SAFETY: memory comes from the system's allocator or from units of the reserve that nobody else has; both are as large
// and as aligned as the layout says, and each goes back where it came from.
unsafe impl GlobalAlloc for Reserving {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        let found = unsafe { System.alloc(layout) };
        if found.is_null() { RESERVE.allocate(layout) } else { found }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        let found = unsafe { System.alloc_zeroed(layout) };
        if !found.is_null() {
            return found;
        }
        let found = RESERVE.allocate(layout);
        if !found.is_null() {
            // SAFETY: as large as the layout, and ours.
            unsafe { found.write_bytes(0, layout.size()) };
        }
        found
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if RESERVE.owns(pointer) {
            RESERVE.free(pointer, layout);
        } else {
            // SAFETY: it came from the system's allocator, with this layout.
            unsafe { System.dealloc(pointer, layout) };
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !RESERVE.owns(pointer) {
            // SAFETY: it came from the system's allocator, with this layout.
            let found = unsafe { System.realloc(pointer, layout, size) };
            if !found.is_null() {
                return found;
            }
        }
        // SAFETY: the caller's contract: with this alignment the size is a valid layout. The memory at `pointer` is
        // as large as its layout says, and apart from the new.
        unsafe {
            let found = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !found.is_null() {
                std::ptr::copy_nonoverlapping(pointer, found, layout.size().min(size));
                self.dealloc(pointer, layout);
            }
            found
        }
    }
}
