//! Which requests get a thread before their body has come, and where the others wait.
//!
//! Owns the way from the beginning of a body to a permit of [`crate::server::uploads`]: requests
//! beyond the clients' share stay with the reactor, which collects their bodies without a thread,
//! and leave it in order of arrival, those first whose clients have shown that they send. Never
//! reads a body that an application reads. The rules are in docs/server.md, "Uploads".

use super::{Again, Job, Reactor};
use crate::server::connection::{Collected, Connection, Phase, Token};
use crate::server::encoding::CONTINUE;
use crate::server::received_request::ReceivedRequest;
use crate::server::uploads::{COLLECT_BYTES, HELD_BYTES, LOOK_AGAIN, Permit};
use crate::wsgi::BodyError;
use bytes::Bytes;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A request that waits for a permit. The first to get one is the first in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    /// Its client still has to show that it sends. Behind the others: it may have stalled.
    is_unproven: bool,
    since: Instant,
    token: Token,
}

impl Reactor {
    /// A request whose client waits to be asked for the body: the application asks, or the server
    /// itself where no thread is to wait for it.
    pub(super) fn begin_expecting(
        &self,
        mut connection: Box<Connection>,
        mut received: Box<ReceivedRequest>,
        jobs: &mut Vec<Job>,
    ) -> Again {
        if let Some(permit) = self.permit() {
            received.permit = Some(permit);
            return self.admit(connection, received, jobs);
        }
        received.is_expecting = false;
        received.waiting = Some(self.uploads.wait());
        if !connection.decoder.is_body_read() {
            // Sent while the body is awaited.
            connection.link.put(Bytes::from_static(CONTINUE));
        }
        self.collect(connection, received, jobs)
    }

    /// Collects what comes of a body, until a thread is to be spent on the request.
    pub(super) fn collect(
        &self,
        mut connection: Box<Connection>,
        mut received: Box<ReceivedRequest>,
        jobs: &mut Vec<Job>,
    ) -> Again {
        loop {
            let before = received.collected;
            let collected = connection.collect(&mut received);
            if received.collected > before {
                connection.active = Instant::now();
            }
            match collected {
                Ok(Collected::Whole) => {
                    received.waiting = None;
                    return self.admit(connection, received, jobs);
                }
                Ok(Collected::Missing) => return self.await_body(connection, received, false),
                Ok(Collected::Beginning) if received.waiting.is_none() => {
                    if let Some(permit) = self.permit() {
                        received.permit = Some(permit);
                        return self.admit(connection, received, jobs);
                    }
                }
                Ok(Collected::Beginning) => {}
                Err(error) => return self.give_up(connection, &received, error.status(), jobs),
            }
            let has_room = received.bound < HELD_BYTES
                && self.uploads.reserve(&mut received.memory, COLLECT_BYTES);
            let waiting = received.waiting.get_or_insert_with(|| self.uploads.wait());
            let was_full = waiting.is_full();
            let has_become_full = waiting.set_full(!has_room);
            if has_room {
                received.bound += COLLECT_BYTES;
                if was_full {
                    // It has waited for the server: its client's time begins now.
                    connection.active = Instant::now();
                    received.since = connection.active;
                }
            } else if connection.has_left() {
                // Nothing is received any more, so that is not found out otherwise.
                let status = BodyError::Disconnected.status();
                return self.give_up(connection, &received, status, jobs);
            } else {
                return self.await_body(connection, received, has_become_full);
            }
        }
    }

    /// A permit for a request that has just come, unless others wait for one.
    fn permit(&self) -> Option<Permit> {
        if self.uploads.has_held() {
            return None;
        }
        self.uploads.permit()
    }

