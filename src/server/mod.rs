//! The WSGI server's engine: one listening socket, HTTP/1.1 on it, answers from a [`Handler`].
//!
//! Owns sockets, framing, timeouts, TLS and the drain. Never knows Python: requests go to a
//! [`Handler`] on the threads of a pool. docs/server.md draws the life of a connection.

mod client_wait;
mod connection;
mod deadlines;
mod encoding;
mod exchange;
mod framing;
mod free_memory;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod link;
mod overdue;
mod proxy_header;
mod reactor;
mod received_request;
mod sending;
mod slow_clients;
mod socket;
pub mod tls;
mod uploads;

use crate::locks::{Copied, Mutex, PerProcess, keep_copies_free};
use crate::pool::Pool;
use crate::wsgi::Handler;
use nix::sys::eventfd::EventFd;
use reactor::Reactor;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// What an operator may choose. One value serves one [`Server`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// Names the server in logs.
    pub name: String,
    /// Most requests in flight at once, at least 1; the rest wait unread.
    pub pool_size: usize,
    /// Whether a connection may carry more than one request.
    pub keep_alive: bool,
    /// How long the server waits for a client that neither sends nor takes anything; `None` waits
    /// for ever.
    pub client_socket_timeout: Option<Duration>,
    /// Longest header line in bytes; a longer one is answered with 431.
    pub max_header_line: usize,
    /// Longest request line in bytes; a longer one is answered with 414.
    pub max_url_len: usize,
    /// Most header lines in a request; more are answered with 431.
    pub max_headers: usize,
    /// How long a connection may be idle between two requests; `None` for `client_socket_timeout`.
    pub keep_alive_timeout: Option<Duration>,
    /// Most connections of all servers of the process, at least 1. At the bound the one that has
    /// been idle for longest is closed for each new one.
    /// `None` is the limit of open files (`RLIMIT_NOFILE`) at the start, less what is open already and
    /// a reserve for the application.
    pub max_connections: Option<usize>,
    /// Most bytes of memory that complete answers hold together while their clients are slow to take
    /// them. Beyond it, the threads that made them wait for the clients.
    pub max_unsent: u64,
    /// Percent of `pool_size` that clients which take or send slowly may hold while requests wait for
    /// a thread, from 1 to 100. Requests whose bodies have not come wait beyond it without a
    /// thread. At 100 no such client is cut off for others.
    pub slow_client_share: usize,
    /// How long after [`Server::stop`] the listening socket is looked at for the last time and
    /// closed. Closing the last copy of it resets what the kernel has queued, so a process whose
    /// relatives hold copies waits until theirs are closed: they may be told to stop as well. Zero:
    /// no other process has one.
    pub last_look: Duration,
    /// Connections begin with a header of the PROXY protocol, and come from one of these ranges of
    /// addresses (first and last) or through a unix socket; others are closed. `None`: no header.
    pub proxies: Option<Vec<(IpAddr, IpAddr)>>,
    /// Longest body of a request, in bytes; longer ones are refused with 413. `None`: no limit.
    pub max_body: Option<u64>,
    /// How long an application may be busy with one request, waits for its client left out; then the
    /// client is answered 504, or cut off. `None` is for ever.
    pub request_timeout: Option<Duration>,
    /// Most requests that wait while `pool_size` are answered; more are answered with 503. 0: none
    /// waits. `None`: any number.
    pub max_waiting: Option<usize>,
    /// Accepts HTTP/1.1 requests without a Host header. Only for oslo.service's own tests.
    pub lenient: bool,
    /// Clients are proxies that speak the uwsgi protocol instead of HTTP.
    pub uwsgi: bool,
    /// Encrypts every connection when present.
    pub tls: Option<Arc<tls::Config>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "server".into(),
            pool_size: 100,
            keep_alive: true,
            client_socket_timeout: Some(Duration::from_secs(900)),
            max_header_line: 16_384,
            max_url_len: 8_192,
            max_headers: 100,
            keep_alive_timeout: None,
            max_connections: None,
            max_unsent: 128 << 20,
            slow_client_share: 50,
            last_look: Duration::ZERO,
            proxies: None,
            max_body: None,
            request_timeout: None,
            max_waiting: None,
            lenient: false,
            uwsgi: false,
            tls: None,
        }
    }
}

/// Why a server could not be made or started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The listening socket cannot be used.
    #[error("cannot use file descriptor {fd} as a listening socket: {source}")]
    Listener {
        /// Number of the descriptor.
        fd: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused a resource that every server needs.
    #[error("cannot {what}: {source}")]
    Resource {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// [`Server::start`] was called after [`Server::stop`] had closed the listening socket.
    #[error("server {name} has closed its listening socket; make a new server instead")]
    ListenerClosed {
        /// Name of the server.
        name: String,
    },
}

/// One consistent view of a server's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Pool threads alive.
    pub threads: usize,
    /// Pool threads inside the handler.
    pub busy: usize,
    /// Requests that are parsed and wait for a thread.
    pub queued: usize,
    /// Open connections.
    pub connections: usize,
    /// Open connections without a request.
    pub idle: usize,
    /// Requests being answered.
    pub in_flight: usize,
    /// Bytes of memory of complete answers that clients have not taken yet.
    pub unsent: u64,
    /// Requests answered since the server was made.
    pub served: u64,
    /// Requests that may be in the handler at once at this moment: what the gate allows, at most
    /// `pool_size`.
    pub limit: usize,
    /// How often waiting for sockets was taken over from a thread inside the handler.
    pub takeovers: u64,
}

