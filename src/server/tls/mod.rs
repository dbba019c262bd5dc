//! TLS for the server: certificates, protocol versions and ciphers, checked when they are read.
//!
//! Never opens a socket; `link.rs` moves the records. Option names and values are those of
//! oslo.service's `[ssl]` group (`sslutils`), which speak OpenSSL; what rustls cannot do is refused
//! rather than ignored.

pub(super) mod ciphers;
mod clients;
mod files;
mod validity;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, ServerConnection};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{Error as TlsError, InconsistentKeys, SupportedCipherSuite};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tracing::dispatcher::{Dispatch, with_default};
use tracing::warn;

/// The remedy where a key is of a kind that cannot serve.
const USABLE_KEYS: &str =
    "use an RSA key of 2048 to 8192 bits, an ECDSA key of P-256, P-384 or P-521, or an Ed25519 key";

/// What a TLS configuration is made of: names and values as in oslo.service's `[ssl]` group, and
/// what that has no option for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The server's certificate, then intermediate ones.
    pub cert_file: PathBuf,
    /// The private key of the first certificate.
    pub key_file: PathBuf,
    /// A file whose first line is the passphrase of the key; without effect on a key that has none.
    pub passphrase_file: Option<PathBuf>,
    /// Authorities that client certificates must come from; `None` asks for no certificate.
    pub ca_file: Option<PathBuf>,
    /// Clients without a certificate are served as well. Without effect unless `ca_file` is given.
    pub is_client_certificate_optional: bool,
    /// `None` or an empty string means TLS 1.2 and 1.3.
    pub version: Option<String>,
    /// A list of OpenSSL's; `None` or an empty string means all ciphers of rustls.
    pub ciphers: Option<String>,
}

/// A checked TLS configuration, shared by all connections of a server.
#[derive(Debug)]
pub struct Config {
    server: Arc<ServerConfig>,
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
    /// Reads and checks everything that the options name.
    ///
    /// # Errors
    /// [`Error::Read`] (an `OSError` for Python), [`Error::Value`] (a `ValueError`).
    pub fn load(options: &Options) -> Result<Self, Error> {
        let versions = versions(options.version.as_deref().unwrap_or_default())?;
        let mut provider = aws_lc_rs::default_provider();
        let ciphers = options.ciphers.as_deref().unwrap_or_default();
        if !ciphers.trim().is_empty() {
            provider.cipher_suites = ciphers::parse(ciphers, &provider.cipher_suites)?;
        }
        let provider = Arc::new(provider);

        let cert_file = options.cert_file.display().to_string();
        let chain = files::certificates("cert_file", &options.cert_file)?;
        for (place, certificate) in chain.iter().enumerate() {
            // OpenSSL loads such certificates too. Clients judge them; at a restart a server that
            // some of them still accept is better than none.
            let dated = validity::check(certificate).map_err(|problem| Error::Value {
                option: "cert_file",
                value: cert_file.clone(),
                problem,
                remedy: "give one or more certificates in PEM",
            })?;
            if let Some(problem) = dated {
                warn!(
                    option = "cert_file",
                    cert_file,
                    place,
                    problem,
                    "a certificate is not valid now; clients will refuse it: renew it"
                );
            }
        }
        let key = files::private_key(options)?;

        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|error| Error::Value {
                option: "ciphers",
                value: ciphers.to_owned(),
                problem: format!("no cipher is left for the chosen version ({error})"),
                remedy: "name a cipher of that version, or leave the option empty",
            })?;
        let builder = match &options.ca_file {
            None => builder.with_no_client_auth(),
            Some(ca_file) => builder.with_client_cert_verifier(clients::verifier(
                ca_file,
                options.is_client_certificate_optional,
                provider.clone(),
            )?),
        };
        let certified = certified(&provider, options, chain, key)?;
        let is_usable = versions.contains(&&TLS13)
            || provider.cipher_suites.iter().any(|suite| match suite {
                SupportedCipherSuite::Tls12(suite) => {
                    certified.key.choose_scheme(suite.sign).is_some()
                }
                SupportedCipherSuite::Tls13(_) => false,
            });
        if !is_usable {
            return Err(Error::Value {
                option: "ciphers",
                value: ciphers.to_owned(),
                problem: format!(
                    "none of them can be used with the key in {}",
                    options.key_file.display()
                ),
                remedy: "name ciphers for the kind of that key (RSA or ECDSA), or leave the option empty",
            });
        }
        let mut server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        server.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
        Ok(Self {
            server: Arc::new(server),
        })
    }

    /// The same, without a warning: for who only asks whether the files can serve. The server that loads
    /// them will warn.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_quietly(options: &Options) -> Result<Self, Error> {
        with_default(&Dispatch::none(), || Self::load(options))
    }

    /// The server's side of a new connection.
    pub(super) fn accept(&self) -> Result<ServerConnection, rustls::Error> {
        ServerConnection::new(self.server.clone())
    }
}

/// Certificates and key, which must belong together. A certificate that rustls would not accept from
/// a peer, as one of X.509 version 1, is served all the same: clients judge it.
fn certified(
    provider: &CryptoProvider,
    options: &Options,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, Error> {
    let refused = |problem, remedy| Error::Value {
        option: "key_file",
        value: options.key_file.display().to_string(),
        problem,
        remedy,
    };
    let cert_file = options.cert_file.display();
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| {
            let kind = chain.first().map(|leaf| validity::kind_of_key(leaf));
            let kind = kind.unwrap_or_default();
            let problem = format!("cannot serve ({error}); {cert_file} is for {kind}");
            refused(problem, USABLE_KEYS)
        })?;
    let public = key.public_key();
    let certified = CertifiedKey::new(chain, key.clone());
    let is_for = |certificate: &CertificateDer<'_>| {
        public
            .as_ref()
            .is_some_and(|public| validity::is_for_key(certificate, public))
    };
    match certified.keys_match() {
        Ok(()) | Err(TlsError::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(TlsError::InvalidCertificate(_)) if certified.cert.first().is_some_and(is_for) => {
            Ok(certified)
        }
        Err(error) => {
            // The same fault under its own name: rustls judges a certificate before its key.
            let is_judged = matches!(error, TlsError::InvalidCertificate(_));
            let error = if is_judged {
                InconsistentKeys::KeyMismatch.into()
            } else {
                error
            };
            let remedy = if certified.cert.iter().any(is_for) {
                "put the certificate of that key first in cert_file, then the intermediate ones"
            } else {
                "give the private key that the certificate was made for"
            };
            Err(refused(
                format!("cannot be used with {cert_file} ({error})"),
                remedy,
            ))
        }
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
        let error = Config::load(&Options {
            cert_file: "/nonexistent/server.crt".into(),
            ..Options::default()
        })
        .unwrap_err();

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
