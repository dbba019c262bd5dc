//! osloxide: the native core under OpenStack's services.
//!
//! The crate is a set of rooms; docs/architecture.md draws them and the arrows between them. Each
//! room is a cargo feature, so that a room which names what it must not know stops compiling:
//!
//! | room | owns | never |
//! |---|---|---|
//! | [`signals`] | the wakeup pipe and the ranking of pending requests | installs a handler |
//! | [`supervisor`] | the parent's state machine: fork, reap, respawn, drain | starts a thread |
//! | [`scoreboard`] | counters that every process of a launcher shares | takes a lock |
//! | [`worker`] | the watch thread of a worker: parent death and deadlines | runs in the parent |
//! | [`pool`] | leader/follower threads, elastic and gated | knows a socket |
//! | [`handlers`] | C handlers of signals that need no interpreter | takes a lock |
//! | [`threads`] | how native threads start, and which of them live | ends one |
//! | [`locks`] | locks of use to children, and after panics | shares memory between locks |
//! | `files` | reading of files that an operator names | waits for ever for a pipe |
//! | [`wsgi`] | PEP 3333's rules as plain values | knows a socket or the interpreter |
//! | [`server`] | sockets, HTTP/1.1 framing, TLS, drain | knows the interpreter |
//! | [`executor`] | jobs in order of arrival, on the threads of the pool | knows what a job is |
//! | [`amqp`] | frames and heartbeats of AMQP 0-9-1 connections; RPC clients and listeners | knows the interpreter |
//! | `python` | the boundary: the only room that names PyO3 | decides anything |

#[cfg(feature = "amqp")]
pub mod amqp;
#[cfg(feature = "executor")]
pub mod executor;
#[cfg(any(feature = "server", feature = "amqp"))]
mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[cfg(feature = "worker")]
pub mod handlers;
#[cfg(any(feature = "pool", feature = "scoreboard", feature = "wsgi"))]
pub mod locks;
#[cfg(feature = "pool")]
pub mod pool;
#[cfg(feature = "python")]
mod python;
#[cfg(feature = "scoreboard")]
pub mod scoreboard;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "supervisor")]
pub mod signals;
#[cfg(feature = "supervisor")]
pub mod supervisor;
#[cfg(any(feature = "pool", feature = "worker"))]
pub mod threads;
#[cfg(feature = "worker")]
pub mod worker;
#[cfg(feature = "wsgi")]
pub mod wsgi;
