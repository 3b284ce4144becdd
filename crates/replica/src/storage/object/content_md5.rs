//! `Content-MD5` for buckets that want it: those with object lock take nothing without a checksum.
//!
//! The library sends none. Here it is added below the library, once a server has asked for it, and
//! the request is signed anew, because S3 wants that header signed. It proves nothing to us: what
//! is stored is sealed and has hashes of its own.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::BodyExt as _;
use md5::{Digest as _, Md5};
use object_store::{
    ClientOptions, Result,
    aws::{AwsAuthorizer, AwsCredentialProvider},
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpResponseBody, HttpService, ReqwestConnector,
    },
};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

/// The header, as servers spell it when they ask for it.
const HEADER: &str = "Content-MD5";
/// Header with the hash of the body, or a word when the body is not signed.
const SIGNED_BODY: &str = "x-amz-content-sha256";
/// What stands in the authorization of a request whose signature is made again here.
const SCOPE: &str = "/s3/aws4_request";

/// Makes clients that send the header to servers that want it. All of them learn together.
#[derive(Clone, Debug)]
pub(super) struct Md5Connector {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    region: String,
    /// Known once the client of the bucket is there.
    credentials: OnceLock<AwsCredentialProvider>,
    /// Whether the server has asked for the header.
    wanted: AtomicBool,
}

impl Md5Connector {
    /// For a bucket of that region.
    pub(super) fn new(region: String) -> Md5Connector {
        let (credentials, wanted) = (OnceLock::new(), AtomicBool::new(false));
        Md5Connector { shared: Arc::new(Shared { region, credentials, wanted }) }
    }

    /// Says with what requests are signed; without it nothing is added to any.
    pub(super) fn sign_with(&self, credentials: AwsCredentialProvider) {
        // Only the first counts; there is one client.
        let _ = self.shared.credentials.set(credentials);
    }
}

impl HttpConnector for Md5Connector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Service { inner, shared: self.shared.clone() }))
    }
}

#[derive(Debug)]
struct Service {
    inner: HttpClient,
    shared: Arc<Shared>,
}

fn failed(why: impl std::error::Error + Send + Sync + 'static) -> HttpError {
    HttpError::new(HttpErrorKind::Request, why)
}

impl Service {
    /// Whether a request is one of ours that puts something.
    fn puts(request: &HttpRequest) -> bool {
        let signed = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        request.method() == "PUT" && signed.is_some_and(|signed| signed.contains(SCOPE))
    }

    /// The request with the header, signed anew.
    async fn with_header(&self, mut request: HttpRequest) -> Result<HttpRequest, HttpError> {
        let Some(provider) = self.shared.credentials.get() else { return Ok(request) };
        let body = request.body().clone().collect().await?.to_bytes();
        let sum = STANDARD.encode(Md5::digest(&body));
        request.headers_mut().insert("content-md5", sum.parse().map_err(failed)?);
        let hash = request.headers().get(SIGNED_BODY).and_then(|value| value.to_str().ok());
        let hash = hash.and_then(from_hex);
        let credential = provider.get_credential().await.map_err(failed)?;
        AwsAuthorizer::new(&credential, "s3", &self.shared.region)
            .with_sign_payload(hash.is_some())
            .try_authorize(&mut request, hash.as_deref())
            .map_err(failed)?;
        Ok(request)
    }
}

#[async_trait::async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if !Self::puts(&request) {
            return self.inner.execute(request).await;
        }
        if !self.shared.wanted.load(Ordering::Relaxed) {
            let answer = self.inner.execute(request.clone()).await?;
            if answer.status() != 400 {
                return Ok(answer);
            }
            let (head, body) = answer.into_parts();
            let body = body.bytes().await?;
            if !String::from_utf8_lossy(&body).contains(HEADER) {
                return Ok(HttpResponse::from_parts(head, HttpResponseBody::from(body)));
            }
            self.shared.wanted.store(true, Ordering::Relaxed);
        }
        self.inner.execute(self.with_header(request).await?).await
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|two| u8::from_str_radix(str::from_utf8(two).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_told_from_the_word_that_stands_for_none() {
        assert_eq!(from_hex("00ff10"), Some(vec![0, 255, 16]));
        assert_eq!(from_hex("UNSIGNED-PAYLOAD"), None);
    }
}
