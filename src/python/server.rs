//! `Server` and `TlsConfig` for Python: arguments in, interpreter released, errors translated.
//!
//! Decides nothing; the engine is [`crate::server`], the application's side [`super::wsgi`]. The
//! signatures are those of `_native.pyi`.
#![expect(
    unsafe_code,
    reason = "a file descriptor given by number is borrowed to be duplicated"
)]

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::signals;
use super::wsgi::{AccessFilter, Application, NativeLog, Options};
use crate::server::{self, Settings, tls};

/// Supervisor and siblings may have been told to stop at the same time as this process (a service
/// manager signals the whole group), and on a busy machine they get to it later.
const LAST_LOOK: Duration = Duration::from_millis(100);
/// A century: beyond it a clock has no instant.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3_155_760_000);

/// A WSGI server on one listening socket.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct Server {
    /// Always present; an option so that dropping it can release the interpreter.
    engine: Option<server::Server>,
}

/// Certificates and rules for encrypted connections.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct TlsConfig {
    config: Arc<tls::Config>,
}

impl Server {
    #[expect(
        clippy::expect_used,
        reason = "INVARIANT: only drop() takes the engine"
    )]
    fn engine(&self) -> &server::Server {
        self.engine
            .as_ref()
            .expect("the engine is taken only when the server is dropped")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The engine waits for its threads, which may be waiting for the interpreter.
        if let Some(engine) = self.engine.take() {
            Python::attach(|py| py.detach(|| drop(engine)));
        }
    }
}

#[pymethods]
impl Server {
    #[new]
    #[pyo3(signature = (
        app, fd, *, pool_size=100, keep_alive=true, client_socket_timeout=Some(900.0),
        max_header_line=16384, max_url_len=8192, max_headers=100, log=None, log_format="", log_enabled=None,
        log_error=None, debug=false, multiprocess=false, tls=None, environ=None, lenient=false,
        name="server", keep_alive_timeout=None, max_connections=None, max_body=None, proxies=None,
        access_log=None, access_filter=None, request_timeout=None, protocol="http", max_waiting=None,
        slow_client_share=50, max_unsent=134_217_728,
    ))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python signature")]
    #[expect(
        clippy::fn_params_excessive_bools,
        reason = "keywords of a Python signature"
    )]
    fn new(
        py: Python<'_>,
        app: Py<PyAny>,
        fd: RawFd,
        pool_size: usize,
        keep_alive: bool,
        client_socket_timeout: Option<f64>,
        max_header_line: usize,
        max_url_len: usize,
        max_headers: usize,
        log: Option<Py<PyAny>>,
        log_format: &str,
        log_enabled: Option<Py<PyAny>>,
        log_error: Option<Py<PyAny>>,
        debug: bool,
        multiprocess: bool,
        tls: Option<&Bound<'_, TlsConfig>>,
        environ: Option<&Bound<'_, PyDict>>,
        lenient: bool,
        name: &str,
        keep_alive_timeout: Option<f64>,
        max_connections: Option<usize>,
        max_body: Option<u64>,
        proxies: Option<Vec<(IpAddr, IpAddr)>>,
        access_log: Option<Py<NativeLog>>,
        access_filter: Option<Py<AccessFilter>>,
        request_timeout: Option<f64>,
        protocol: &str,
        max_waiting: Option<usize>,
        slow_client_share: usize,
        max_unsent: u64,
    ) -> PyResult<Self> {
        if !matches!(protocol, "http" | "uwsgi") {
            return Err(PyValueError::new_err(format!(
                "protocol is {protocol:?}; give \"http\" or \"uwsgi\""
            )));
        }
        for (option, value) in [
            ("pool_size", pool_size),
            ("max_header_line", max_header_line),
            ("max_url_len", max_url_len),
            ("max_headers", max_headers),
            ("max_connections", max_connections.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(PyValueError::new_err(format!(
                    "{option} is 0; give at least 1"
                )));
            }
        }
        if !(1..=100).contains(&slow_client_share) {
            return Err(PyValueError::new_err(format!(
                "slow_client_share is {slow_client_share}; give 1 to 100 percent"
            )));
        }
        let client_socket_timeout = timeout("client_socket_timeout", client_socket_timeout)?;
        let request_timeout = timeout("request_timeout", request_timeout)?;
        let keep_alive_timeout = timeout("keep_alive_timeout", keep_alive_timeout)?;
        if fd < 0 {
            return Err(PyValueError::new_err(format!(
                "fd is {fd}; give an open listening socket"
            )));
        }
        // SAFETY: the caller owns an open descriptor of this number for the length of this call;
        // a number that is not open makes the duplication fail with EBADF.
        let listener = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
        let log_error = match log_error {
            Some(log_error) => log_error,
            None => default_log_error(py)?,
        };
        let settings = Settings {
            name: name.to_owned(),
            pool_size,
            keep_alive,
            client_socket_timeout,
            keep_alive_timeout,
            request_timeout,
            max_connections,
            proxies,
            max_body,
            max_waiting,
            slow_client_share,
            max_unsent,
            last_look: if multiprocess {
                LAST_LOOK
            } else {
                Duration::ZERO
            },
            max_header_line,
            max_url_len,
            max_headers,
            lenient,
            uwsgi: protocol == "uwsgi",
            tls: tls.map(|tls| Arc::clone(&tls.get().config)),
        };
        let options = Options {
            app,
            log,
            log_format,
            log_enabled,
            native_log: access_log,
            filter: access_filter,
            has_timeout: request_timeout.is_some(),
            log_error,
            debug,
            multiprocess,
            environ,
            lenient,
        };
        let application = Arc::new(Application::new(py, options)?);
        let engine = server::Server::new(listener, settings, application)?;
        Ok(Self {
            engine: Some(engine),
        })
    }

    fn start(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.engine().start())?)
    }

    fn stop(&self, py: Python<'_>, close: bool) {
        py.detach(|| self.engine().stop(close));
    }

    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let deadline = signals::deadline_in(timeout)?;
        let Some(drained) = self.engine().drained_fd() else {
            return Ok(true); // never started
        };
        let ready = signals::wait_readable(py, &[drained.as_fd()], deadline)?;
        Ok(!ready.is_empty())
    }

    fn replace_tls(&self, py: Python<'_>, tls: &Bound<'_, TlsConfig>) {
        let config = tls.get().config.clone();
        py.detach(|| self.engine().replace_tls(config));
    }

    fn resize(&self, py: Python<'_>, pool_size: usize) {
        py.detach(|| self.engine().resize(pool_size));
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.engine().stats();
        let fields = PyDict::new(py);
        fields.set_item("threads", stats.threads)?;
        fields.set_item("busy", stats.busy)?;
        fields.set_item("queued", stats.queued)?;
        fields.set_item("connections", stats.connections)?;
        fields.set_item("idle", stats.idle)?;
        fields.set_item("in_flight", stats.in_flight)?;
        fields.set_item("unsent", stats.unsent)?;
        fields.set_item("served", stats.served)?;
        fields.set_item("limit", stats.limit)?;
        fields.set_item("takeovers", stats.takeovers)?;
        Ok(fields)
    }
}

