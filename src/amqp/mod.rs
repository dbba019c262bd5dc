//! AMQP 0-9-1 connections: the frames of an RPC server's traffic, heartbeats, TLS, and a client.
//!
//! Owns what leaves and arrives on a connection that py-amqp has opened, its TLS records included,
//! and the connections of RPC clients, which [`client`] opens itself. Knows no interpreter.
//!
//! Rules: AMQP 0-9-1; each file names its sections.

pub mod client;
pub mod frames;
pub mod heartbeat;
pub mod tls;
