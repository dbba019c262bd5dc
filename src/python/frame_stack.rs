//! The memory of Python's frames: a chunk that was just given back is kept for the next one.
//!
//! Since CPython 3.11 the frames of Python functions lie on a stack of chunks of 16 KiB, which come from
//! the arena allocator. A call that does not fit takes a new chunk and its return gives it back, so a
//! loop that calls functions at the edge of a chunk maps and unmaps memory in each turn, with a page
//! fault each: some hundred times in one request of keystone (docs/server.md). Owns the chunks that are kept, a few for the
//! whole process. Never keeps arenas of objects. Rules: `PyObject_SetArenaAllocator` (C API, "Memory
//! Management"), `push_chunk` and `pop_chunk` of CPython's `pystate.c` and `ceval.c`.

#![expect(
    unsafe_code,
    reason = "PyO3 has no safe call for an allocator of CPython's"
)]

use std::ffi::c_void;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::ffi;
use pyo3::prelude::*;

/// Bytes of a chunk that one call takes: `DATA_STACK_CHUNK_SIZE`, or `_PY_DATA_STACK_CHUNK_SIZE`.
/// A frame that is larger gets a larger chunk, which is not kept.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks that are kept. Threads take turns at the interpreter, and each may stand at such an edge.
const KEPT: usize = 4;

/// What both functions below need.
struct Chunks {
    arenas: ffi::PyObjectArenaAllocator,
    kept: [AtomicPtr<c_void>; KEPT],
}

// SAFETY: `arenas` is two functions of CPython's and the word that they want, never changed here; CPython
// calls them from any thread as well.
unsafe impl Send for Chunks {}
// SAFETY: as above; `kept` is atomic.
unsafe impl Sync for Chunks {}

static CHUNKS: OnceLock<Chunks> = OnceLock::new();

impl Chunks {
    fn allocate(&self, bytes: usize) -> *mut c_void {
        if bytes == CHUNK_BYTES {
            for place in &self.kept {
                let chunk = place.swap(ptr::null_mut(), Ordering::Acquire);
                if !chunk.is_null() {
                    return chunk;
                }
            }
        }
        match self.arenas.alloc {
            Some(alloc) => alloc(self.arenas.ctx, bytes),
            None => ptr::null_mut(),
        }
    }

    fn free(&self, memory: *mut c_void, bytes: usize) {
        if bytes == CHUNK_BYTES {
            for place in &self.kept {
                let is_kept = place.compare_exchange(
                    ptr::null_mut(),
                    memory,
                    Ordering::Release,
                    Ordering::Relaxed,
                );
                if is_kept.is_ok() {
                    return;
                }
            }
        }
        if let Some(free) = self.arenas.free {
            free(self.arenas.ctx, memory, bytes);
        }
    }
}

extern "C" fn allocate(_: *mut c_void, bytes: usize) -> *mut c_void {
    CHUNKS
        .get()
        .map_or(ptr::null_mut(), |chunks| chunks.allocate(bytes))
}

extern "C" fn free(_: *mut c_void, memory: *mut c_void, bytes: usize) {
    if let Some(chunks) = CHUNKS.get() {
        chunks.free(memory, bytes);
    }
}

/// Keeps chunks from now on, in this process and those that it forks. Once is enough.
pub(super) fn keep_chunks(_: Python<'_>) {
    let mut arenas = ffi::PyObjectArenaAllocator {
        ctx: ptr::null_mut(),
        alloc: None,
        free: None,
    };
    // SAFETY: this thread is attached, and the struct is CPython's to fill in.
    unsafe { ffi::PyObject_GetArenaAllocator(&raw mut arenas) };
    let ctx = arenas.ctx;
    let kept = [const { AtomicPtr::new(ptr::null_mut()) }; KEPT];
    if CHUNKS.set(Chunks { arenas, kept }).is_err() {
        return;
    }
    let mut ours = ffi::PyObjectArenaAllocator {
        ctx,
        alloc: Some(allocate),
        free: Some(free),
    };
    // SAFETY: this thread is attached; CPython copies the struct. Without an interpreter lock another
    // thread may see some words of it before others: each mix of old and new functions works, since the
    // word that the old ones want is kept and ours ignore it. `free` passes on what was allocated before,
    // and what is not kept, to the functions that it came from. Both may be called without the
    // interpreter, since they use atomics alone.
    unsafe { ffi::PyObject_SetArenaAllocator(&raw mut ours) };
}
