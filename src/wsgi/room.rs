//! Memory for bytes of which the last owner is waiting: written once, where it is.
//!
//! Owns the count of bytes that were written to memory without content, so that it need not be
//! cleared first. Never allocates, and never reads what it holds.

use std::mem::MaybeUninit;

/// See the module's text.
#[derive(Debug)]
pub struct Room<'m> {
    memory: &'m mut [MaybeUninit<u8>],
    written: usize,
}

impl<'m> Room<'m> {
    /// Nothing of it is written.
    pub const fn new(memory: &'m mut [MaybeUninit<u8>]) -> Self {
        Self { memory, written: 0 }
    }

    /// Bytes that are not written yet.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.memory.len() - self.written
    }

    /// Writes as much of `bytes` as there is room for; returns how much that is.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let rest = &mut self.memory[self.written..];
        let count = bytes.len().min(rest.len());
        for (place, byte) in rest.iter_mut().zip(bytes) {
            place.write(*byte);
        }
        self.written += count;
        count
    }

    /// Has up to `most` bytes written by `write`, which returns those that it has written: the first
    /// of the memory that it is given. Returns how many these are.
    ///
    /// # Errors
    /// That of `write`.
    ///
    /// # Panics
    /// When `write` returns other memory than it was given.
    pub fn fill<E>(
        &mut self,
        most: usize,
        write: impl for<'a> FnOnce(&'a mut [MaybeUninit<u8>]) -> Result<&'a mut [u8], E>,
    ) -> Result<usize, E> {
        let rest = &mut self.memory[self.written..];
        let most = most.min(rest.len());
        let begin = rest.as_ptr().cast::<u8>();
        let written = write(&mut rest[..most])?;
        let count = written.len();
        assert!(
            count == 0 || (written.as_ptr() == begin && count <= most),
            "other memory was written"
        );
        self.written += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_follows_what_was_written_and_stops_at_the_end() {
        let mut memory = [MaybeUninit::uninit(); 5];
        let mut room = Room::new(&mut memory);
        assert_eq!(room.put(b"ab"), 2);
        assert_eq!(room.fill(0, |_| Ok::<_, ()>(&mut [])), Ok(0));
        assert_eq!(room.put(b"cdef"), 3);
        assert_eq!((room.left(), room.put(b"g")), (0, 0));
    }

    #[test]
    fn nothing_is_counted_as_written_when_writing_fails() {
        let mut memory = [MaybeUninit::uninit(); 5];
        let mut room = Room::new(&mut memory);
        assert_eq!(room.fill(5, |_| Err("no")), Err("no"));
        assert_eq!(room.left(), 5);
    }

    #[test]
    #[should_panic(expected = "other memory")]
    fn memory_that_was_not_given_is_not_counted() {
        let mut memory = [MaybeUninit::uninit(); 5];
        let _ = Room::new(&mut memory).fill(5, |_| Ok::<_, ()>(Box::leak(Box::new([0; 3]))));
    }
}
