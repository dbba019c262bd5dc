//! The environ dictionary: a copy of a prebuilt one, completed with what a request brings.
//!
//! Keys are interned once; values that all requests of a listener share are in a template per
//! local address, so that a request costs one dictionary copy and few new strings. What goes where
//! is decided in [`crate::wsgi::environ`]. Rules: PEP 3333 "environ Variables".

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;

use crate::locks::Mutex;
use http::{Method, Version};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::file_wrapper::FileWrapper;
use super::input::Input;
use super::text::native;
use crate::python::kept::intern;
use crate::wsgi::Endpoints;
use crate::wsgi::environ::{HeaderSlot, Target, header_slot, separator};
use crate::wsgi::request::{Header, RequestHead, name_hash};

/// Headers whose keys are made beforehand: those that browsers, curl, requests, keystoneauth and
/// the usual proxies send. Others work as well, a little slower.
const USUAL_HEADERS: [&str; 30] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "authorization",
    "cache-control",
    "connection",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "openstack-api-version",
    "origin",
    "pragma",
    "range",
    "referer",
    "transfer-encoding",
    "user-agent",
    "via",
    "x-auth-token",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-openstack-nova-api-version",
    "x-openstack-request-id",
    "x-project-id",
    "x-service-token",
    "x-user-id",
];

/// Templates are kept for this many local addresses; a host has few, but a listener on a routed
/// IPv6 prefix may see any number.
const MOST_TEMPLATES: usize = 32;

/// Makes environs.
#[derive(Debug)]
pub(super) struct Environ {
    base: Py<PyDict>,
    templates: Mutex<Vec<Template>>,
    /// Keys of the usual headers, found by [`name_hash`].
    headers: HashMap<u32, (&'static str, Py<PyString>), BuildHasherDefault<KeptHash>>,
}

#[derive(Debug)]
struct Template {
    local: Option<SocketAddr>,
    is_tls: bool,
    environ: Py<PyDict>,
}

/// The hash of a name that was made when the request was parsed.
#[derive(Debug, Default)]
struct KeptHash(u64);

impl Hasher for KeptHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u32(&mut self, hash: u32) {
        // The table looks at the highest bits as well.
        self.0 = u64::from(hash) << 32 | u64::from(hash);
    }
}

impl Environ {
    /// *extra* holds keys for every request; they outrank the server's own.
    pub(super) fn new(
        py: Python<'_>,
        is_multiprocess: bool,
        extra: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let base = PyDict::new(py);
        // Every key that a request sets is here from the start: setting it later reuses its place.
        for key in [
            "PATH_INFO",
            "RAW_PATH_INFO",
            "QUERY_STRING",
            "REMOTE_ADDR",
            "REMOTE_PORT",
            "SCRIPT_NAME",
        ] {
            base.set_item(PyString::intern(py, key), intern!(py, ""))?;
        }
        base.set_item(intern!(py, "REQUEST_METHOD"), intern!(py, "GET"))?;
        base.set_item(intern!(py, "SERVER_PROTOCOL"), intern!(py, "HTTP/1.1"))?;
        base.set_item(intern!(py, "GATEWAY_INTERFACE"), "CGI/1.1")?;
        base.set_item(
            intern!(py, "SERVER_SOFTWARE"),
            concat!("osloxide/", env!("CARGO_PKG_VERSION")),
        )?;
        base.set_item(intern!(py, "wsgi.version"), PyTuple::new(py, [1, 0])?)?;
        base.set_item(intern!(py, "wsgi.multithread"), true)?;
        base.set_item(intern!(py, "wsgi.multiprocess"), is_multiprocess)?;
        base.set_item(intern!(py, "wsgi.run_once"), false)?;
        base.set_item(
            intern!(py, "wsgi.errors"),
            py.import("sys")?.getattr("stderr")?,
        )?;
        base.set_item(
            intern!(py, "wsgi.file_wrapper"),
            py.get_type::<FileWrapper>(),
        )?;
        // Requests without a body share an input that has nothing and refers to nobody.
        base.set_item(
            intern!(py, "wsgi.input"),
            Bound::new(py, Input::new(None, Some(0)))?,
        )?;
        if let Some(extra) = extra {
            base.update(extra.as_mapping())?;
        }
        let mut headers = HashMap::default();
        for name in USUAL_HEADERS {
            if let HeaderSlot::Key(key) = header_slot(name.as_bytes()) {
                let key = PyString::intern(py, &key).unbind();
                headers.insert(name_hash(name.as_bytes()), (name, key));
            }
        }
        Ok(Self {
            base: base.unbind(),
            templates: Mutex::default(),
            headers,
        })
    }

