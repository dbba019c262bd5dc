//! Where connections are kept while no thread has them, and how they are named.
//!
//! Owns the slab and its generations, so that a token is never mistaken for one of an earlier
//! connection. Never touches a socket.

use crate::server::connection::{Connection, Phase, Token};
use nix::sys::epoll::EpollFlags;
use slab::Slab;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slab: Slab<Slot>,
    generation: u32,
    /// Most connections at once since most of them have left.
    peak: usize,
}

/// Fewer connections than these leave nothing behind that is worth a look.
const MANY: usize = 256;

#[derive(Debug)]
pub(super) struct Slot {
    generation: u32,
    /// Events that came while a thread had the connection.
    pub(super) missed: EpollFlags,
    /// The handler was told of the request that was refused.
    pub(super) is_reported: bool,
    /// The connection, unless a thread has it.
    pub(super) connection: Option<Box<Connection>>,
}

impl Slot {
    /// The connection of a request that was refused, unless a thread has it.
    pub(super) fn take_refused(&mut self) -> Option<Box<Connection>> {
        self.connection
            .take_if(|connection| matches!(connection.phase, Phase::Refused { .. }))
    }
}

impl Slots {
    /// Makes room for a new connection.
    pub(super) fn add(&mut self) -> Token {
        // The highest generation is left out: it would collide with the reactor's fixed tokens.
        self.generation = (self.generation + 1) % u32::MAX;
        let index = self.slab.insert(Slot {
            generation: self.generation,
            missed: EpollFlags::empty(),
            is_reported: false,
            connection: None,
        });
        self.peak = self.peak.max(self.slab.len());
        Token((u64::from(self.generation) << 32) | index as u64)
    }

    /// True once after all but an eighth of many connections have left.
    pub(super) fn has_emptied(&mut self) -> bool {
        let has_emptied = self.peak >= MANY && self.slab.len() <= self.peak / 8;
        if has_emptied {
            self.peak = self.slab.len();
        }
        has_emptied
    }

    /// The slot of a connection that is still open.
    pub(super) fn find(&mut self, token: Token) -> Option<&mut Slot> {
        let (index, generation) = split(token);
        self.slab
            .get_mut(index)
            .filter(|slot| slot.generation == generation)
    }

    /// Takes a connection out, for the thread that will own it; notes the events otherwise.
    pub(super) fn take(&mut self, token: Token, events: EpollFlags) -> Option<Box<Connection>> {
        let slot = self.find(token)?;
        let connection = slot.connection.take();
        if connection.is_none() {
            slot.missed |= events;
        }
        connection
    }

    /// Forgets a connection; false when it was forgotten before.
    pub(super) fn remove(&mut self, token: Token) -> bool {
        let is_there = self.find(token).is_some();
        if is_there {
            self.slab.remove(split(token).0);
        }
        is_there
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    /// The connections that no thread has.
    pub(super) fn parked(&mut self) -> impl Iterator<Item = &mut Connection> {
        self.slab
            .iter_mut()
            .filter_map(|(_, slot)| slot.connection.as_deref_mut())
    }
}

/// Index and generation.
fn split(token: Token) -> (usize, u32) {
    let [high, low] = [token.0 >> 32, token.0 & 0xffff_ffff];
    (
        usize::try_from(low).unwrap_or(usize::MAX),
        u32::try_from(high).unwrap_or(u32::MAX),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_valid_for_the_next_connection_in_its_slot() {
        let mut slots = Slots::default();
        let first = slots.add();
        slots.remove(first);

        let second = slots.add();

        assert_eq!(split(first).0, split(second).0);
        assert!(slots.find(first).is_none());
        assert!(slots.find(second).is_some());
        slots.remove(first);
        assert_eq!(slots.len(), 1);
    }

    #[test]
    fn slots_have_emptied_once_after_many_have_left() {
        let mut slots = Slots::default();
        let few: Vec<_> = (0..MANY - 1).map(|_| slots.add()).collect();
        for token in few {
            slots.remove(token);
            assert!(!slots.has_emptied());
        }

        for _ in 0..2 {
            let many: Vec<_> = (0..MANY).map(|_| slots.add()).collect();
            let emptied = many.into_iter().filter(|token| {
                slots.remove(*token);
                slots.has_emptied()
            });
            assert_eq!(emptied.count(), 1);
            assert_eq!(slots.len(), 0);
        }
    }

    #[test]
    fn events_for_a_connection_that_a_thread_has_are_noted() {
        let mut slots = Slots::default();
        let token = slots.add();

        assert!(slots.take(token, EpollFlags::EPOLLIN).is_none());

        assert_eq!(slots.find(token).unwrap().missed, EpollFlags::EPOLLIN);
    }
}
