//! Which requests get a thread before their body has come, and where the others wait.
//!
//! Owns the way from the beginning of a body to a permit of [`crate::server::uploads`]: requests
//! beyond the clients' share stay with the reactor, which collects their bodies without a thread,
//! and leave it in order of arrival. Never reads a body that an application reads. The rules are in
//! docs/server.md, "Uploads".

use super::{Again, Job, Reactor};
use crate::server::connection::{Collected, Connection, Phase, Token};
use crate::server::encoding::CONTINUE;
use crate::server::received_request::{ReceivedRequest, Upload};
use crate::server::uploads::{COLLECT_BYTES, HELD_BYTES, LOOK_AGAIN, Permit};
use bytes::Bytes;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A request that waits for a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    since: Instant,
    token: Token,
    is_sending: bool,
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
        received.upload = Upload::Held;
        if !connection.decoder.is_body_read() {
            connection.link.put(Bytes::from_static(CONTINUE));
            // What the client does not take is sent before the answer. A failure is met there too.
            drop(connection.flush());
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
                Ok(Collected::Whole) => return self.admit(connection, received, jobs),
                Ok(Collected::Missing) => return self.await_body(connection, received),
                Ok(Collected::Beginning) if received.upload == Upload::Beginning => {
                    if let Some(permit) = self.permit() {
                        received.permit = Some(permit);
                        return self.admit(connection, received, jobs);
                    }
                    received.upload = Upload::Held;
                }
                Ok(Collected::Beginning) => {}
                Err(error) => return self.give_up(connection, &received, error.status(), jobs),
            }
            let has_room = received.bound < HELD_BYTES
                && self.uploads.reserve(&mut received.memory, COLLECT_BYTES);
            if has_room {
                received.bound += COLLECT_BYTES;
            } else {
                received.upload = Upload::Sending;
                return self.await_body(connection, received);
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
    fn await_body(&self, mut connection: Box<Connection>, received: Box<ReceivedRequest>) -> Again {
        let upload = received.upload;
        connection.phase = Phase::Collecting(received);
        let again = self.park(connection);
        if again.is_none() && upload != Upload::Beginning {
            // After it was parked: the leader finds it from then on, whatever it has missed before.
            let is_news = self.uploads.note_held(upload == Upload::Sending);
            if is_news || self.uploads.has_permit() {
                self.wake_leader();
            }
        }
        again
    }

    /// Hands requests that wait for permits to threads, the oldest first: as many as the clients'
    /// share has room for, and those whose clients send to threads that others have not needed
    /// lately, of which `free` are idle. Returns when to look again, if that may help.
    pub(super) fn hand_over_uploads(
        &self,
        free: usize,
        peak: usize,
        jobs: &mut Vec<Job>,
    ) -> Option<Instant> {
        let pool_size = self.pool_size.load(Ordering::Relaxed);
        let mut free = free;
        let has_free = |free| free > 0 && self.uploads.taken() < pool_size.saturating_sub(peak);
        let is_sending = self.uploads.has_sending();
        if self.uploads.has_permit() || (is_sending && has_free(free)) {
            self.uploads.forget_held();
            for held in self.held_uploads() {
                let permit = self.uploads.permit().or_else(|| {
                    let is_free = held.is_sending && free > 0;
                    is_free
                        .then(|| self.uploads.permit_beyond(free, pool_size, peak))
                        .flatten()
                });
                let handed = permit.and_then(|permit| self.take_held(held.token, permit));
                if let Some((connection, received)) = handed {
                    free = free.saturating_sub(1);
                    let again = self.admit(connection, received, jobs);
                    self.drive(again, jobs);
                } else {
                    self.uploads.note_held(held.is_sending);
                }
            }
        }
        // The peak of the others falls with time.
        (is_sending && self.uploads.has_sending()).then(|| Instant::now() + LOOK_AGAIN)
    }

    /// Requests that wait for permits, in order of arrival.
    fn held_uploads(&self) -> Vec<Held> {
        let mut slots = self.slots.lock();
        let held = slots.parked().filter_map(|connection| {
            let Phase::Collecting(received) = &connection.phase else {
                return None;
            };
            is_held(&connection.phase).then_some(Held {
                since: received.since,
                token: connection.token,
                is_sending: received.upload == Upload::Sending,
            })
        });
        let mut held: Vec<_> = held.collect();
        drop(slots);
        held.sort_unstable();
        held
    }

    /// Takes a request that waits for a permit out of its slot, unless a thread has it.
    fn take_held(
        &self,
        token: Token,
        permit: Permit,
    ) -> Option<(Box<Connection>, Box<ReceivedRequest>)> {
        let mut slots = self.slots.lock();
        let slot = slots.find(token)?;
        let mut connection = slot
            .connection
            .take_if(|connection| is_held(&connection.phase))?;
        drop(slots);
        let phase = std::mem::replace(&mut connection.phase, Phase::Head { since: None });
        let Phase::Collecting(mut received) = phase else {
            return None;
        };
        received.permit = Some(permit);
        received.upload = Upload::Beginning;
        Some((connection, received))
    }

    /// A request has ended that may have had a permit.
    pub(super) fn note_upload_ended(&self) {
        if self.uploads.has_held() && self.uploads.has_permit() {
            self.wake_leader();
        }
    }
}

/// True of a request that waits for a permit.
fn is_held(phase: &Phase) -> bool {
    matches!(phase, Phase::Collecting(received) if received.upload != Upload::Beginning)
}
