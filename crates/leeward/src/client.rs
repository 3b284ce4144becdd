//! A small client of the public API, for the CLI and the demo. It can do nothing that the API
//! cannot, and speaks it as any other client does: HTTPS, a bearer token, ids in paths.

use crate::{
    roles::host::dial::connection_problem,
    trust::{TrustError, tls},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use leeward_model::{Code, Problem};
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::{path::Path, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

/// The version of the contract that this client names; the server takes any.
const API_VERSION: &str = "2025-08-01";
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer that is read, in bytes: pictures are the largest things there are.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// Where the public API is and how to get in.
#[derive(Clone)]
pub struct ApiClient {
    host: String,
    port: u16,
    connector: TlsConnector,
    token: String,
    base: String,
}

/// Why a request had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server could not be reached or broke off.
    #[error("{}", unreachable(address, why))]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        why: String,
    },
    /// The server refused, and says why.
    #[error("{problem}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Code of the error body.
        code: String,
        /// What the operator reads.
        problem: Box<Problem>,
    },
    /// The endpoint, token or CA file cannot be used.
    #[error("{0}")]
    Setup(String),
}

impl From<TrustError> for ClientError {
    fn from(error: TrustError) -> Self {
        ClientError::Setup(error.to_string())
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The body, `Null` when empty.
    pub body: Value,
    /// Where to ask how a long operation goes.
    pub operation: Option<String>,
    /// The job of a long operation.
    pub job: Option<String>,
}

impl ApiClient {
    /// A client of `endpoint` (`https://host:port`) for one vault's subscription, resource group
    /// and name, trusting the CA certificate in `ca_pem`.
    ///
    /// # Errors
    /// [`ClientError::Setup`] when a part has the wrong form.
    pub fn new(
        endpoint: &str,
        ca_pem: &str,
        token: &str,
        vault_path: &str,
    ) -> Result<Self, ClientError> {
        let (host, port) = endpoint
            .strip_prefix("https://")
            .and_then(|rest| rest.trim_end_matches('/').rsplit_once(':'))
            .ok_or_else(|| {
                ClientError::Setup(format!("the endpoint {endpoint} is not https://host:port"))
            })?;
        let port = port
            .parse()
            .map_err(|_| ClientError::Setup(format!("{port} in {endpoint} is not a port")))?;
        let connector = TlsConnector::from(tls::api_client_config(ca_pem)?);
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            connector,
            token: token.trim().to_owned(),
            base: vault_path.to_owned(),
        })
    }

    /// As [`Self::new`], reading the CA and the token from a config server's folder.
    ///
    /// # Errors
    /// [`ClientError::Setup`] when a file cannot be read.
    pub fn from_folder(dir: &Path, endpoint: &str, vault: &str) -> Result<Self, ClientError> {
        let read = |name: &str| {
            std::fs::read_to_string(dir.join(name)).map_err(|error| {
                ClientError::Setup(format!("could not read {}: {error}", dir.join(name).display()))
            })
        };
        Self::new(endpoint, &read("ca.pem")?, &read("admin.token")?, vault)
    }

    /// The path below which the vault's resources are.
    pub fn vault_path(&self) -> &str {
        &self.base
    }

    fn path_of(&self, path: &str) -> String {
        let full =
            if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", self.base) };
        let full = full.trim_end_matches('/').to_owned();
        if full.contains("api-version=") {
            return full;
        }
        let joint = if full.contains('?') { '&' } else { '?' };
        format!("{full}{joint}api-version={API_VERSION}")
    }

    /// Sends one request. `path` is absolute, or relative to the vault.
    ///
    /// # Errors
    /// See [`ClientError`]; every status of 400 and above is [`ClientError::Refused`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Reply, ClientError> {
        let address = format!("{}:{}", self.host, self.port);
        let unreachable = |why: String| ClientError::Unreachable { address: address.clone(), why };
        let exchange = async {
            let tcp = TcpStream::connect((self.host.as_str(), self.port))
                .await
                .map_err(|error| unreachable(error.to_string()))?;
            let name = ServerName::try_from(self.host.clone())
                .map_err(|error| unreachable(error.to_string()))?;
            let stream = self.connector.connect(name, tcp).await.map_err(|error| {
                let what = format!("the config server at {address} is not trusted");
                let problem = connection_problem(what, &error);
                match problem.code == Code::WRONG_CA.code {
                    true => ClientError::Setup(problem.to_string()),
                    false => unreachable(error.to_string()),
                }
            })?;
            self.exchange(stream, method, path, body).await.map_err(unreachable)
        };
        let (status, headers, bytes) = timeout(REQUEST_TIMEOUT, exchange)
            .await
            .map_err(|_| unreachable("no answer in time".into()))??;
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status.as_u16() >= 400 {
            return Err(refused(status.as_u16(), &body));
        }
        let header = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
        Ok(Reply {
            status: status.as_u16(),
            body,
            operation: header("azure-asyncoperation"),
            job: header("x-ms-request-id"),
        })
    }

    async fn exchange(
        &self,
        stream: tokio_rustls::client::TlsStream<TcpStream>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, hyper::HeaderMap, Bytes), String> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let bytes = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(self.path_of(path))
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|error| error.to_string())?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let (parts, body) = response.into_parts();
            let body = http_body_util::Limited::new(body, ANSWER_BYTES_MAX);
            let bytes = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok((parts.status, parts.headers, bytes))
        };
        tokio::pin!(answer);
        tokio::pin!(connection);
        tokio::select! {
            result = &mut answer => result,
            ended = &mut connection => match ended {
                Ok(()) => answer.await,
                Err(error) => Err(error.to_string()),
            },
        }
    }

    /// GET.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        Ok(self.send(Method::GET, path, None).await?.body)
    }

    /// All items of a list, following its pages.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn list(&self, path: &str) -> Result<Vec<Value>, ClientError> {
        let mut all = Vec::new();
        let mut next = Some(path.to_owned());
        while let Some(path) = next.take() {
            let page = self.get(&path).await?;
            all.extend(page["value"].as_array().cloned().unwrap_or_default());
            // The link is absolute; this client keeps to the server it was given.
            next = page["nextLink"].as_str().and_then(|link| {
                let rest = link.split_once("://")?.1;
                Some(rest[rest.find('/')?..].to_owned())
            });
        }
        Ok(all)
    }

    /// PUT.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn put(&self, path: &str, body: &Value) -> Result<Reply, ClientError> {
        self.send(Method::PUT, path, Some(body)).await
    }

    /// POST.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Reply, ClientError> {
        self.send(Method::POST, path, Some(body)).await
    }
}

fn unreachable(address: &str, why: &str) -> Problem {
    Code::SERVER_AWAY.because(format!("could not reach the config server at {address}"), why)
}

fn refused(status: u16, body: &Value) -> ClientError {
    let error = &body["error"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let detail = error["details"].get(0).cloned().unwrap_or(Value::Null);
    let problem = Problem {
        code: match detail["code"].as_str() {
            Some(code) => code.to_owned(),
            None => text(&error["code"]),
        },
        what: text(&error["message"]),
        cause: text(&detail["possibleCauses"]),
        now: text(&detail["currentState"]),
        todo: text(&detail["recommendedAction"]),
    };
    ClientError::Refused { status, code: text(&error["code"]), problem: Box::new(problem) }
}
