//! Whether a bucket keeps what it was given, proved by its owner's own failed deletion.
//!
//! The bucket itself sets the retention of every object (a default retention in compliance mode):
//! nothing here does. Requests for one version of an object are made and signed with the library's
//! own parts, because it has no call for them.

use super::{connect::ObjectPlace, engine::Engine, engine::Pace};
use object_store::{
    ClientOptions, ObjectStore as _, PutMode, PutPayload,
    aws::{AmazonS3, AwsAuthorizer},
    client::{HttpConnector as _, HttpRequest, HttpRequestBody, ReqwestConnector},
    path::Path,
    signer::Signer as _,
};
use std::time::Duration;
use uuid::Uuid;

/// Header with the retention's mode.
const MODE: &str = "x-amz-object-lock-mode";
/// Header with the time until which an object cannot be deleted.
const UNTIL: &str = "x-amz-object-lock-retain-until-date";
/// The mode in which not even the bucket's owner can delete.
const COMPLIANCE: &str = "COMPLIANCE";
/// Every request's limit.
const LIMIT: Duration = Duration::from_secs(60);

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
    #[error("object lock is supported for s3:// only: Azure's immutability policies are not yet")]
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
    #[error("the bucket let a version be deleted that it had promised to keep until {until}")]
    Deleted {
        /// What it had promised.
        until: String,
    },
    /// A request failed.
    #[error("could not {action}: {why}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// Why.
        why: String,
    },
}

fn failed(action: &'static str, why: impl ToString) -> LockError {
    LockError::Failed { action, why: why.to_string() }
}

impl ObjectPlace {
    /// Puts a small object, asks how long it is kept, and tries to delete that very version: only
    /// a refusal proves that nobody can. Leaves the object, `lock-probe-UUID`.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn prove_lock(&self) -> Result<LockProof, LockError> {
        let found = self.s3_client().map_err(|error| failed("reach the bucket", error))?;
        let Some((s3, region, clear)) = found else { return Err(LockError::NotSupported) };
        let options = ClientOptions::new().with_allow_http(clear).with_timeout(LIMIT);
        let name = format!("lock-probe-{}", Uuid::new_v4());
        let (object, key) = (format!("{self}/{name}"), format!("{}/{name}", self.prefix()));
        let engine = Engine::start(Pace::Real).map_err(|error| failed("start a request", error))?;
        let proved = engine.run(async move {
            let probe = Probe { s3, region, options, key: Path::from(key) };
            probe.prove().await
        });
        let until = proved.unwrap_or_else(|| Err(failed("prove the lock", "its task ended")))?;
        Ok(LockProof { object, until })
    }
}

struct Probe {
    s3: AmazonS3,
    region: String,
    options: ClientOptions,
    key: Path,
}

/// What a server answered of one version.
struct Said {
    status: u16,
    mode: String,
    until: String,
}

impl Probe {
    async fn prove(&self) -> Result<String, LockError> {
        let payload = PutPayload::from_static(b"nobody can delete this before its time");
        let put = self.s3.put_opts(&self.key, payload, PutMode::Create.into()).await;
        let put = put.map_err(|error| failed("put a probe", error))?;
        let version = put.version.ok_or(LockError::NoVersions)?;
        let seen = self.ask("HEAD", "look at the probe", &version).await?;
        if seen.status != 200 {
            return Err(failed("look at the probe", format!("status {}", seen.status)));
        }
        let promised = seen.mode == COMPLIANCE && !seen.until.is_empty();
        // Also without a promise: a probe that nothing keeps is not left behind.
        let deleted = self.ask("DELETE", "try to delete the probe", &version).await?;
        match (promised, deleted.status) {
            (false, _) => Err(LockError::NoRetention { mode: seen.mode }),
            (true, 403) => Ok(seen.until),
            (true, 200..=299) => Err(LockError::Deleted { until: seen.until }),
            (true, status) => {
                Err(failed("try to delete the probe", format!("status {status}, not a refusal")))
            }
        }
    }

    /// A request for one version of the probe.
    async fn ask(
        &self,
        method: &str,
        action: &'static str,
        version: &str,
    ) -> Result<Said, LockError> {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = method.parse().map_err(|error| failed(action, error))?;
        let url = self.s3.signed_url(request.method().clone(), &self.key, LIMIT).await;
        let mut url = url.map_err(|error| failed(action, error))?;
        url.set_query(None);
        url.query_pairs_mut().append_pair("versionId", version);
        *request.uri_mut() = url.as_str().parse().map_err(|error| failed(action, error))?;
        let credential = self.s3.credentials().get_credential().await;
        let credential = credential.map_err(|error| failed(action, error))?;
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(&mut request, None)
            .map_err(|error| failed(action, error))?;
        let client = ReqwestConnector::default().connect(&self.options);
        let client = client.map_err(|error| failed(action, error))?;
        let answer = client.execute(request).await.map_err(|error| failed(action, error))?;
        let header = |name: &str| {
            let value = answer.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        Ok(Said { status: answer.status().as_u16(), mode: header(MODE), until: header(UNTIL) })
    }
}
