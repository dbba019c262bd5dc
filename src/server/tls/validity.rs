//! Whether a certificate is valid today: read from its DER, which rustls does not show.
//!
//! Owns just enough of X.509 (RFC 5280 section 4.1) to find two dates. Never decides trust: clients
//! do that.

use std::time::Duration;

/// DER tags on the way to the dates.
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const EXPLICIT_0: u8 = 0xa0;

/// What is wrong with the certificate's dates, if anything.
///
/// # Errors
/// What else is wrong with it.
pub(super) fn check(certificate: &[u8]) -> Result<Option<String>, String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "certificates are dated by the calendar"
    )]
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .as_ref()
        .map_or(0, Duration::as_secs);
    check_at(certificate, i64::try_from(now).unwrap_or(i64::MAX))
}

fn check_at(certificate: &[u8], now: i64) -> Result<Option<String>, String> {
    let (not_before, not_after) =
        dates(certificate).ok_or_else(|| "is not an X.509 certificate".to_owned())?;
    if now < not_before {
        return Ok(Some(format!(
            "is not valid before {}",
            calendar(not_before)
        )));
    }
    if now > not_after {
        return Ok(Some(format!("has expired on {}", calendar(not_after))));
    }
    Ok(None)
}

fn dates(certificate: &[u8]) -> Option<(i64, i64)> {
    let (certificate, _) = take(certificate, SEQUENCE)?;
    let (mut rest, _) = take(certificate, SEQUENCE)?;
    if rest.first() == Some(&EXPLICIT_0) {
        rest = take(rest, EXPLICIT_0)?.1;
    }
    // Serial number, signature algorithm, issuer; then the validity.
    rest = take(rest, INTEGER)?.1;
    rest = take(rest, SEQUENCE)?.1;
    rest = take(rest, SEQUENCE)?.1;
    let (validity, _) = take(rest, SEQUENCE)?;
    let (not_before, validity) = time(validity)?;
    let (not_after, _) = time(validity)?;
    Some((not_before, not_after))
}

/// Content of the first element, which must have the tag, and what follows it.
fn take(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, bytes) = bytes.split_first()?;
    if found != tag {
        return None;
    }
    let (&first, mut bytes) = bytes.split_first()?;
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        let count = usize::from(first & 0x7f);
        if count > 4 {
            return None;
        }
        let (digits, rest) = bytes.split_at_checked(count)?;
        length = digits
            .iter()
            .fold(0, |length, digit| length << 8 | usize::from(*digit));
        bytes = rest;
    }
    bytes.split_at_checked(length)
}

/// Seconds since 1970 of the first element, and what follows it.
fn time(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (text, rest, century_digits) = if bytes.first() == Some(&UTC_TIME) {
        let (text, rest) = take(bytes, UTC_TIME)?;
        (text, rest, 2)
    } else {
        let (text, rest) = take(bytes, GENERALIZED_TIME)?;
        (text, rest, 4)
    };
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, text) = text.split_at_checked(century_digits)?;
    let mut year: i64 = year.parse().ok()?;
    if century_digits == 2 {
        year += if year < 50 { 2000 } else { 1900 };
    }
    if text.len() != 10 {
        return None;
    }
    let number = |at: usize| text.get(at..at + 2)?.parse::<i64>().ok();
    let days = days_since_1970(year, number(0)?, number(2)?);
    Some((
        ((days * 24 + number(4)?) * 60 + number(6)?) * 60 + number(8)?,
        rest,
    ))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar; years begin in March here, so that the
/// leap day is a year's last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

fn calendar(seconds: i64) -> String {
    let mut days = seconds.div_euclid(86_400);
    let mut year = 1970;
    loop {
        let length = days_since_1970(year + 1, 1, 1) - days_since_1970(year, 1, 1);
        if days < length || year > 9998 {
            break;
        }
        days -= length;
        year += 1;
    }
    let start = days_since_1970(year, 1, 1);
    let month = (1..=12)
        .rev()
        .find(|m| days_since_1970(year, *m, 1) - start <= days)
        .unwrap_or(1);
    let day = days - (days_since_1970(year, month, 1) - start) + 1;
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate that has nothing but dates.
    fn certificate(not_before: &str, not_after: &str) -> Vec<u8> {
        let element = |tag: u8, content: &[u8]| {
            let length = u8::try_from(content.len()).unwrap();
            [&[tag, 0x81, length], content].concat()
        };
        let time = |text: &str| {
            element(
                if text.len() == 13 {
                    UTC_TIME
                } else {
                    GENERALIZED_TIME
                },
                text.as_bytes(),
            )
        };
        let validity = [time(not_before), time(not_after)].concat();
        let body = [
            element(EXPLICIT_0, &element(INTEGER, &[2])),
            element(INTEGER, &[1]),
            element(SEQUENCE, &[]),
            element(SEQUENCE, &[]),
            element(SEQUENCE, &validity),
        ]
        .concat();
        element(SEQUENCE, &element(SEQUENCE, &body))
    }

    #[test]
    fn a_certificate_is_valid_between_its_dates_only() {
        let certificate = certificate("191009095930Z", "20500101000000Z");
        let start = 1_570_615_170;
        let end = 2_524_608_000;

        assert_eq!(check_at(&certificate, start), Ok(None));
        assert_eq!(check_at(&certificate, end), Ok(None));
        assert_eq!(
            check_at(&certificate, start - 1),
            Ok(Some("is not valid before 2019-10-09".to_owned()))
        );
        assert_eq!(
            check_at(&certificate, end + 1),
            Ok(Some("has expired on 2050-01-01".to_owned()))
        );
    }

    #[test]
    fn what_is_no_certificate_is_refused_without_a_panic() {
        let whole = certificate("191009095930Z", "20500101000000Z");
        for length in 0..whole.len() {
            let result = check_at(&whole[..length], 0);
            assert_eq!(
                result,
                Err("is not an X.509 certificate".to_owned()),
                "{length}"
            );
        }
    }

    #[test]
    fn leap_days_are_counted() {
        assert_eq!(days_since_1970(1970, 1, 1), 0);
        assert_eq!(
            days_since_1970(2000, 3, 1) - days_since_1970(2000, 2, 28),
            2
        );
        assert_eq!(calendar(951_782_400), "2000-02-29");
    }
}
