//! Reads certificates and private keys from files in PEM, as far as OpenSSL would.
//!
//! Owns the labels of PEM, what stands around the certificates of OpenSSL's own formats, and keys
//! that a passphrase protects. Never judges what a certificate says. Rules: RFC 7468; PEM labels of
//! openssl-format-options(1); RFC 5958 and RFC 8018 for encrypted keys.

use super::{Error, Options};
use crate::files::{self, Unread};
use pkcs8::EncryptedPrivateKeyInfo;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::path::Path;

/// Labels of certificates that OpenSSL reads beside `CERTIFICATE`.
const OTHER_CERTIFICATES: [&[u8]; 2] = [b"TRUSTED CERTIFICATE", b"X509 CERTIFICATE"];
const ENCRYPTED_KEY: &[u8] = b"ENCRYPTED PRIVATE KEY";
/// What a key says that is encrypted by a format older than PKCS #8.
const LEGACY_ENCRYPTION: &[u8] = b"Proc-Type: 4,ENCRYPTED";

/// All certificates of a file, at least one.
pub(super) fn certificates(
    option: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let remedy = "give one or more certificates in PEM";
    let bytes = read(option, path)?;
    let mut text = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        match label(line) {
            Some((kind, label)) if OTHER_CERTIFICATES.contains(&label) => {
                text.extend_from_slice(b"-----");
                text.extend_from_slice(kind);
                text.extend_from_slice(b" CERTIFICATE-----\n");
            }
            _ => text.extend_from_slice(line),
        }
    }
    let found = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| refused(option, path, &bytes, &error, remedy))?;
    if found.is_empty() {
        let error = pem::Error::NoItemsFound;
        return Err(refused(option, path, &bytes, &error, remedy));
    }
    Ok(found.into_iter().map(alone).collect())
}

/// A certificate without what follows it: OpenSSL keeps its trust settings there.
fn alone(certificate: CertificateDer<'static>) -> CertificateDer<'static> {
    match x509_parser::parse_x509_certificate(&certificate) {
        Ok((rest, _)) if !rest.is_empty() => {
            let length = certificate.len() - rest.len();
            certificate[..length].to_vec().into()
        }
        _ => certificate,
    }
}

/// The first private key of the key file, decrypted where it is encrypted.
pub(super) fn private_key(options: &Options) -> Result<PrivateKeyDer<'static>, Error> {
    let path = &options.key_file;
    let remedy = "give a private key in PEM";
    let bytes = read("key_file", path)?;
    let value = |problem: String, remedy| Error::Value {
        option: "key_file",
        value: path.display().to_string(),
        problem,
        remedy,
    };
    let Some((label, block)) = first_key(&bytes) else {
        let error = pem::Error::NoItemsFound;
        return Err(refused("key_file", path, &bytes, &error, remedy));
    };
    if memchr::memmem::find(block, LEGACY_ENCRYPTION).is_some() {
        return Err(value(
            "is encrypted in a format older than PKCS #8".to_owned(),
            "convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW",
        ));
    }
    if label != ENCRYPTED_KEY {
        return PrivateKeyDer::from_pem_slice(block).map_err(|error| {
            if !matches!(error, pem::Error::NoItemsFound) {
                return refused("key_file", path, &bytes, &error, remedy);
            }
            let kind = label.escape_ascii();
            value(
                format!("holds a key of the kind {kind}, which is not supported"),
                super::USABLE_KEYS,
            )
        });
    }
    let Some(passphrase_file) = &options.passphrase_file else {
        return Err(value(
            "is encrypted, and no passphrase is given".to_owned(),
            "name a file that holds its passphrase (--keyfile-passphrase-file of osloxide serve, the \
             variable OSLOXIDE_KEY_PASSPHRASE_FILE of any service), or decrypt the key: openssl pkey \
             -in OLD -out NEW",
        ));
    };
    let passphrase = read("key_passphrase_file", passphrase_file)?;
    let passphrase = passphrase
        .split(|byte| matches!(byte, b'\r' | b'\n'))
        .next()
        .unwrap_or_default();
    let as_plain = relabelled(block);
    let der = PrivatePkcs8KeyDer::from_pem_slice(&as_plain)
        .map_err(|error| refused("key_file", path, &bytes, &error, remedy))?;
    let plain = EncryptedPrivateKeyInfo::try_from(der.secret_pkcs8_der())
        .and_then(|info| info.decrypt(passphrase))
        .map_err(|error| {
            value(
                format!(
                    "cannot be decrypted with the passphrase in {} ({error})",
                    passphrase_file.display()
                ),
                "give its passphrase in the first line of that file; a key that is encrypted in an \
                 unusual way is converted by openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW",
            )
        })?;
    Ok(PrivatePkcs8KeyDer::from(plain.as_bytes().to_vec()).into())
}

