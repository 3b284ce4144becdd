//! Requests to a bucket of S3 for which the library has no call: about versions of objects, and
//! about the bucket itself. Each is signed with the library's own parts and tried once.

use super::{
    connect::{ConnectError, ObjectPlace},
    engine::{Engine, Pace},
};
use bytes::Bytes;
use object_store::{
    ClientOptions,
    aws::{AmazonS3, AwsAuthorizer},
    client::{HttpClient, HttpConnector as _, HttpRequest, HttpRequestBody, ReqwestConnector},
    path::Path,
    signer::Signer as _,
};
use std::{future::Future, time::Duration};

/// Every request's limit.
const LIMIT: Duration = Duration::from_secs(60);

/// Why nothing was asked, or nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// A container of Azure Blob has none of this.
    #[error("that is asked of s3:// only")]
    NotS3,
    /// The environment does not say how to reach the bucket.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A request failed.
    #[error("could not {action}: {why}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// Why.
        why: String,
    },
}

pub(super) fn failed(action: &'static str, why: impl ToString) -> AskError {
    AskError::Failed { action, why: why.to_string() }
}

/// What the server said.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Bytes,
    headers: Vec<(String, String)>,
}

impl Answer {
    /// A header's text; empty without one.
    pub(super) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value.as_str())
    }

    /// The body of a good answer.
    pub(super) fn good(self, action: &'static str) -> Result<Bytes, AskError> {
        match self.status {
            200..=299 => Ok(self.body),
            status => Err(failed(action, format!("the server answered with status {status}"))),
        }
    }
}

/// A bucket that is asked.
pub(super) struct Bucket {
    pub(super) s3: AmazonS3,
    client: HttpClient,
    region: String,
    prefix: String,
}

impl Bucket {
    /// The bucket of a place.
    pub(super) fn of(place: &ObjectPlace) -> Result<Bucket, AskError> {
        let Some((s3, region, clear)) = place.s3_client()? else { return Err(AskError::NotS3) };
        let options = ClientOptions::new().with_allow_http(clear).with_timeout(LIMIT);
        let client = ReqwestConnector::default().connect(&options);
        let client = client.map_err(|error| failed("reach the bucket", error))?;
        Ok(Bucket { s3, client, region, prefix: place.prefix().to_owned() })
    }

    /// One request about the object `name`, or about the bucket itself when that is empty.
    pub(super) async fn ask(
        &self,
        action: &'static str,
        method: &str,
        name: &str,
        query: &[(&str, &str)],
        headers: &[(&'static str, &'static str)],
    ) -> Result<Answer, AskError> {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = method.parse().map_err(|error| failed(action, error))?;
        // The library knows how the bucket is addressed; a bucket's own address has no call.
        let key = if name.is_empty() { Path::from("-") } else { self.key(name) };
        let url = self.s3.signed_url(request.method().clone(), &key, LIMIT).await;
        let mut url = url.map_err(|error| failed(action, error))?;
        if name.is_empty() {
            let path = url.path().trim_end_matches("/-").to_owned();
            url.set_path(if path.is_empty() { "/" } else { &path });
        }
        url.set_query(None);
        url.query_pairs_mut().extend_pairs(query);
        *request.uri_mut() = url.as_str().parse().map_err(|error| failed(action, error))?;
        for (name, value) in headers {
            let value = value.parse().map_err(|error| failed(action, error))?;
            request.headers_mut().insert(*name, value);
        }
        let credential = self.s3.credentials().get_credential().await;
        let credential = credential.map_err(|error| failed(action, error))?;
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(&mut request, None)
            .map_err(|error| failed(action, error))?;
        let answer = self.client.execute(request).await.map_err(|error| failed(action, error))?;
        let (head, body) = answer.into_parts();
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let headers = head.headers.iter();
        let headers = headers.map(|(name, value)| (name.to_string(), text(value.as_bytes())));
        let headers = headers.collect();
        let body = body.bytes().await.map_err(|error| failed(action, error))?;
        Ok(Answer { status: head.status.as_u16(), body, headers })
    }

    /// The key of the blob `name`.
    pub(super) fn key(&self, name: &str) -> Path {
        Path::from(format!("{}/{name}", self.prefix))
    }

    /// What stands before the names of all blobs, with its slash; empty for a whole bucket.
    pub(super) fn prefix(&self) -> String {
        if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) }
    }
}

/// Runs `work` over the bucket of a place, on a thread of its own.
pub(super) fn run<T, F>(
    place: &ObjectPlace,
    action: &'static str,
    work: impl FnOnce(Bucket) -> F,
) -> Result<T, AskError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, AskError>> + Send + 'static,
{
    let work = work(Bucket::of(place)?);
    let engine = Engine::start(Pace::Real).map_err(|error| failed(action, error))?;
    engine.run(work).unwrap_or_else(|| Err(failed(action, "its task ended")))
}