    /// Nothing can be done before more of a body has come, or before there is a permit.
    /// `has_become_full`: as much was collected as may be, which the leader does not know yet.
    fn await_body(
        &self,
        mut connection: Box<Connection>,
        received: Box<ReceivedRequest>,
        has_become_full: bool,
    ) -> Again {
        let is_held = received.waiting.is_some();
        connection.phase = Phase::Collecting(received);
        // `100 Continue` that the client has not taken yet. A failure is met when it is received
        // from.
        drop(connection.flush());
        let again = self.park(connection);
        // After it was parked: the leader finds it from then on, whatever it has missed before. One
        // that has become full is told of also where this thread goes on with it: it is told of
        // once.
        if is_held && (has_become_full || (again.is_none() && self.uploads.has_permit())) {
            self.wake_leader();
        }
        again
    }

    /// Hands requests that wait for permits to threads. `free` threads are idle, and no more than
    /// `peak` other requests have needed one at once lately. Returns when to look again, if that
    /// may help.
    pub(super) fn hand_over_uploads(
        &self,
        free: usize,
        peak: usize,
        jobs: &mut Vec<Job>,
    ) -> Option<Instant> {
        self.give_permits(free, peak, jobs);
        if self.uploads.has_memory_again() {
            // Their sockets may be full: nothing else happens to them.
            for held in self.held_uploads() {
                let is_full = !held.is_unproven;
                if is_full && let Some((connection, received)) = self.take_held(held.token) {
                    let again = self.collect(connection, received, jobs);
                    self.drive(again, jobs);
                }
            }
        }
        // The peak of the others falls with time, and memory is given back without a word.
        self.uploads.has_full().then(|| Instant::now() + LOOK_AGAIN)
    }

    /// Gives out the permits that are left: those of the clients' share, and for requests whose
    /// clients have shown that they send those beyond it.
    fn give_permits(&self, mut free: usize, peak: usize, jobs: &mut Vec<Job>) {
        let pool_size = self.pool_size.load(Ordering::Relaxed);
        let is_any_left = self.uploads.has_permit()
            || (self.uploads.has_full() && self.uploads.has_permit_beyond(free, pool_size, peak));
        if !is_any_left || self.overload.is_full() {
            return;
        }
        for held in self.held_uploads() {
            let permit = match self.uploads.permit() {
                None if !held.is_unproven => self.uploads.permit_beyond(free, pool_size, peak),
                permit => permit,
            };
            // One that is one too many would be refused now. It has waited so far: let it wait on.
            let (Some(permit), false) = (permit, self.overload.is_full()) else {
                return;
            };
            if let Some((connection, mut received)) = self.take_held(held.token) {
                received.permit = Some(permit);
                received.waiting = None;
                free = free.saturating_sub(1);
                let again = self.admit(connection, received, jobs);
                self.drive(again, jobs);
            }
        }
    }

    /// Requests that wait for permits, in the order in which they get them.
    fn held_uploads(&self) -> Vec<Held> {
        let mut slots = self.slots.lock();
        let held = slots.parked().filter_map(|connection| {
            let Phase::Collecting(received) = &connection.phase else {
                return None;
            };
            Some(Held {
                is_unproven: !received.waiting.as_ref()?.is_full(),
                since: received.since,
                token: connection.token,
            })
        });
        let mut held: Vec<_> = held.collect();
        drop(slots);
        held.sort_unstable();
        held
    }

    /// Takes a request that waits for a permit out of its slot, unless a thread has it.
    fn take_held(&self, token: Token) -> Option<(Box<Connection>, Box<ReceivedRequest>)> {
        let mut slots = self.slots.lock();
        let slot = slots.find(token)?;
        let mut connection = slot
            .connection
            .take_if(|connection| is_held(&connection.phase))?;
        drop(slots);
        let phase = std::mem::replace(&mut connection.phase, Phase::Head { since: None });
        let Phase::Collecting(received) = phase else {
            return None;
        };
        Some((connection, received))
    }

    /// A request has ended, or its body: it may have had a permit.
    pub(super) fn note_upload_ended(&self) {
        if self.uploads.has_held() && self.uploads.has_permit() {
            self.wake_leader();
        }
    }
}

/// True of a request that waits for a permit.
fn is_held(phase: &Phase) -> bool {
    matches!(phase, Phase::Collecting(received) if received.waiting.is_some())
}
