//! Memory that connections have left behind goes back to the system.
//!
//! Owns one call of the C library. What many connections held at once (heads, beginnings of bodies) lies
//! in blocks that are too small to be mapped by themselves, and in an arena for each thread that made
//! some: the C library keeps them for later, which for a burst of clients never comes. Decides nothing
//! about when. Rules: `malloc_trim(3)`; other C libraries than glibc have no such call, and musl needs none.
#![cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "the call is the C library's alone")
)]

/// Gives free memory back; takes some milliseconds for a hundred megabytes.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number, locks what it changes, and frees nothing that is in use.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
