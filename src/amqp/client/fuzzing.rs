//! What holds for all bytes that a broker may send to a client.
//!
//! Owns the properties; a function panics when one does not hold. No part of what is shipped.

use super::assembler::{Assembler, Incoming};
use super::envelope;
use super::methods::Violation;

const FRAME_MAX: usize = 4096;

/// A broker's stream, after a byte that says in what pieces it arrives: cut anywhere, the same
/// methods and contents are found, and the same is refused. No body is longer than what was sent.
pub(crate) fn client(input: &[u8]) {
    let Some((cut, stream)) = input.split_first() else {
        return;
    };
    let whole = read(stream, stream.len().max(1));
    let pieces = read(stream, usize::from(*cut).max(1));
    assert_eq!(whole, pieces, "pieces of {cut}");
    for incoming in &whole.0 {
        if let Incoming::Content(_, method, properties, body) = incoming {
            assert!(method.has_content());
            assert_eq!(properties.length, body.len() as u64);
            assert!(body.len() <= stream.len());
            if let Some(msg_id) = envelope::msg_id(body) {
                assert!(msg_id.len() <= body.len());
            }
            if let Some(message) = envelope::message(body) {
                assert!(message.len() <= body.len());
                let _ = envelope::head(&message);
            }
        }
    }
    let _ = envelope::msg_id(stream);
    if let Ok(message) = str::from_utf8(stream) {
        let _ = envelope::head(message);
    }
}

/// What is whole in *stream*, and what ends it.
fn read(stream: &[u8], size: usize) -> (Vec<Incoming>, Option<Violation>) {
    let mut assembler = Assembler::new(FRAME_MAX);
    let mut found = Vec::new();
    for piece in stream.chunks(size) {
        assembler.feed(piece);
        loop {
            match assembler.next() {
                Ok(Some(incoming)) => found.push(incoming),
                Ok(None) => break,
                Err(violation) => return (found, Some(violation)),
            }
        }
    }
    (found, None)
}
