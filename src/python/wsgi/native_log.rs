//! `AccessLog` for Python: the access log that is written without the interpreter.
//!
//! Puts together what [`crate::wsgi::access_log`] owns: the format, the file, and the patterns of
//! requests that are not logged. Says once when lines are lost. See `_native.pyi`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tracing::{info, warn};
use wildmatch::WildMatch;

use crate::wsgi::access_log::file::{LogFile, Written, local_time};
use crate::wsgi::access_log::format::{Event, Format, Subject};
use crate::wsgi::access_log::{client_ip, escaped, request_line};
use crate::wsgi::request::RequestHead;
use crate::wsgi::{Delivery, Endpoints, Refused};

/// See the module's text.
#[pyclass(frozen, name = "AccessLog", module = "osloxide._native")]
#[derive(Debug)]
pub(crate) struct NativeLog {
    path: PathBuf,
    file: LogFile,
    format: Format,
    skipped_agents: Vec<WildMatch>,
    skipped_paths: Vec<WildMatch>,
}

#[pymethods]
impl NativeLog {
    #[new]
    #[pyo3(signature = (path, format="combined", *, skip_agents=Vec::new(), skip_paths=Vec::new()))]
    fn new(
        path: PathBuf,
        format: &str,
        skip_agents: Vec<String>,
        skip_paths: Vec<String>,
    ) -> PyResult<Self> {
        let patterns = |texts: Vec<String>| {
            let patterns = texts.iter().map(|text| WildMatch::new(text));
            patterns.collect::<Vec<_>>()
        };
        Ok(Self {
            format: Format::parse(format)
                .map_err(|error| PyValueError::new_err(format!("log format {error}")))?,
            file: LogFile::open(&path)?,
            path,
            skipped_agents: patterns(skip_agents),
            skipped_paths: patterns(skip_paths),
        })
    }

    fn reopen(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.file.reopen())?)
    }
}

impl NativeLog {
    /// The client's side of the line for a request; `None` when it is not to be logged.
    pub(super) fn subject(&self, request: &RequestHead, endpoints: &Endpoints) -> Option<Subject> {
        let user_agent = request.header("user-agent").unwrap_or_default();
        let path = request.target();
        let path = &path[..memchr::memchr(b'?', path).unwrap_or(path.len())];
        if is_matched(&self.skipped_agents, user_agent) || is_matched(&self.skipped_paths, path) {
            return None;
        }
        let (address, client_port) = peer(endpoints.peer);
        Some(Subject {
            client_ip: client_ip(request, &address),
            client_port,
            request_line: request_line(request),
            referer: request.header("referer").unwrap_or_default().to_vec(),
            user_agent: user_agent.to_vec(),
        })
    }

    /// Writes the line of a request that was answered.
    pub(super) fn write(
        &self,
        subject: &Subject,
        status: u16,
        delivery: Delivery,
        arrived: Instant,
    ) {
        let event = Event {
            status,
            delivery,
            wall: arrived.elapsed(),
            now: local_time(),
        };
        self.write_line(subject, &event);
    }

    /// Writes the line of a request that the server refused. What its head says about itself is left
    /// out: nothing of it was found fit to be believed.
    pub(super) fn write_refused(&self, refused: &Refused) {
        let (client_ip, client_port) = peer(refused.endpoints.peer);
        let subject = Subject {
            client_ip,
            client_port,
            request_line: escaped(&refused.line),
            ..Subject::default()
        };
        let event = Event {
            status: refused.status.as_u16(),
            delivery: Delivery {
                sent: refused.sent,
                is_whole: true,
                is_file_short: false,
            },
            wall: refused.wall,
            now: local_time(),
        };
        self.write_line(&subject, &event);
    }

    fn write_line(&self, subject: &Subject, event: &Event) {
        let mut line = String::with_capacity(256);
        self.format.write(&mut line, subject, event);
        let path = self.path.display();
        match self.file.write_line(line.as_bytes()) {
            Written::Yes | Written::StillFailing => {}
            Written::Failed(errno) => {
                warn!(%path, error = %errno, "cannot write the access log; lines are lost until it can be written again");
            }
            Written::Again(lost) => {
                info!(%path, lost, "the access log is written again; lines were lost");
            }
        }
    }
}

fn is_matched(patterns: &[WildMatch], text: &[u8]) -> bool {
    if patterns.is_empty() {
        return false;
    }
    let text = String::from_utf8_lossy(text);
    patterns.iter().any(|pattern| pattern.matches(&text))
}

/// Address and port of the connection's other end.
fn peer(peer: Option<SocketAddr>) -> (String, String) {
    match peer {
        Some(peer) => (
            peer.ip().to_canonical().to_string(),
            peer.port().to_string(),
        ),
        None => ("unix".to_owned(), String::new()),
    }
}
