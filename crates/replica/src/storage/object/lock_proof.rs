//! Whether a bucket keeps what it was given, proved by its owner's own failed deletion; and what a
//! bucket says of how long it keeps things, which proves nothing.
//!
//! The bucket itself sets the retention of every object (a default retention): nothing here does.

use super::{
    asked::{AskError, Bucket, failed, run},
    connect::ObjectPlace,
};
use object_store::{ObjectStore as _, PutMode, PutPayload};
use serde::Deserialize;
use uuid::Uuid;

/// Header with the retention's mode.
const MODE: &str = "x-amz-object-lock-mode";
/// Header with the time until which an object cannot be deleted.
const UNTIL: &str = "x-amz-object-lock-retain-until-date";
/// The mode in which not even the bucket's owner can delete.
const COMPLIANCE: &str = "COMPLIANCE";
/// Asks for a deletion that the other mode allows to whoever has the right to it.
const BYPASS: (&str, &str) = ("x-amz-bypass-governance-retention", "true");

/// What was proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockProof {
    /// The object that could not be deleted; it goes when its retention ends.
    pub object: String,
    /// Until when, as the server says it (RFC 3339).
    pub until: String,
}

/// Why nothing was proved.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Only S3 has it here.
    #[error(
        "object lock is supported for s3:// only: an immutability policy of Azure was not looked \
         for and is not used"
    )]
    NotSupported,
    /// The bucket has no versions, so it cannot have object lock.
    #[error("the bucket keeps no versions: object lock was not enabled when it was made")]
    NoVersions,
    /// The bucket does not retain what is put there.
    #[error("the bucket has no default retention in compliance mode: it says {mode:?}")]
    NoRetention {
        /// The mode that the server says of the object, if any.
        mode: String,
    },
    /// The deletion worked.
    #[error(
        "the bucket let a version be deleted that it had promised to keep until {until}, in the \
         mode {mode}: who has these keys can delete the store{}",
        if mode == COMPLIANCE { "" } else { "; only compliance mode keeps it from them" }
    )]
    Deleted {
        /// What it had promised.
        until: String,
        /// In which mode.
        mode: String,
    },
    /// A request failed.
    #[error(transparent)]
    Asked(AskError),
}

impl From<AskError> for LockError {
    fn from(error: AskError) -> LockError {
        match error {
            AskError::NotS3 => LockError::NotSupported,
            error @ (AskError::Connect(_) | AskError::Failed { .. }) => LockError::Asked(error),
        }
    }
}

/// For how long a bucket says that it keeps what is deleted or put in another's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// It does not.
    Nothing,
    /// As old versions, until somebody deletes those.
    Versions,
    /// As old versions that are locked for so long after they were put.
    Locked {
        /// `COMPLIANCE` or `GOVERNANCE`.
        mode: String,
        /// Days.
        days: u64,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LockConfiguration {
    rule: Option<LockRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LockRule {
    default_retention: Retained,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Retained {
    mode: String,
    days: Option<u64>,
    years: Option<u64>,
}

impl ObjectPlace {
    /// Puts a small object, asks how long it is kept, and tries to delete that very version, with
    /// every right that there is: only a refusal proves that nobody can. Leaves the object,
    /// `lock-probe-UUID`.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn prove_lock(&self) -> Result<LockProof, LockError> {
        let name = format!("lock-probe-{}", Uuid::new_v4());
        let object = format!("{self}/{name}");
        let proved =
            run(self, "prove the lock", |bucket| async move { Ok(prove(&bucket, &name).await) });
        Ok(LockProof { object, until: proved?? })
    }

    /// What the bucket says of what is deleted in it.
    ///
    /// # Errors
    /// See [`AskError`]; some servers and some keys cannot ask.
    pub fn keeps(&self) -> Result<Keeps, AskError> {
        run(self, "ask how long the bucket keeps what is deleted", |bucket| async move {
            keeps(&bucket).await
        })
    }
}

async fn prove(bucket: &Bucket, name: &str) -> Result<String, LockError> {
    let payload = PutPayload::from_static(b"nobody can delete this before its time");
    let put = bucket.s3.put_opts(&bucket.key(name), payload, PutMode::Create.into()).await;
    let put = put.map_err(|error| failed("put a probe", error))?;
    let version = put.version.ok_or(LockError::NoVersions)?;
    let query = [("versionId", version.as_str())];
    let seen = bucket.ask("look at the probe", "HEAD", name, &query, &[]).await?;
    let (mode, until) = (seen.header(MODE).to_owned(), seen.header(UNTIL).to_owned());
    seen.good("look at the probe")?;
    let action = "try to delete the probe";
    // Also without a promise: a probe that nothing keeps is not left behind.
    let deleted = bucket.ask(action, "DELETE", name, &query, &[BYPASS]).await?;
    if until.is_empty() {
        return Err(LockError::NoRetention { mode });
    }
    match deleted.status {
        403 if mode == COMPLIANCE => Ok(until),
        // Another key may have the right that this one has not.
        403 => Err(LockError::NoRetention { mode }),
        200..=299 => Err(LockError::Deleted { until, mode }),
        status => Err(failed(action, format!("status {status}, not a refusal")).into()),
    }
}

async fn keeps(bucket: &Bucket) -> Result<Keeps, AskError> {
    let action = "ask for the bucket's object lock";
    let lock = bucket.ask(action, "GET", "", &[("object-lock", "")], &[]).await?;
    // 404 without one; servers that do not know the question have no lock either.
    if ![404, 501].contains(&lock.status) {
        let body = lock.good(action)?;
        let read = quick_xml::de::from_reader(body.as_ref());
        let read: LockConfiguration = read.map_err(|error| failed(action, error))?;
        if let Some(LockRule { default_retention: Retained { mode, days, years } }) = read.rule {
            let days = days.unwrap_or(0) + 365 * years.unwrap_or(0);
            return Ok(Keeps::Locked { mode, days });
        }
    }
    let action = "ask whether the bucket keeps versions";
    let versions = bucket.ask(action, "GET", "", &[("versioning", "")], &[]).await?;
    let versions = versions.good(action)?;
    let kept = String::from_utf8_lossy(&versions).contains("<Status>Enabled</Status>");
    Ok(if kept { Keeps::Versions } else { Keeps::Nothing })
}
