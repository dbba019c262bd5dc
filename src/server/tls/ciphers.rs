//! OpenSSL's cipher lists, as far as rustls can honour them.
//!
//! Owns the mapping of names; everything that is neither a suite of ours nor known to change
//! nothing is refused. Syntax from openssl-ciphers(1).

use super::Error;
use rustls::{CipherSuite, SupportedCipherSuite};

/// OpenSSL's names of the TLS 1.2 suites, with the properties that a list may select them by.
const SUITES: [(&str, CipherSuite, &[&str]); 6] = [
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        &["AES", "AES256", "AESGCM", "SHA384", "aECDSA", "ECDSA"],
    ),
    (
        "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        &["AES", "AES256", "AESGCM", "SHA384", "aRSA", "RSA"],
    ),
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        &["AES", "AES128", "AESGCM", "SHA256", "aECDSA", "ECDSA"],
    ),
    (
        "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        &["AES", "AES128", "AESGCM", "SHA256", "aRSA", "RSA"],
    ),
    (
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        &["CHACHA20", "aECDSA", "ECDSA"],
    ),
    (
        "ECDHE-RSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        &["CHACHA20", "aRSA", "RSA"],
    ),
];

/// OpenSSL's names of the TLS 1.3 suites. A list cannot switch them off; nor can it with OpenSSL.
const TLS13: [&str; 3] = [
    "TLS_AES_256_GCM_SHA384",
    "TLS_AES_128_GCM_SHA256",
    "TLS_CHACHA20_POLY1305_SHA256",
];

/// Properties that all our suites have.
const COMMON: [&str; 12] = [
    "ALL",
    "DEFAULT",
    "COMPLEMENTOFALL",
    "HIGH",
    "SECURE",
    "TLSv1.2",
    "ECDHE",
    "EECDH",
    "kECDHE",
    "kEECDH",
    "AEAD",
    "FIPS",
];

/// Properties that none of our suites has: excluding them changes nothing.
const ABSENT: [&str; 42] = [
    "aNULL",
    "eNULL",
    "NULL",
    "LOW",
    "MEDIUM",
    "EXP",
    "EXPORT",
    "EXPORT40",
    "EXPORT56",
    "DES",
    "3DES",
    "RC2",
    "RC4",
    "MD5",
    "IDEA",
    "SEED",
    "CAMELLIA",
    "CAMELLIA128",
    "CAMELLIA256",
    "ARIA",
    "ARIA128",
    "ARIA256",
    "AESCCM",
    "AESCCM8",
    "PSK",
    "kPSK",
    "aPSK",
    "ECDHEPSK",
    "DHEPSK",
    "RSAPSK",
    "SRP",
    "DSS",
    "aDSS",
    "kRSA",
    "DH",
    "kDHE",
    "kEDH",
    "DHE",
    "EDH",
    "ADH",
    "AECDH",
    "GOST",
];
const ABSENT_TOO: [&str; 7] = ["SSLv2", "SSLv3", "TLSv1", "TLSv1.0", "SHA1", "SHA", "kECDH"];

/// The suites that a list asks for, in its order, and all those of TLS 1.3, which OpenSSL's lists
/// do not concern.
pub(in crate::server) fn parse(
    list: &str,
    available: &[SupportedCipherSuite],
) -> Result<Vec<SupportedCipherSuite>, Error> {
    let refused = |problem: String| Error::Value {
        option: "ciphers",
        value: list.to_owned(),
        problem,
        remedy: "use ECDHE suites with AES-GCM or CHACHA20-POLY1305, or leave the option empty",
    };
    let mut names_tls13 = false;
    let mut chosen: Vec<CipherSuite> = Vec::new();
    let mut banned: Vec<CipherSuite> = Vec::new();
    for item in list.split([':', ',', ' ']).filter(|item| !item.is_empty()) {
        let unknown = || refused(format!("{item} is not supported"));
        if let Some(command) = item.strip_prefix('@') {
            match command {
                // Our order is by strength, and all suites satisfy these levels.
                "STRENGTH" | "SECLEVEL=0" | "SECLEVEL=1" | "SECLEVEL=2" | "SECLEVEL=3" => continue,
                _ => return Err(unknown()),
            }
        }
        let (operation, name) = match item.split_at_checked(1) {
            Some((operation @ ("!" | "-" | "+"), name)) => (operation, name),
            _ => ("", item),
        };
        if name.starts_with("TLS_") {
            if !operation.is_empty() || !TLS13.contains(&name) {
                return Err(refused(format!(
                    "{item} is not supported; the suites of TLS 1.3 are always on"
                )));
            }
            names_tls13 = true;
            continue;
        }
        let matching = matching(name).ok_or_else(unknown)?;
        match operation {
            "" if matching.is_empty() => return Err(unknown()),
            "" => {
                let new = |suite: &CipherSuite| !chosen.contains(suite) && !banned.contains(suite);
                let new: Vec<_> = matching.into_iter().filter(new).collect();
                chosen.extend(new);
            }
            "+" => {
                let (moved, rest) = chosen.iter().partition(|suite| matching.contains(suite));
                chosen = rest;
                chosen.extend::<Vec<_>>(moved);
            }
            _ => {
                chosen.retain(|suite| !matching.contains(suite));
                if operation == "!" {
                    banned.extend(matching);
                }
            }
        }
    }
    if chosen.is_empty() && !names_tls13 {
        return Err(refused("names no supported cipher".to_owned()));
    }
    let is_tls13 = |suite: &&SupportedCipherSuite| suite.tls13().is_some();
    let mut suites: Vec<_> = available.iter().filter(is_tls13).copied().collect();
    for wanted in chosen {
        suites.extend(available.iter().filter(|suite| suite.suite() == wanted));
    }
    Ok(suites)
}