/// The label of the first private key in PEM, and its lines.
fn first_key(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut start = 0;
    let mut found: Option<(&[u8], usize)> = None;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let end = start + line.len();
        match (label(line), found) {
            (Some((b"BEGIN", label)), _) if label.ends_with(b"PRIVATE KEY") => {
                found = Some((label, start));
            }
            (Some((b"END", closes)), Some((label, begin))) if closes == label => {
                return Some((label, &bytes[begin..end]));
            }
            _ => {}
        }
        start = end;
    }
    // Without its end it is reported as what it is.
    found.map(|(label, begin)| (label, &bytes[begin..]))
}

/// The lines of an encrypted key under the label of one that is not.
fn relabelled(block: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(block.len());
    for line in block.split_inclusive(|byte| *byte == b'\n') {
        match label(line) {
            Some((kind, _)) => {
                text.extend_from_slice(b"-----");
                text.extend_from_slice(kind);
                text.extend_from_slice(b" PRIVATE KEY-----\n");
            }
            None => text.extend_from_slice(line),
        }
    }
    text
}

/// `BEGIN` or `END` and the label of a line of PEM that has one.
fn label(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let inner = line
        .trim_ascii_end()
        .strip_prefix(b"-----")?
        .strip_suffix(b"-----")?;
    let kind = if inner.starts_with(b"BEGIN ") {
        b"BEGIN".as_slice()
    } else if inner.starts_with(b"END ") {
        b"END".as_slice()
    } else {
        return None;
    };
    Some((kind, &inner[kind.len() + 1..]))
}

/// The bytes of a file, without the byte order mark that some editors put in front.
fn read(option: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = files::read(path).map_err(|unread| match unread {
        Unread::Failed(source) => Error::Read {
            option,
            path: path.display().to_string(),
            source,
        },
        Unread::Silent | Unread::TooLong => Error::Value {
            option,
            value: path.display().to_string(),
            problem: unread.to_string(),
            remedy: match unread {
                Unread::TooLong => "name a file in PEM",
                Unread::Failed(_) | Unread::Silent => {
                    "name a file, or start what writes to the pipe first"
                }
            },
        },
    })?;
    Ok(match bytes.strip_prefix(b"\xef\xbb\xbf") {
        Some(text) => text.to_vec(),
        None => bytes,
    })
}

fn refused(
    option: &'static str,
    path: &Path,
    bytes: &[u8],
    error: &pem::Error,
    remedy: &'static str,
) -> Error {
    // DER begins with a SEQUENCE, in a certificate, a key and PKCS #12 alike.
    let is_der = bytes.starts_with(&[0x30]);
    let (problem, remedy) = if !matches!(error, pem::Error::NoItemsFound) {
        (format!("is not PEM ({error})"), remedy)
    } else if is_der {
        (
            "is not PEM but DER or PKCS #12".to_owned(),
            "convert it with openssl x509, openssl pkey or openssl pkcs12",
        )
    } else {
        ("holds nothing of the kind".to_owned(), remedy)
    };
    Error::Value {
        option,
        value: path.display().to_string(),
        problem,
        remedy,
    }
}