#[pymethods]
impl TlsConfig {
    #[new]
    #[pyo3(signature = (cert_file, key_file, ca_file=None, version=None, ciphers=None, *, passphrase_file=None, client_certificates="required", quiet=false))]
    #[expect(clippy::too_many_arguments, reason = "keywords of a Python signature")]
    fn new(
        py: Python<'_>,
        cert_file: PathBuf,
        key_file: PathBuf,
        ca_file: Option<PathBuf>,
        version: Option<String>,
        ciphers: Option<String>,
        passphrase_file: Option<PathBuf>,
        client_certificates: &str,
        quiet: bool,
    ) -> PyResult<Self> {
        let options = tls::Options {
            cert_file,
            key_file,
            passphrase_file,
            ca_file,
            is_client_certificate_optional: is_optional(client_certificates)?,
            version,
            ciphers,
        };
        let load = if quiet {
            tls::Config::load_quietly
        } else {
            tls::Config::load
        };
        // With the interpreter released: a file may be a pipe whose writer takes its time.
        let config = Arc::new(py.detach(|| load(&options))?);
        Ok(Self { config })
    }
}

/// Whether clients may come without a certificate.
fn is_optional(client_certificates: &str) -> PyResult<bool> {
    match client_certificates {
        "required" => Ok(false),
        "optional" => Ok(true),
        other => Err(PyValueError::new_err(format!(
            "client_certificates is {other:?}; give \"required\" or \"optional\""
        ))),
    }
}

/// Seconds above 0; `None` stays as it is.
fn timeout(option: &str, seconds: Option<f64>) -> PyResult<Option<Duration>> {
    let Some(seconds) = seconds else {
        return Ok(None);
    };
    let timeout = Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|timeout| !timeout.is_zero() && *timeout <= LONGEST_TIMEOUT);
    timeout.map(Some).ok_or_else(|| {
        PyValueError::new_err(format!(
            "{option} is {seconds}; give seconds above 0 and up to {}, or None to wait for ever",
            LONGEST_TIMEOUT.as_secs()
        ))
    })
}

/// Errors go to the logger `osloxide.wsgi` unless the caller says otherwise.
fn default_log_error(py: Python<'_>) -> PyResult<Py<PyAny>> {
    py.import("logging")?
        .call_method1("getLogger", ("osloxide.wsgi",))?
        .getattr("error")
        .map(Bound::unbind)
}
