//! What a certificate says, which rustls does not show of one's own certificates: whether it is valid
//! today, and which key it is for.
//!
//! Owns the comparison of two dates with the calendar and the words for it; reading the certificate
//! is x509-parser's part. Never decides trust: clients do that. Rules: RFC 5280 sections 4.1.2.5 and
//! 4.1.2.7.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::public_key::PublicKey;
use x509_parser::time::ASN1Time;

/// What is wrong with the certificate's dates, if anything.
///
/// # Errors
/// What else is wrong with it.
pub(super) fn check(certificate: &[u8]) -> Result<Option<String>, String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "certificates are dated by the calendar"
    )]
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .as_ref()
        .map_or(0, Duration::as_secs);
    check_at(certificate, i64::try_from(now).unwrap_or(i64::MAX))
}

/// True when the certificate is for that public key, a `SubjectPublicKeyInfo` in DER.
pub(super) fn is_for_key(certificate: &[u8], public_key: &[u8]) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, certificate)| certificate.public_key().raw == public_key)
}

/// The kind of key that the certificate is for, in words.
pub(super) fn kind_of_key(certificate: &[u8]) -> String {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else {
        return "no key".to_owned();
    };
    let key = certificate.public_key();
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => format!("an RSA key of {} bits", bits(rsa.modulus)),
        Ok(PublicKey::EC(_)) => {
            let curve = key.algorithm.parameters.as_ref();
            let curve = curve.and_then(|parameters| parameters.as_oid().ok());
            let curve = curve.map_or_else(|| "of its own".to_owned(), |oid| oid.to_id_string());
            format!("an ECDSA key on the curve {curve}")
        }
        Ok(PublicKey::DSA(_)) => "a DSA key".to_owned(),
        _ => format!(
            "a key of the algorithm {}",
            key.algorithm.algorithm.to_id_string()
        ),
    }
}

/// The length of a number in bits, written from its greatest byte on; x509-parser has it in whole bytes.
fn bits(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let number = &number[zeros..];
    number
        .first()
        .map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
}

/// As [`check`], at *now* in seconds since 1970.
fn check_at(certificate: &[u8], now: i64) -> Result<Option<String>, String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| "is not an X.509 certificate".to_owned())?;
    let validity = certificate.validity();
    if now < validity.not_before.timestamp() {
        let date = calendar(validity.not_before);
        return Ok(Some(format!("is not valid before {date}")));
    }
    if now > validity.not_after.timestamp() {
        let date = calendar(validity.not_after);
        return Ok(Some(format!("has expired on {date}")));
    }
    Ok(None)
}

/// A date as `2026-11-28`.
fn calendar(time: ASN1Time) -> String {
    let date = time.to_datetime().date();
    let (year, month, day) = date.to_calendar_date();
    format!("{year:04}-{:02}-{day:02}", u8::from(month))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    fn certificate(name: &str) -> CertificateDer<'static> {
        let path = format!("{}/tests/certificates/{name}", env!("CARGO_MANIFEST_DIR"));
        CertificateDer::from_pem_file(path).unwrap()
    }

    #[test]
    fn a_certificate_is_valid_between_its_dates_only() {
        let certificate = certificate("expired.crt");
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).unwrap();
        let (start, end) = (parsed.validity().not_before, parsed.validity().not_after);
        let (begins, ends) = (start.timestamp(), end.timestamp());

        assert_eq!(check_at(&certificate, begins), Ok(None));
        assert_eq!(check_at(&certificate, ends), Ok(None));
        assert_eq!(
            check_at(&certificate, begins - 1),
            Ok(Some(format!("is not valid before {}", calendar(start))))
        );
        assert_eq!(
            check_at(&certificate, ends + 1),
            Ok(Some(format!("has expired on {}", calendar(end))))
        );
    }

    #[test]
    fn a_date_is_written_with_two_digits_for_month_and_day() {
        let time = |seconds| ASN1Time::from_timestamp(seconds).unwrap();

        assert_eq!(calendar(time(951_782_400)), "2000-02-29");
        assert_eq!(calendar(time(0)), "1970-01-01");
    }

    #[test]
    fn the_length_of_a_key_is_told_to_the_bit() {
        assert_eq!(bits(&[0, 0x80, 0]), 16);
        assert_eq!(bits(&[0x7f, 0xff]), 15);
        assert_eq!(bits(&[1, 0xff]), 9);
        assert_eq!(bits(&[0, 0]), 0);
    }

    #[test]
    fn what_is_no_certificate_is_refused_without_a_panic() {
        let whole = certificate("server.crt");
        for length in 0..whole.len() {
            let result = check_at(&whole[..length], 0);
            assert_eq!(
                result,
                Err("is not an X.509 certificate".to_owned()),
                "{length}"
            );
        }
    }
}