/// Accepts connections on one listening socket and answers their requests through a [`Handler`].
///
/// Every method may be called from any thread. A server may be made before a fork and started in
/// the child: nothing but the listening socket exists before [`Server::start`]. One that was started
/// before the fork is not running in the child, and can be started there.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    handler: Arc<dyn Handler>,
    listener: Copied<Option<Arc<OwnedFd>>>,
    /// A child makes its own: the threads of its parent's are there.
    engine: PerProcess<Mutex<Option<Engine>>>,
}

#[derive(Debug)]
struct Engine {
    reactor: Arc<Reactor>,
    pool: Pool<Reactor>,
}

impl Server {
    /// Makes a server that does not accept yet. The descriptor becomes the server's own.
    ///
    /// # Errors
    /// [`Error::Listener`] when the descriptor is not a listening stream socket; [`Error::Resource`].
    pub fn new(
        listener: OwnedFd,
        settings: Settings,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, Error> {
        socket::check_listener(&listener).map_err(|source| Error::Listener {
            fd: listener.as_raw_fd(),
            source,
        })?;
        let no_memory = |source| Error::Resource {
            what: "make a server",
            source,
        };
        keep_copies_free().map_err(no_memory)?;
        Ok(Self {
            settings,
            handler,
            listener: Copied::new(Some(Arc::new(listener))),
            engine: PerProcess::new(Mutex::default).map_err(no_memory)?,
        })
    }

    /// Starts accepting, or resumes after `stop(false)`. Threads exchange from here on: the process
    /// must not fork any more. Does nothing when the server accepts already.
    ///
    /// # Errors
    /// [`Error::ListenerClosed`] after `stop(true)`; [`Error::Resource`].
    pub fn start(&self) -> Result<(), Error> {
        let listener = self.listener.get().ok_or_else(|| Error::ListenerClosed {
            name: self.settings.name.clone(),
        })?;
        let mut engine = self.engine.get().lock();
        let engine = match &mut *engine {
            Some(engine) => engine,
            none => {
                let settings = self.settings.clone();
                let pool_size = settings.pool_size;
                let reactor = Arc::new(Reactor::new(listener, settings, self.handler.clone())?);
                let pool = Pool::new("osloxide", reactor.clone(), pool_size);
                if let Some(timeout) = self.settings.request_timeout {
                    overdue::start(reactor.clone(), pool.abandon(), timeout).map_err(|source| {
                        Error::Resource {
                            what: "start a thread",
                            source,
                        }
                    })?;
                }
                none.insert(Engine { reactor, pool })
            }
        };
        engine
            .pool
            .start(|| engine.reactor.resume())
            .map_err(|source| Error::Resource {
                what: "start a thread",
                source,
            })
    }

    /// Stops accepting and drains: requests in flight are answered with `Connection: close`, idle
    /// connections are closed. Returns at once; [`Server::drained_fd`] tells the end.
    ///
    /// With `close_listener` the server's copy of the listening socket is closed as well, after
    /// every connection that the kernel had already queued was accepted.
    pub fn stop(&self, close_listener: bool) {
        if close_listener {
            drop(self.listener.replace(None));
        }
        if let Some(engine) = &*self.engine.get().lock() {
            engine.reactor.stop(close_listener);
        }
    }

    /// Readable (poll it, do not read it) while the server is stopped, has no connection left and
    /// all its threads have left. `None` before the first start in this process: there is nothing
    /// to wait for.
    pub fn drained_fd(&self) -> Option<Arc<EventFd>> {
        self.engine
            .get()
            .lock()
            .as_ref()
            .map(|engine| engine.reactor.drained())
    }

    /// Encrypts connections that are accepted from now on with another configuration: a renewed
    /// certificate, say. Open connections go on. Takes effect on a server that was started.
    pub fn replace_tls(&self, config: Arc<tls::Config>) {
        if let Some(engine) = &*self.engine.get().lock() {
            engine.reactor.replace_tls(config);
        }
    }

    /// Changes how many requests may be in flight at once; 0 counts as 1.
    pub fn resize(&self, pool_size: usize) {
        if let Some(engine) = &*self.engine.get().lock() {
            engine.reactor.resize(pool_size);
            engine.pool.resize(pool_size);
        }
    }

    /// One consistent view of the counters.
    pub fn stats(&self) -> Stats {
        match &*self.engine.get().lock() {
            Some(engine) => engine.reactor.count(engine.pool.stats()),
            None => Stats::default(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Threads own what they use; they leave once the last connection is over.
        self.stop(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locks::children;
    use crate::wsgi::Exchange;
    use std::net::TcpListener;

    /// Is never asked for anything.
    #[derive(Debug)]
    pub(super) struct Unused;

    impl Handler for Unused {
        fn handle(&self, _exchange: &mut dyn Exchange) {}

        fn thread(&self, body: &mut dyn FnMut()) {
            body();
        }
    }

    #[test]
    fn a_child_stops_and_starts_a_server_that_a_thread_of_its_parent_has_locked() {
        let listener = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        let server = Server::new(listener, Settings::default(), Arc::new(Unused)).unwrap();
        server.start().unwrap();

        let hold = || server.engine.get().lock();
        let ended = children::run_beside(hold, || {
            assert!(server.drained_fd().is_none(), "nothing to wait for");
            server.start().unwrap();
            assert!(server.drained_fd().is_some());
            server.stop(true);
            let again = server.start();
            assert!(matches!(again, Err(Error::ListenerClosed { .. })));
        });

        assert!(children::has_done(&ended), "{ended:?}");
        assert!(server.listener.get().is_some());
    }
}
