//! Which requests have no line in the access log.
//!
//! Owns the rules by field and by status, for the log that the server writes and for the one that
//! goes through Python's logging alike. Decides by the request itself, whatever thread asks and
//! whenever the answer ends. Writes nothing. Rules of the patterns: PCRE as far as `fancy-regex`
//! has it, since uWSGI's `donotlog:` routes are such patterns.

use super::super::environ::Target;
use super::super::request::RequestHead;
use super::super::{Endpoints, Refused};
use fancy_regex::Regex;
use std::borrow::Cow;

/// What a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The header `User-Agent`.
    UserAgent,
    /// The address of the client.
    Client,
    /// The header `Host`, or the host of a target in absolute form.
    Host,
    /// The path, percent escapes decoded.
    Path,
    /// The path as it was sent, and the query behind it.
    Uri,
}

impl Field {
    /// Fields by the names that users give them.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("user-agent", Self::UserAgent),
        ("client", Self::Client),
        ("host", Self::Host),
        ("path", Self::Path),
        ("uri", Self::Uri),
    ];

    /// The field of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, field)| *field)
    }

    fn text<'a>(self, request: &'a RequestHead, endpoints: &'a Endpoints) -> Cow<'a, [u8]> {
        let target = || Target::of(request).ok();
        match self {
            Self::UserAgent => header(request, "user-agent"),
            Self::Client => client(endpoints),
            Self::Host => match target().and_then(|target| target.host) {
                Some(host) => Cow::Borrowed(host),
                None => header(request, "host"),
            },
            Self::Path => target().map_or(Cow::Borrowed(b""), |target| target.path_info()),
            Self::Uri => target().map_or_else(
                || Cow::Borrowed(request.target()),
                |target| {
                    if target.query.is_empty() {
                        Cow::Borrowed(target.raw_path)
                    } else {
                        Cow::Owned([target.raw_path, target.query].join(&b'?'))
                    }
                },
            ),
        }
    }
}

fn header<'a>(request: &'a RequestHead, name: &str) -> Cow<'a, [u8]> {
    Cow::Borrowed(request.header(name).unwrap_or_default())
}

fn client(endpoints: &Endpoints) -> Cow<'_, [u8]> {
    Cow::Borrowed(endpoints.peer_text().map_or(b"", |(address, _)| address))
}

/// Why rules were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// There is no such field.
    #[error("{0:?} is no field; give user-agent, client, host, path or uri")]
    Field(String),
    /// The pattern cannot be understood.
    #[error("{pattern:?} is no regular expression: {problem}")]
    Pattern {
        /// As it was given.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such class of statuses.
    #[error("{0} is no class of statuses; give 1 to 5")]
    Class(u8),
}

/// The rules. Without any, every request has a line.
#[derive(Debug, Default)]
pub struct Filter {
    silent: Vec<(Field, Regex)>,
    /// Classes that have lines; empty for all.
    classes: Vec<u16>,
}

impl Filter {
    /// Rules from the names of fields and their patterns, found anywhere in the field, and from the
    /// classes of statuses (4 for 400 to 499) that have lines; none for all of them.
    ///
    /// # Errors
    /// [`FilterError`].
    pub fn new<'a>(
        silent: impl IntoIterator<Item = (&'a str, &'a str)>,
        classes: &[u8],
    ) -> Result<Self, FilterError> {
        let rule = |(name, pattern): (&str, &str)| {
            let field = Field::named(name).ok_or_else(|| FilterError::Field(name.to_owned()))?;
            let regex = Regex::new(pattern).map_err(|error| FilterError::Pattern {
                pattern: pattern.to_owned(),
                problem: error.to_string(),
            })?;
            Ok((field, regex))
        };
        if let Some(class) = classes.iter().find(|class| !(1..=5).contains(*class)) {
            return Err(FilterError::Class(*class));
        }
        Ok(Self {
            silent: silent.into_iter().map(rule).collect::<Result<_, _>>()?,
            classes: classes.iter().copied().map(u16::from).collect(),
        })
    }

    /// True when an answer with that status to that request has a line.
    #[must_use]
    pub fn admits(&self, request: &RequestHead, endpoints: &Endpoints, status: u16) -> bool {
        self.admits_status(status)
            && !self
                .silent
                .iter()
                .any(|(field, regex)| is_match(regex, &field.text(request, endpoints)))
    }

    /// The same for a request that the server refused: of its head nothing is believed.
    #[must_use]
    pub fn admits_refused(&self, refused: &Refused) -> bool {
        self.admits_status(refused.status.as_u16())
            && !self.silent.iter().any(|(field, regex)| {
                *field == Field::Client && is_match(regex, &client(&refused.endpoints))
            })
    }

    fn admits_status(&self, status: u16) -> bool {
        self.classes.is_empty() || self.classes.contains(&(status / 100))
    }
}

