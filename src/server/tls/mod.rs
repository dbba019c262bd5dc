//! TLS for the server: certificates, protocol versions and ciphers, checked when they are read.
//!
//! Never opens a socket; `link.rs` moves the records. Option names and values are those of
//! oslo.service's `[ssl]` group (`sslutils`), which speak OpenSSL; what rustls cannot do is refused
//! rather than ignored.

pub(super) mod ciphers;
mod validity;

use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, ServerConnection, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use std::io;
use std::path::Path;
use std::sync::Arc;
use tracing::warn;

/// A checked TLS configuration, shared by all connections of a server.
#[derive(Debug)]
pub struct Config {
    server: Mutex<Arc<ServerConfig>>,
}

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
        source: io::Error,
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
    /// must come from; client certificates are required if and only if `ca_file` is given.
    /// `version` and `ciphers` as in oslo.service's `[ssl]` group; `None` or an empty string means
    /// TLS 1.2 and 1.3 with all ciphers of rustls.
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
        let versions = versions(version.unwrap_or_default())?;
        let mut provider = ring::default_provider();
        if let Some(list) = ciphers.filter(|list| !list.trim().is_empty()) {
            provider.cipher_suites = ciphers::parse(list, &provider.cipher_suites)?;
        }
        let provider = Arc::new(provider);

        let chain = certificates("cert_file", cert_file)?;
        for (place, certificate) in chain.iter().enumerate() {
            // OpenSSL loads such certificates too. Clients judge them; at a restart a server that
            // some of them still accept is better than none.
            let dated = validity::check(certificate).map_err(|problem| Error::Value {
                option: "cert_file",
                value: cert_file.display().to_string(),
                problem,
                remedy: "give one or more certificates in PEM",
            })?;
            if let Some(problem) = dated {
                let cert_file = cert_file.display();
                warn!(option = "cert_file", %cert_file, place, problem, "a certificate is not valid now; clients will refuse it: renew it");
            }
        }
        let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| {
            refused(
                "key_file",
                key_file,
                error,
                "give a private key in PEM, without a passphrase",
            )
        })?;

        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|error| Error::Value {
                option: "ciphers",
                value: ciphers.unwrap_or_default().to_owned(),
                problem: format!("no cipher is left for the chosen version ({error})"),
                remedy: "name a cipher of that version, or leave the option empty",
            })?;
        let builder = match ca_file {
            None => builder.with_no_client_auth(),
            Some(ca_file) => {
                builder.with_client_cert_verifier(client_verifier(ca_file, provider.clone())?)
            }
        };
        let certified = certified(&provider, chain, key).map_err(|problem| Error::Value {
            option: "key_file",
            value: key_file.display().to_string(),
            problem: format!("cannot be used with {} ({problem})", cert_file.display()),
            remedy: "give the private key that the certificate was made for",
        })?;
        let mut server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        server.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
        Ok(Self {
            server: Mutex::new(Arc::new(server)),
        })
    }

    /// Connections accepted from now on use `newer`; those that exist keep what they have. This is
    /// how a certificate is renewed without dropping anybody.
    pub fn replace(&self, newer: Self) {
        *self.server.lock() = newer.server.into_inner();
    }

    /// The server's side of a new connection.
    pub(super) fn accept(&self) -> Result<ServerConnection, rustls::Error> {
        ServerConnection::new(self.server.lock().clone())
    }
}

/// Certificates and key, which must belong together. A certificate that rustls would not accept from
/// a peer, as one of X.509 version 1, is served all the same: clients judge it.
fn certified(
    provider: &CryptoProvider,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, String> {
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| error.to_string())?;
    let public = key.public_key();
    let certified = CertifiedKey::new(chain, key.clone());
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InvalidCertificate(_))
            if public.is_some_and(|public| {
                certified
                    .cert
                    .first()
                    .is_some_and(|leaf| validity::is_for_key(leaf, &public))
            }) =>
        {
            Ok(certified)
        }
        Err(error) => Err(error.to_string()),
    }
}

fn versions(name: &str) -> Result<Vec<&'static rustls::SupportedProtocolVersion>, Error> {
    match name.to_ascii_lowercase().as_str() {
        // SSLv23 is OpenSSL's old name for "any version that both sides know".
        "" | "sslv23" => Ok(vec![&TLS13, &TLS12]),
        "tlsv1_2" => Ok(vec![&TLS12]),
        "tlsv1_3" => Ok(vec![&TLS13]),
        known => Err(Error::Value {
            option: "version",
            value: name.to_owned(),
            problem: if matches!(known, "sslv2" | "sslv3" | "tlsv1" | "tlsv1_1") {
                "this protocol is broken and not supported".to_owned()
            } else {
                "no such protocol version".to_owned()
            },
            remedy: "use TLSv1_2 or TLSv1_3, or leave the option empty for both",
        }),
    }
}

fn certificates(option: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let remedy = "give one or more certificates in PEM";
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| refused(option, path, error, remedy))?;
    if found.is_empty() {
        return Err(refused(option, path, pem::Error::NoItemsFound, remedy));
    }
    Ok(found)
}

fn client_verifier(
    ca_file: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, Error> {
    let unusable = |problem: String| Error::Value {
        option: "ca_file",
        value: ca_file.display().to_string(),
        problem,
        remedy: "give the certificates of the authorities that client certificates come from",
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca_file", ca_file)? {
        roots
            .add(certificate)
            .map_err(|error| unusable(error.to_string()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| unusable(error.to_string()))
}

fn refused(option: &'static str, path: &Path, error: pem::Error, remedy: &'static str) -> Error {
    if let pem::Error::Io(source) = error {
        return Error::Read {
            option,
            path: path.display().to_string(),
            source,
        };
    }
    let problem = if matches!(error, pem::Error::NoItemsFound) {
        "holds nothing of the kind".to_owned()
    } else {
        format!("is not PEM ({error})")
    };
    Error::Value {
        option,
        value: path.display().to_string(),
        problem,
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_protocol_versions_are_refused_with_a_remedy() {
        for name in ["SSLv2", "SSLv3", "TLSv1", "TLSv1_1"] {
            let message = versions(name).unwrap_err().to_string();

            assert!(
                message.starts_with(&format!("version = {name}: ")),
                "{message}"
            );
            assert!(message.contains("TLSv1_2"), "{message}");
        }
    }

    #[test]
    fn no_version_means_all_that_are_sound() {
        assert_eq!(versions("").unwrap().len(), 2);
        assert_eq!(versions("SSLv23").unwrap().len(), 2);
        assert_eq!(versions("TLSv1_3").unwrap().len(), 1);
    }

    #[test]
    fn a_missing_file_is_named_with_its_option() {
        let missing = Path::new("/nonexistent/server.crt");

        let error = Config::load(missing, missing, None, None, None).unwrap_err();

        assert!(
            matches!(
                error,
                Error::Read {
                    option: "cert_file",
                    ..
                }
            ),
            "{error}"
        );
        assert!(
            error.to_string().contains("/nonexistent/server.crt"),
            "{error}"
        );
    }
}
