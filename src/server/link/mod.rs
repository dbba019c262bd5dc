//! A connection's wire: plain or encrypted, bytes or files, with one contract for all of them.
//!
//! Owns the socket, the TLS session on it, what is still to be sent, and what is known about
//! readiness. Never decides what is sent, and never blocks. The contract:
//!
//! - what is put into a link is sent whole and in order, or the link fails; [`Link::flush`] says how
//!   far it is;
//! - no step takes nothing of something: a transport that takes 0 bytes is an error, one that takes
//!   no more for now is [`Flushed::Blocked`];
//! - [`Link::finish`] ends the stream in order, after everything was sent: `close_notify` where
//!   there is TLS, then the end of our half. [`Link::abort`] drops what is left, and the client can
//!   tell, whether [`Link::end_cut`] or the close of the socket follows: TLS ends without `close_notify`
//!   (RFC 9112 section 9.8), and a stream that only its end delimits in a reset, also where the process
//!   is killed.

mod outgoing;
#[cfg(test)]
pub(super) mod tests;

use super::socket::{self, Socket};
use crate::wsgi::{FilePart, Room};
use bytes::Bytes;
use nix::errno::Errno;
use outgoing::{Front, Outgoing};
use rustls::ServerConnection;
use std::fmt::Debug;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;

/// Bytes that one call of [`Link::flush`] sends at most: a client that takes everything at once must
/// not keep the thread from the others.
const TURN_BYTES: usize = 4 << 20;
/// Bytes of a file that are sent with one call, and those that are read where they cannot be.
const FILE_STEP: usize = 1 << 20;
const FILE_READ: usize = 64 << 10;

/// What a link sends through: a socket, or a stand-in for one.
pub(super) trait Transport: Debug {
    /// Receives what has come; 0 is the end of the stream.
    fn receive(&self, buffer: &mut [u8]) -> nix::Result<usize>;
    /// The same, into memory that need not have been written before; what was written.
    fn receive_into<'m>(&self, memory: &'m mut [MaybeUninit<u8>]) -> nix::Result<&'m mut [u8]> {
        let _ = memory;
        Err(Errno::EOPNOTSUPP)
    }
    /// Bytes that are known to have come and were not received. [`Transport::receive_into`] is for
    /// transports that know.
    fn waiting(&self) -> u64 {
        0
    }
    /// Sends from several buffers; how much was taken.
    fn send(&self, pieces: &[IoSlice<'_>]) -> nix::Result<usize>;
    /// Sends from a file; `None` when it has no byte there, or none that can be read.
    fn send_file(&self, file: &File, offset: u64, most: usize) -> nix::Result<Option<usize>>;
    /// Tells the client that nothing more will be sent.
    fn end_sending(&self);
    /// Makes the coming close a reset, or no reset after all.
    fn reset_on_close(&self, resets: bool);
}

impl Transport for Socket {
    fn receive(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        socket::receive(self, buffer)
    }

    fn receive_into<'m>(&self, memory: &'m mut [MaybeUninit<u8>]) -> nix::Result<&'m mut [u8]> {
        socket::receive_into(self, memory)
    }

    fn waiting(&self) -> u64 {
        socket::waiting(self)
    }

    fn send(&self, pieces: &[IoSlice<'_>]) -> nix::Result<usize> {
        match pieces {
            [one] => socket::send_one(self, one),
            many => socket::send_many(self, many),
        }
    }

    fn send_file(&self, file: &File, offset: u64, most: usize) -> nix::Result<Option<usize>> {
        socket::send_file(self, file, offset, most)
    }

    fn end_sending(&self) {
        socket::end_sending(self);
    }

    fn reset_on_close(&self, resets: bool) {
        socket::reset_on_close(self, resets);
    }
}

/// How far a link has sent what was put into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushed {
    /// All of it is with the kernel.
    Done,
    /// The kernel takes no more for now.
    Blocked,
    /// There is more, and the kernel would take it; others should have their turn first.
    Turn,
}

/// How the stream that we send ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Open,
    /// In order, once everything was sent.
    Wanted,
    /// `close_notify` is on its way.
    Notified,
    Ended,
    Aborted,
}

