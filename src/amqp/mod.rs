//! AMQP 0-9-1 connections: the frames of an RPC server's traffic, and heartbeats.
//!
//! Owns what leaves and arrives on a connection that py-amqp has opened. Never opens one, and knows
//! no interpreter and no message beyond its frames.
//!
//! Rules: AMQP 0-9-1; each file names its sections.

pub mod frames;
pub mod heartbeat;
