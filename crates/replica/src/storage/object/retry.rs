//! Which failures of an object store pass, how often a request is tried, and what an operator is
//! told in the end. Sends nothing itself.

use super::super::StorageError;
use object_store::Error;
use std::{error::Error as _, io, time::Duration};
use uuid::Uuid;

/// How long a request and all its tries may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// No try begins later than this after the first one.
    pub(super) deadline: Duration,
    /// One try; beyond it the answer counts as lost.
    pub(super) attempt: Duration,
}

impl Patience {
    /// For everything that somebody needs: longer than a server's restart, shorter than the five
    /// minutes for which a signature holds.
    pub(super) const FULL: Patience =
        Patience { deadline: Duration::from_secs(180), attempt: Duration::from_secs(60) };
    /// For tidying up, which may as well be left undone.
    pub(super) const SHORT: Patience =
        Patience { deadline: Duration::from_secs(5), attempt: Duration::from_secs(10) };
}

/// Longest text of an error, in characters: more is not read by anybody.
const ERROR_CHARS_MAX: usize = 600;
/// First pause between two tries; it doubles up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The pause after try number `tries`, counted from 1: between a half and the whole of its step,
/// so that many clients do not come back at once.
pub(super) fn pause(tries: u32) -> Duration {
    let step = PAUSE_FIRST.saturating_mul(1 << tries.clamp(1, 16).saturating_sub(1)).min(PAUSE_MAX);
    let random = f64::from(Uuid::new_v4().as_fields().0) / f64::from(u32::MAX);
    step.mul_f64(0.5 + random / 2.0)
}

/// What a failed try means.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It may work later. Whether the request had an effect is not known.
    Passing(String),
    /// It never will.
    Final(StorageError),
}

/// Judges what the object store answered to `action` on `name`.
pub(super) fn judge(action: &'static str, name: &str, error: &Error) -> Trouble {
    let text = chain(error);
    let fail = |kind, text: String| {
        let (name, source) = (name.to_owned(), io::Error::new(kind, text));
        Trouble::Final(StorageError::Io { action, name, source })
    };
    let refused = |text: String| {
        let why = format!("the store refuses these credentials: {text}");
        fail(io::ErrorKind::PermissionDenied, why)
    };
    let no_bucket = ["NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"];
    match error {
        _ if no_bucket.iter().any(|code| text.contains(code)) => {
            let why = format!("there is no such bucket or container: {text}");
            fail(io::ErrorKind::NotFound, why)
        }
        Error::NotFound { .. } => Trouble::Final(StorageError::Absent { name: name.to_owned() }),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => refused(text),
        Error::NotSupported { .. } | Error::NotImplemented { .. } => {
            fail(io::ErrorKind::Unsupported, text)
        }
        Error::InvalidPath { .. } | Error::UnknownConfigurationKey { .. } => {
            fail(io::ErrorKind::InvalidInput, text)
        }
        _ => match status(&text) {
            Some(501) => fail(io::ErrorKind::Unsupported, text),
            // A refused listing has no kind of its own.
            Some(401 | 403) => refused(text),
            // 409 between two conditional puts at once, 408 and 429: come back later.
            Some(status) if (300..500).contains(&status) && ![408, 409, 429].contains(&status) => {
                fail(io::ErrorKind::InvalidData, text)
            }
            _ => Trouble::Passing(text),
        },
    }
}

/// The error after the last try.
pub(super) fn given_up(action: &'static str, name: &str, tries: u32, why: &str) -> StorageError {
    let times = if tries == 1 { "once".to_owned() } else { format!("{tries} times") };
    let source = io::Error::new(io::ErrorKind::TimedOut, format!("tried {times}; {why}"));
    StorageError::Io { action, name: name.to_owned(), source }
}

/// The status in the text of an error: the library keeps its own type for it to itself.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// An error and its causes in one line, each once, and not longer than anybody reads.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        source = cause.source();
    }
    plain(&text)
}

/// What an error says, without the XML that servers wrap it in.
fn plain(text: &str) -> String {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(inner, _)| inner.trim())
    };
    let said = match (text.split_once("status code: "), element("Code")) {
        (Some((_, status)), Some(code)) => {
            let status = status.split(':').next().unwrap_or_default();
            format!("status code: {status}: {code}: {}", element("Message").unwrap_or_default())
        }
        _ => text.to_owned(),
    };
    let line: Vec<&str> = said.split_whitespace().collect();
    line.join(" ").chars().take(ERROR_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> Trouble {
        judge("put", "a", &Error::Generic { store: "test", source: text.into() })
    }

    #[test]
    fn what_may_work_later_is_told_from_what_never_will() {
        for passing in [
            "Server returned non-2xx status code: 503 Service Unavailable: SlowDown",
            "Server returned non-2xx status code: 429 Too Many Requests: ",
            "Server returned non-2xx status code: 409 Conflict: ConditionalRequestConflict",
            "connection reset by peer",
        ] {
            assert!(matches!(generic(passing), Trouble::Passing(_)), "{passing}");
        }
        for (text, kind) in [
            ("status code: 400 Bad Request: InvalidBucketName", io::ErrorKind::InvalidData),
            ("status code: 301 Moved: PermanentRedirect", io::ErrorKind::InvalidData),
            ("status code: 501 Not Implemented: If-None-Match", io::ErrorKind::Unsupported),
            ("status code: 404 Not Found: NoSuchBucket", io::ErrorKind::NotFound),
        ] {
            let trouble = generic(text);
            let Trouble::Final(StorageError::Io { source, .. }) = trouble else {
                panic!("{text}: {trouble:?}");
            };
            assert_eq!(source.kind(), kind, "{text}");
        }
    }

    #[test]
    fn an_error_in_xml_is_told_in_one_line() {
        let text = "Error performing PUT http://127.0.0.1/b - Server returned non-2xx status code: \
                    404 Not Found: <?xml?><Error><Code>NoSuchBucket</Code>\n\
                    <Message>It is\nnot there</Message></Error>";

        assert_eq!(plain(text), "status code: 404 Not Found: NoSuchBucket: It is not there");
        assert_eq!(plain("connection\n refused"), "connection refused");
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        for tries in 1..40 {
            let step = PAUSE_FIRST.saturating_mul(1 << (tries - 1).min(15)).min(PAUSE_MAX);
            let pause = pause(tries);
            assert!(pause >= step / 2 && pause <= step, "{tries}: {pause:?}");
        }
    }
}