/// See the module's text.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not a state machine"
)]
pub(super) struct Link<T: Transport = Socket> {
    pub(super) transport: T,
    /// The kernel had nothing more to read; a new readiness event clears it.
    pub(super) read_blocked: bool,
    /// The kernel took no more; a new readiness event clears it.
    pub(super) write_blocked: bool,
    /// The client has ended its half: a short read no longer means that the rest is yet to come.
    pub(super) is_half_closed: bool,
    /// The end of the stream was read, or reading failed.
    pub(super) at_end: bool,
    ending: Ending,
    /// Only the end of the stream says that it is whole.
    is_delimited_by_end: bool,
    tls: Option<Box<ServerConnection>>,
    /// Why the TLS session has failed. It has said so; nothing may follow its alert (RFC 8446 6.2).
    failure: Option<Box<rustls::Error>>,
    outgoing: Outgoing,
    /// Bytes that the transport, or TLS in front of it, has taken.
    taken: u64,
    has_short_file: bool,
}

impl<T: Transport> Link<T> {
    pub(super) fn new(transport: T, tls: Option<Box<ServerConnection>>) -> Self {
        Self {
            transport,
            read_blocked: false,
            write_blocked: false,
            is_half_closed: false,
            at_end: false,
            ending: Ending::Open,
            is_delimited_by_end: false,
            tls,
            failure: None,
            outgoing: Outgoing::default(),
            taken: 0,
            has_short_file: false,
        }
    }