    /// The environ of one request. *input* is its body, if it has one.
    pub(super) fn build<'py>(
        &self,
        py: Python<'py>,
        request: &RequestHead,
        endpoints: &Endpoints,
        target: &Target<'_>,
        input: Option<Bound<'py, Input>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let environ = self.template(py, endpoints)?.copy()?;
        // The template is that of a GET with HTTP/1.1.
        let method = match *request.method() {
            Method::GET => None,
            Method::POST => Some(intern!(py, "POST").clone()),
            ref other => Some(native(py, other.as_str().as_bytes())?),
        };
        if let Some(method) = method {
            environ.set_item(intern!(py, "REQUEST_METHOD"), method)?;
        }
        let raw_path = native(py, target.raw_path)?;
        let path = target.path_info();
        if *path == *target.raw_path {
            environ.set_item(intern!(py, "PATH_INFO"), &raw_path)?;
        } else {
            environ.set_item(intern!(py, "PATH_INFO"), native(py, &path)?)?;
        }
        environ.set_item(intern!(py, "RAW_PATH_INFO"), raw_path)?;
        if !target.query.is_empty() {
            let query = native(py, target.query)?;
            environ.set_item(intern!(py, "QUERY_STRING"), query)?;
        }
        if request.version() == Version::HTTP_10 {
            let protocol = intern!(py, "HTTP/1.0");
            environ.set_item(intern!(py, "SERVER_PROTOCOL"), protocol)?;
        }
        if let Some((address, port)) = endpoints.peer_text() {
            environ.set_item(intern!(py, "REMOTE_ADDR"), native(py, address)?)?;
            environ.set_item(intern!(py, "REMOTE_PORT"), native(py, port)?)?;
        }
        self.set_headers(&environ, request)?;
        for (name, value) in request.variables() {
            environ.set_item(native(py, name)?, native(py, value)?)?;
        }
        if let Some(host) = target.host {
            environ.set_item(intern!(py, "HTTP_HOST"), native(py, host)?)?;
        }
        if let Some(input) = input {
            environ.set_item(intern!(py, "wsgi.input"), input)?;
            if request.header("transfer-encoding").is_some() {
                environ.set_item(intern!(py, "wsgi.input_terminated"), true)?;
            }
        }
        Ok(environ)
    }

    /// The shared part for one end of the connection.
    fn template<'py>(
        &self,
        py: Python<'py>,
        endpoints: &Endpoints,
    ) -> PyResult<Bound<'py, PyDict>> {
        // The lock is never held while Python runs: a thread that waits for it is attached.
        let known = self
            .templates
            .lock()
            .iter()
            .find(|template| template.local == endpoints.local && template.is_tls == endpoints.tls)
            .map(|template| template.environ.clone_ref(py));
        if let Some(environ) = known {
            return Ok(environ.into_bound(py));
        }
        let environ = self.complete(py, endpoints)?;
        let template = Template {
            local: endpoints.local,
            is_tls: endpoints.tls,
            environ: environ.clone().unbind(),
        };
        let mut templates = self.templates.lock();
        if templates.len() < MOST_TEMPLATES {
            templates.push(template);
        }
        Ok(environ)
    }

    fn complete<'py>(
        &self,
        py: Python<'py>,
        endpoints: &Endpoints,
    ) -> PyResult<Bound<'py, PyDict>> {
        let environ = PyDict::new(py);
        let scheme = if endpoints.tls { "https" } else { "http" };
        environ.set_item(intern!(py, "wsgi.url_scheme"), scheme)?;
        if endpoints.tls {
            environ.set_item(intern!(py, "HTTPS"), "on")?;
        }
        // PEP 3333 wants both non-empty; what reaches a unix socket came through a proxy that
        // names the real host in Host.
        let (name, port) = match endpoints.local {
            Some(local) => (
                local.ip().to_canonical().to_string(),
                local.port().to_string(),
            ),
            None => (
                "localhost".to_owned(),
                if endpoints.tls { "443" } else { "80" }.to_owned(),
            ),
        };
        environ.set_item(intern!(py, "SERVER_NAME"), name)?;
        environ.set_item(intern!(py, "SERVER_PORT"), port)?;
        for (key, value) in self.base.bind(py) {
            environ.set_item(key, value)?;
        }
        if endpoints.peer.is_none() {
            environ.set_item(intern!(py, "REMOTE_ADDR"), "unix")?;
        }
        make_room(&environ)?;
        Ok(environ)
    }

    fn set_headers(&self, environ: &Bound<'_, PyDict>, request: &RequestHead) -> PyResult<()> {
        let py = environ.py();
        let headers = request.headers();
        let is_chunked = request.header("transfer-encoding").is_some();
        for (index, header) in headers.clone().enumerate() {
            let is_same = |other: &Header<'_>| other.hash == header.hash && other.is(header.name);
            if headers.clone().take(index).any(|other| is_same(&other)) {
                continue; // joined with the first one of its name
            }
            let usual = self.headers.get(&header.hash);
            let key = match usual {
                Some((name, key)) if header.is(name.as_bytes()) => key.bind(py).clone(),
                _ => match header_slot(header.name) {
                    HeaderSlot::ContentType => {
                        // Two types cannot both be true; the first one counts.
                        let value = native(py, header.value)?;
                        environ.set_item(intern!(py, "CONTENT_TYPE"), value)?;
                        continue;
                    }
                    HeaderSlot::ContentLength => {
                        if !is_chunked {
                            let value = native(py, header.value)?;
                            environ.set_item(intern!(py, "CONTENT_LENGTH"), value)?;
                        }
                        continue;
                    }
                    HeaderSlot::Key(key) => PyString::new(py, &key),
                    HeaderSlot::Dropped => continue,
                },
            };
            let mut others = headers.clone().skip(index + 1).filter(is_same).peekable();
            let value = if others.peek().is_some() {
                let values: Vec<&[u8]> = std::iter::once(header.value)
                    .chain(others.map(|other| other.value))
                    .collect();
                native(py, &values.join(separator(header.name)))?
            } else {
                native(py, header.value)?
            };
            environ.set_item(key, value)?;
        }
        Ok(())
    }
}

/// Lets the dictionary grow now, so that copies of it have room for a request's headers and need
/// not grow one by one. CPython triples a dictionary that is full (21 entries); what is taken out
/// again leaves the room behind.
fn make_room(environ: &Bound<'_, PyDict>) -> PyResult<()> {
    const GROWN: usize = 22;

    let fillers: Vec<String> = (environ.len()..GROWN)
        .map(|number| format!("filler {number}"))
        .collect();
    for filler in &fillers {
        environ.set_item(filler, false)?;
    }
    for filler in &fillers {
        environ.del_item(filler)?;
    }
    Ok(())
}
