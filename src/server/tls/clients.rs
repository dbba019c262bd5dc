//! Judges the certificates of clients.
//!
//! Owns which authorities are trusted and whether a client needs a certificate. Chains are built and
//! verified by rustls-webpki. Rules: RFC 5280 section 6; what OpenSSL accepts beyond it is said
//! where it is done.

use super::{Error, files, validity};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use std::path::Path;
use std::sync::Arc;
use tracing::warn;

/// Demands certificates of the authorities in `ca_file`; of clients that have one, if
/// `is_optional`.
pub(super) fn verifier(
    ca_file: &Path,
    is_optional: bool,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let unusable = |problem: String| Error::Value {
        option: "ca_file",
        value: ca_file.display().to_string(),
        problem,
        remedy: "give the certificates of the authorities that client certificates come from",
    };
    let mut roots = RootCertStore::empty();
    let mut trusted = Vec::new();
    for (place, certificate) in files::certificates("ca_file", ca_file)?
        .into_iter()
        .enumerate()
    {
        // One that cannot be used does not spoil a bundle of hundreds.
        match roots.add(certificate.clone()) {
            Ok(()) => trusted.push(certificate),
            Err(error) => {
                let ca_file = ca_file.display();
                warn!(option = "ca_file", %ca_file, place, %error, "an authority cannot be used; its clients will be refused");
            }
        }
    }
    if trusted.is_empty() {
        return Err(unusable("holds no certificate that can be used".to_owned()));
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if is_optional {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    let chains = builder
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    Ok(Arc::new(Verifier { chains, trusted }))
}

/// Accepts chains, and a certificate that is trusted by itself. A client whose self-signed
/// certificate is the authority has no chain; OpenSSL ends the search at what it trusts.
#[derive(Debug)]
struct Verifier {
    chains: Arc<dyn ClientCertVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl ClientCertVerifier for Verifier {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.chains
            .verify_client_cert(end_entity, intermediates, now)
            .or_else(|error| {
                let is_trusted = self.trusted.iter().any(|known| known == end_entity)
                    && validity::check(end_entity) == Ok(None);
                // That the client has its key is proven by the signature that follows.
                if is_trusted {
                    Ok(ClientCertVerified::assertion())
                } else {
                    Err(error)
                }
            })
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chains.client_auth_mandatory()
    }
}