/// The suites that a name, or several joined by `+`, stands for; `None` for an unknown name.
fn matching(name: &str) -> Option<Vec<CipherSuite>> {
    if let Some((_, suite, _)) = SUITES.iter().find(|(known, ..)| *known == name) {
        return Some(vec![*suite]);
    }
    let mut left: Vec<_> = SUITES.iter().collect();
    for property in name.split('+') {
        if COMMON.contains(&property) {
            continue;
        }
        let is_known = ABSENT.contains(&property)
            || ABSENT_TOO.contains(&property)
            || SUITES
                .iter()
                .any(|(_, _, properties)| properties.contains(&property));
        if !is_known {
            return None;
        }
        left.retain(|(_, _, properties)| properties.contains(&property));
    }
    Some(left.into_iter().map(|(_, suite, _)| *suite).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;

    #[test]
    fn suites_of_tls_13_select_none_of_tls_12_and_cannot_be_excluded() {
        assert!(tls12("TLS_AES_128_GCM_SHA256").is_empty());
        assert_eq!(
            tls12("TLS_AES_256_GCM_SHA384:ECDHE-RSA-AES128-GCM-SHA256"),
            [CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]
        );
        for list in [
            "ALL:!TLS_AES_128_GCM_SHA256",
            "TLS_AES_128_CCM_SHA256",
            "TLS_AES_",
        ] {
            assert!(parse(list, ALL_CIPHER_SUITES).is_err(), "{list}");
        }
    }

    fn tls12(list: &str) -> Vec<CipherSuite> {
        parse(list, ALL_CIPHER_SUITES)
            .unwrap()
            .into_iter()
            .filter(|suite| suite.tls13().is_none())
            .map(|suite| suite.suite())
            .collect()
    }

    #[test]
    fn named_suites_come_in_the_order_of_the_list() {
        assert_eq!(
            tls12("ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384"),
            [
                CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
                CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
            ]
        );
    }

    #[test]
    fn usual_lists_are_understood() {
        assert_eq!(tls12("HIGH:!aNULL:!eNULL:!MD5:!RC4:!3DES").len(), 6);
        assert_eq!(
            tls12("ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:@STRENGTH").len(),
            6
        );
        assert_eq!(tls12("EECDH+AESGCM:!aECDSA").len(), 2);
        assert_eq!(tls12("ALL:-CHACHA20").len(), 4);
    }

    #[test]
    fn a_ban_outlasts_a_later_choice() {
        assert_eq!(tls12("!CHACHA20:ALL").len(), 4);
    }

    #[test]
    fn tls13_suites_are_always_there() {
        let suites = parse("ECDHE-RSA-AES128-GCM-SHA256", ALL_CIPHER_SUITES).unwrap();

        assert_eq!(
            suites
                .iter()
                .filter(|suite| suite.tls13().is_some())
                .count(),
            3
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for list in [
            "AES128-SHA",
            "RC4-SHA:HIGH",
            "HIGH:NONSENSE",
            "kRSA",
            "!ALL",
            "@SECLEVEL=9",
        ] {
            let message = parse(list, ALL_CIPHER_SUITES).unwrap_err().to_string();

            assert!(
                message.starts_with(&format!("ciphers = {list}: ")),
                "{message}"
            );
        }
    }
}