/// A pattern that gives up on a text, after a million steps back, has not matched it.
fn is_match(regex: &Regex, text: &[u8]) -> bool {
    regex
        .is_match(&*String::from_utf8_lossy(text))
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, StatusCode, Version};
    use std::time::Duration;

    fn request(target: &str) -> RequestHead {
        let headers: [(&[u8], &[u8]); 2] = [(b"user-agent", b"kube-probe/1.29"), (b"Host", b"a:1")];
        RequestHead::of(Method::GET, target.as_bytes(), Version::HTTP_11, &headers)
    }

    fn endpoints() -> Endpoints {
        Endpoints::new(Some("10.0.0.1:5".parse().unwrap()), None, false)
    }

    fn admits(field: &str, pattern: &str, target: &str) -> bool {
        let filter = Filter::new([(field, pattern)], &[]).unwrap();
        filter.admits(&request(target), &endpoints(), 200)
    }

    #[test]
    fn a_request_has_no_line_when_a_field_matches_anywhere() {
        for (field, pattern) in [
            ("user-agent", "^kube-probe/"),
            ("client", r"^10\.0\."),
            ("host", "^a:1$"),
            ("path", "^/a b$"),
            ("uri", r"^/a%20b\?full$"),
            ("uri", r"^/(?!v2)"),
        ] {
            assert!(!admits(field, pattern, "/a%20b?full"), "{field} {pattern}");
        }
        assert!(admits("path", "full", "/a%20b?full"));
        assert!(admits("host", "^b$", "/"));
        assert!(!admits("host", "^b$", "http://b/"));
    }

    #[test]
    fn statuses_outside_of_the_classes_have_no_line() {
        let filter = Filter::new([], &[4, 5]).unwrap();
        let admits = |status| filter.admits(&request("/"), &endpoints(), status);

        assert!(!admits(200) && !admits(304));
        assert!(admits(404) && admits(504));
    }

    #[test]
    fn of_a_refused_request_only_client_and_status_are_looked_at() {
        let refused = Refused {
            endpoints: endpoints(),
            line: b"GET /health".to_vec(),
            status: StatusCode::BAD_REQUEST,
            sent: 0,
            wall: Duration::ZERO,
        };
        let admits = |rules: &[(&str, &str)], classes: &[u8]| {
            let filter = Filter::new(rules.iter().copied(), classes).unwrap();
            filter.admits_refused(&refused)
        };

        assert!(admits(&[("path", ""), ("uri", "health")], &[]));
        assert!(!admits(&[("client", "^10")], &[]));
        assert!(!admits(&[], &[5]));
    }

    #[test]
    fn rules_that_mean_nothing_are_refused() {
        let refuse = |rule, classes: &[u8]| Filter::new([rule], classes).unwrap_err().to_string();

        assert!(refuse(("cookie", "x"), &[]).contains("user-agent, client"));
        assert!(refuse(("path", "("), &[]).contains("is no regular expression"));
        assert!(refuse(("path", "x"), &[6]).contains("give 1 to 5"));
    }

    #[test]
    fn a_pattern_that_runs_away_costs_no_line_and_no_hang() {
        let target = format!("/{}", "a".repeat(5000));

        assert!(admits("path", r"(?=(a+)+$)\1b", &target));
    }
}
