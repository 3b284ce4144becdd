//! Which bucket or container a store is in, and how it is reached: the name comes from the command
//! line, keys and servers only from the environment. Sends nothing itself.

use super::{content_md5::Md5Connector, requests::Backing};
use object_store::{
    ClientOptions, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
};
use std::{fmt, sync::Arc, time::Duration};

/// Why a place cannot be reached, before anything was sent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name is not one of a place.
    #[error("{text:?} is not s3://BUCKET/PREFIX or az://CONTAINER/PREFIX: {why}")]
    Place {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The server would be asked in the clear over a network.
    #[error(
        "the endpoint {endpoint} is not on this machine and has no TLS, so that anybody on the way \
         could answer in its place; {variable}=true allows it all the same"
    )]
    Clear {
        /// The server.
        endpoint: String,
        /// What would allow it.
        variable: &'static str,
    },
    /// The environment does not hold what is needed.
    #[error("the environment does not say how to reach it: {why}")]
    Environment {
        /// What is missing or wrong.
        why: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    S3,
    Azure,
}

/// A place in a bucket of S3 or a container of Azure Blob: `s3://BUCKET/PREFIX` or
/// `az://CONTAINER/PREFIX`. The prefix may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPlace {
    kind: Kind,
    bucket: String,
    prefix: String,
}

impl fmt::Display for ObjectPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            Kind::S3 => "s3",
            Kind::Azure => "az",
        };
        write!(f, "{scheme}://{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl ObjectPlace {
    /// Reads a place; `None` for what has no scheme and is therefore a folder.
    ///
    /// # Errors
    /// [`ConnectError::Place`].
    pub fn parse(text: &str) -> Result<Option<ObjectPlace>, ConnectError> {
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(None) };
        let fail = |why| Err(ConnectError::Place { text: text.to_owned(), why });
        let kind = match scheme {
            "s3" => Kind::S3,
            "az" => Kind::Azure,
            _ => return fail("there is no such kind of store"),
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let plain = |part: &str, more: &[u8]| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
        };
        if !plain(bucket, b".-") || bucket.len() > 63 {
            return fail("that is no name of a bucket or container");
        }
        if !prefix.is_empty() && !prefix.split('/').all(|part| plain(part, b"._-")) {
            return fail("a prefix has letters, digits, dots, dashes, underscores and slashes");
        }
        let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
        Ok(Some(ObjectPlace { kind, bucket, prefix }))
    }

    /// What stands before the names of all blobs.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn connect(&self) -> Result<Arc<dyn Backing>, ConnectError> {
        match self.kind {
            Kind::S3 => self.s3(),
            Kind::Azure => self.azure(),
        }
    }

    fn s3(&self) -> Result<Arc<dyn Backing>, ConnectError> {
        Ok(Arc::new(self.s3_built()?.0))
    }

    /// A client of its bucket, the bucket's region, and whether it is asked in the clear; none for
    /// a container of Azure.
    ///
    /// # Errors
    /// As for every use of the place.
    pub(super) fn s3_client(&self) -> Result<Option<(AmazonS3, String, bool)>, ConnectError> {
        match self.kind {
            Kind::S3 => self.s3_built().map(Some),
            Kind::Azure => Ok(None),
        }
    }

    fn s3_built(&self) -> Result<(AmazonS3, String, bool), ConnectError> {
        let builder = AmazonS3Builder::from_env();
        let endpoint = builder.get_config_value(&AmazonS3ConfigKey::S3Endpoint);
        let endpoint = endpoint.or_else(|| builder.get_config_value(&AmazonS3ConfigKey::Endpoint));
        let clear = clear_text(endpoint.as_deref(), "AWS_ALLOW_HTTP")?;
        let region = builder.get_config_value(&AmazonS3ConfigKey::Region);
        let region = region.unwrap_or_else(|| "us-east-1".to_owned());
        let connector = Md5Connector::new(region.clone());
        let built = builder
            .with_http_connector(connector.clone())
            .with_bucket_name(&self.bucket)
            .with_client_options(client(clear))
            .with_retry(once())
            // One by one: not every server knows how to delete many at once.
            .with_disable_bulk_delete(true)
            .build();
        let environment =
            |error: object_store::Error| ConnectError::Environment { why: error.to_string() };
        let built = built.map_err(environment)?;
        connector.sign_with(built.credentials().clone());
        Ok((built, region, clear))
    }

    fn azure(&self) -> Result<Arc<dyn Backing>, ConnectError> {
        let builder = MicrosoftAzureBuilder::from_env();
        let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
        let emulated = builder.get_config_value(&AzureConfigKey::UseEmulator);
        let emulated = emulated.is_some_and(|value| ["1", "true"].contains(&value.as_str()));
        // The emulator's own address is this machine's.
        let clear = clear_text(endpoint.as_deref(), "AZURE_ALLOW_HTTP")? || emulated;
        let built = builder
            .with_container_name(&self.bucket)
            .with_client_options(client(clear))
            .with_retry(once())
            .build();
        let environment =
            |error: object_store::Error| ConnectError::Environment { why: error.to_string() };
        Ok(Arc::new(built.map_err(environment)?))
    }
}

fn client(clear: bool) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(clear)
        .with_connect_timeout(Duration::from_secs(5))
        .with_timeout(Duration::from_secs(60))
}

/// Requests are repeated by us, in one way for every kind of store, and every try counts.
fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// Whether the server is asked without TLS, which only this machine's may be.
fn clear_text(endpoint: Option<&str>, variable: &'static str) -> Result<bool, ConnectError> {
    let Some(rest) = endpoint.and_then(|endpoint| endpoint.strip_prefix("http://")) else {
        return Ok(false);
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let near = host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    let allowed = std::env::var(variable).is_ok_and(|value| value == "true" || value == "1");
    if near || allowed {
        return Ok(true);
    }
    let endpoint = format!("http://{authority}");
    Err(ConnectError::Clear { endpoint, variable })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> String {
        ObjectPlace::parse(text).unwrap().unwrap().to_string()
    }

    #[test]
    fn places_are_told_from_folders_and_from_nonsense() {
        assert_eq!(ObjectPlace::parse("/var/store").unwrap(), None);
        assert_eq!(ObjectPlace::parse("store").unwrap(), None);
        assert_eq!(place("s3://bucket"), "s3://bucket");
        assert_eq!(place("s3://bucket/a/b/"), "s3://bucket/a/b");
        assert_eq!(place("az://box/a"), "az://box/a");
        for bad in ["s3://", "s3:///a", "gs://bucket", "s3://b/a//c", "s3://b/../c", "az://b/a b"] {
            assert!(ObjectPlace::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_server_on_this_machine_is_asked_in_the_clear() {
        let clear = |endpoint| clear_text(Some(endpoint), "LEEWARD_NO_SUCH_VARIABLE");
        assert!(clear("http://127.0.0.1:9000").unwrap());
        assert!(clear("http://localhost/x").unwrap());
        assert!(clear("http://[::1]:80").unwrap());
        assert!(!clear("https://s3.example.org").unwrap());
        assert!(!clear_text(None, "LEEWARD_NO_SUCH_VARIABLE").unwrap());
        for bad in ["http://s3.example.org", "http://127.0.0.1.example.org", "http://10.0.0.1:1"] {
            assert!(clear(bad).is_err(), "{bad}");
        }
    }
}