    /// True until both sides have agreed on keys.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// True where the client of an encrypted connection has begun the handshake, or ended it.
    pub(super) fn has_greeted(&self) -> bool {
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.protocol_version().is_some())
    }

    /// Why the connection could not be encrypted, or did not stay so; `None` where nothing is wrong.
    pub(super) fn failure(&self) -> Option<String> {
        match &self.failure {
            Some(error) => Some(error.to_string()),
            None if !self.is_handshaking() => None,
            None if self.at_end => Some("the client has left before the handshake was over".into()),
            None => Some("the connection ends before the handshake is over".into()),
        }
    }

    /// Bytes that were put into the link and that nothing below it has taken yet.
    pub(super) fn unsent(&self) -> u64 {
        self.outgoing.len()
    }

    /// Those of them that are held in memory.
    pub(super) fn memory(&self) -> u64 {
        self.outgoing.memory()
    }

    /// Bytes that were taken so far.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// True when everything that was put into the link is with the kernel.
    pub(super) fn is_flushed(&self) -> bool {
        self.outgoing.is_empty() && !self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// True once a file was found to be shorter than what was to be sent of it.
    pub(super) fn has_short_file(&self) -> bool {
        self.has_short_file
    }

    /// Puts bytes behind those that are to be sent already.
    pub(super) fn put(&mut self, bytes: Bytes) {
        self.outgoing.push(bytes);
    }

    /// Puts a stretch of a file behind what is to be sent already.
    pub(super) fn put_file(&mut self, part: FilePart) {
        self.outgoing.push_file(part);
    }

    /// Puts a head and its body, and sends what the transport takes at once. The same as putting and
    /// flushing, without the queue where it is not needed.
    pub(super) fn send(&mut self, head: Vec<u8>, body: Bytes) -> io::Result<Flushed> {
        if self.outgoing.is_empty() && self.tls.is_none() {
            let pieces = [IoSlice::new(&head), IoSlice::new(&body)];
            let pieces = if body.is_empty() {
                &pieces[..1]
            } else {
                &pieces
            };
            match self.transport.send(pieces) {
                Ok(count) if count == head.len() + body.len() => {
                    self.taken += count as u64;
                    return Ok(Flushed::Done);
                }
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.put(head.into());
                    self.put(body);
                    self.outgoing.advance(count);
                    self.taken += count as u64;
                    self.write_blocked = true;
                    return Ok(Flushed::Blocked);
                }
                Err(Errno::EAGAIN) => self.write_blocked = true,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.put(head.into());
        self.put(body);
        self.flush()
    }

    /// Sends as much as the transport takes, and the end of the stream where that is wanted.
    pub(super) fn flush(&mut self) -> io::Result<Flushed> {
        let mut left = TURN_BYTES;
        loop {
            if !self.send_records()? {
                return Ok(Flushed::Blocked);
            }
            let sent = match self.outgoing.front() {
                Front::Nothing => {
                    if self.end_stream() {
                        continue;
                    }
                    return Ok(Flushed::Done);
                }
                Front::Slices(slices, count) => {
                    write(&self.transport, self.tls.as_deref_mut(), &slices[..count])
                }
                Front::File(part) if self.tls.is_none() => {
                    let most = usize::try_from(part.length).map_or(FILE_STEP, |n| n.min(FILE_STEP));
                    match self.transport.send_file(&part.file, part.offset, most) {
                        Ok(Some(count)) => Ok(count),
                        Ok(None) => {
                            self.has_short_file = true;
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        Err(errno) => Err(errno.into()),
                    }
                }
                Front::File(part) => {
                    let Some(bytes) = read_file(part) else {
                        self.has_short_file = true;
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    };
                    self.outgoing.read_from_file(bytes);
                    continue;
                }
            };
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.outgoing.advance(count);
                    self.taken += count as u64;
                    if count >= left && !self.outgoing.is_empty() {
                        return Ok(Flushed::Turn);
                    }
                    left = left.saturating_sub(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.write_blocked = true;
                    return Ok(Flushed::Blocked);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends our half of the stream in order, once everything was sent.
    pub(super) fn finish(&mut self) {
        if self.ending == Ending::Open {
            self.ending = Ending::Wanted;
        }
        // A client that is gone needs no end; who waits for the rest flushes again.
        drop(self.flush());
    }

    /// Nothing but the end of the stream will tell the client that it is whole: until
    /// [`Link::finish`] has sent everything, the end of the socket is a reset.
    pub(super) fn delimit_by_end(&mut self) {
        self.is_delimited_by_end = true;
        self.transport.reset_on_close(true);
    }

    /// True once only the end of the stream says that it is whole.
    pub(super) fn is_delimited_by_end(&self) -> bool {
        self.is_delimited_by_end
    }

    /// Gives up what was not sent. The close that follows cannot be taken for an end in order.
    pub(super) fn abort(&mut self) {
        self.ending = Ending::Aborted;
        self.outgoing.clear();
    }

    /// Ends our half of a stream that was given up, behind what was sent of it; false where only the
    /// reset of the close that follows tells the client that something is missing.
    pub(super) fn end_cut(&mut self) -> bool {
        if self.is_delimited_by_end {
            return false;
        }
        drop(self.send_records());
        self.transport.end_sending();
        true
    }

    /// One step towards the end of the stream, all else having been sent; true when TLS has records
    /// to send for it.
    fn end_stream(&mut self) -> bool {
        if self.ending == Ending::Wanted && self.is_delimited_by_end {
            self.transport.reset_on_close(false);
        }
        match (self.ending, &mut self.tls) {
            (Ending::Wanted, Some(tls)) if self.failure.is_none() => {
                tls.send_close_notify();
                self.ending = Ending::Notified;
                true
            }
            (Ending::Wanted | Ending::Notified, _) => {
                self.transport.end_sending();
                self.ending = Ending::Ended;
                false
            }
            (Ending::Open | Ending::Ended | Ending::Aborted, _) => false,
        }
    }

    /// Sends the records that TLS has ready; false when the transport takes no more for now.
    fn send_records(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else {
            return Ok(true);
        };
        while tls.wants_write() {
            match tls.write_tls(&mut Sender(&self.transport)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.write_blocked = true;
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Receives what the client sent, decrypted; 0 is the end of the stream. `WouldBlock` when
    /// nothing is there.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.receive_once(buffer);
        self.note_end(result)
    }

    /// Takes note of the end of the stream.
    fn note_end(&mut self, result: io::Result<usize>) -> io::Result<usize> {
        match &result {
            Ok(0) => self.at_end = true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.at_end = true,
        }
        result
    }

    fn receive_once(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.tls.is_none() {
            return self.wire().receive(buffer);
        }
        loop {
            let Some(tls) = &mut self.tls else {
                return Ok(0);
            };
            match io::Read::read(&mut tls.reader(), buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // An error: the stream ended without the notice that TLS wants, it may have been
                // cut.
                result => return result,
            }
            let mut wire = Wire {
                transport: &self.transport,
                blocked: &mut self.read_blocked,
                is_half_closed: self.is_half_closed,
            };
            let received = tls.read_tls(&mut wire);
            let processed = tls.process_new_packets();
            if let Err(error) = &processed {
                self.failure.get_or_insert_with(|| Box::new(error.clone()));
            }
            // Answers of the handshake, or the alert that says what was wrong.
            self.send_records()?;
            received?;
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    /// Receives what the client sent as it came, to be thrown away.
    pub(super) fn receive_raw(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wire().receive(buffer)
    }

    /// Receives up to `most` bytes straight to their place; 0 is the end of the stream. `WouldBlock`
    /// when nothing is there. Only for a stream that is not encrypted.
    pub(super) fn receive_into(&mut self, room: &mut Room<'_>, most: usize) -> io::Result<usize> {
        debug_assert!(!self.is_encrypted(), "the bytes have to be decrypted");
        let most = most.min(room.left());
        let received = self.wire().take(most, |transport| {
            room.fill(most, |memory| transport.receive_into(memory))
        });
        self.note_end(received)
    }

    /// True where what comes has to be decrypted.
    pub(super) fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Bytes of a stream that is not encrypted which have come and were not received.
    pub(super) fn waiting(&self) -> u64 {
        if self.read_blocked || self.is_encrypted() {
            return 0;
        }
        self.transport.waiting()
    }

    fn wire(&mut self) -> Wire<'_, T> {
        Wire {
            transport: &self.transport,
            blocked: &mut self.read_blocked,
            is_half_closed: self.is_half_closed,
        }
    }
}

/// Sends from several buffers, encrypted where there is TLS; how much was taken, never 0. TLS must
/// have no records left to send.
fn write<T: Transport>(
    transport: &T,
    tls: Option<&mut ServerConnection>,
    pieces: &[IoSlice<'_>],
) -> io::Result<usize> {
    match tls {
        None => Ok(transport.send(pieces)?),
        Some(tls) => io::Write::write_vectored(&mut tls.writer(), pieces),
    }
}

/// The next bytes of a stretch of a file; `None` when there are none, or none that can be read.
fn read_file(part: &FilePart) -> Option<Bytes> {
    let most = usize::try_from(part.length).map_or(FILE_READ, |n| n.min(FILE_READ));
    let mut bytes = vec![0; most];
    loop {
        match part.file.read_at(&mut bytes, part.offset) {
            Ok(0) => return None,
            Ok(count) => {
                bytes.truncate(count);
                return Some(bytes.into());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// The transport as the source of bytes; remembers when it has no more.
struct Wire<'l, T> {
    transport: &'l T,
    blocked: &'l mut bool,
    is_half_closed: bool,
}

impl<T: Transport> Wire<'_, T> {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.take(buffer.len(), |transport| transport.receive(buffer))
    }

    /// Receives up to `most` bytes by `receive`, unless it is known that none are there.
    fn take(
        &mut self,
        most: usize,
        mut receive: impl FnMut(&T) -> nix::Result<usize>,
    ) -> io::Result<usize> {
        if *self.blocked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        loop {
            let result = receive(self.transport);
            *self.blocked = match result {
                // Less than asked for: the kernel has no more, the next read would only say so
                // (epoll(7)); unless the end of the stream is there, which causes no event of its
                // own once it was seen.
                Ok(count) => count < most && count > 0 && !self.is_half_closed,
                Err(Errno::EINTR) => continue,
                Err(errno) => errno == Errno::EAGAIN,
            };
            return Ok(result?);
        }
    }
}

impl<T: Transport> io::Read for Wire<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive(buffer)
    }
}

/// The transport as the destination of records.
struct Sender<'l, T>(&'l T);

impl<T: Transport> io::Write for Sender<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(self.0.send(pieces)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
