//! AMQP 0-9-1 connections: the frames of an RPC server's traffic, heartbeats, and TLS.
//!
//! Owns what leaves and arrives on a connection that py-amqp has opened, its TLS records included.
//! Never opens one, and knows no interpreter and no message beyond its frames.
//!
//! Rules: AMQP 0-9-1; each file names its sections.

pub mod frames;
pub mod heartbeat;
pub mod tls;
