//! What goes back over HTTP: answers, the error body, and the headers that every answer has.

use crate::{ControlError, ErrorKind};
use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use leeward_model::{Code, JobId, Problem};
use serde_json::{Value, json};

/// Seconds after which a client asks again; the clients wait 10 or 30 without it.
const RETRY_AFTER_SECONDS: &str = "1";

/// Is a good answer.
#[derive(Debug)]
pub(super) enum Answer {
    /// 200 with a body.
    Ok(Value),
    /// 201 with a body.
    Created(Value),
    /// 204.
    Empty,
    /// 202: a job does it, or still does it.
    Accepted(Accepted),
    /// 200 with how an operation goes; asks for another look while it runs.
    Status {
        /// The document.
        body: Value,
        /// Whether it has not ended.
        running: bool,
    },
    /// 200 with figures as Prometheus reads them.
    Text(String),
    /// 200 with PNG bytes.
    Picture(Vec<u8>),
}

/// Is what a client needs to follow a job.
#[derive(Debug)]
pub(super) struct Accepted {
    /// Id of the vault.
    pub vault: String,
    /// Id of the resource that the job works on.
    pub resource: String,
    /// The job.
    pub job: JobId,
}

/// Is a refusal with its HTTP form.
#[derive(Debug)]
pub(super) struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// The error body's code.
    pub code: &'static str,
    /// What the operator reads.
    pub problem: Box<Problem>,
    /// Id of what is in the way: the running job.
    pub target: Option<String>,
    /// Methods that the path has, for a 405.
    pub allow: Option<String>,
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        let busy = error.problem.code == Code::ITEM_BUSY.code;
        let (status, code) = match error.kind {
            ErrorKind::BadRequest => (StatusCode::BAD_REQUEST, "BadRequest"),
            ErrorKind::NotFound => (StatusCode::NOT_FOUND, "ResourceNotFound"),
            ErrorKind::Conflict if busy => (StatusCode::CONFLICT, "OperationInProgress"),
            ErrorKind::Conflict => (StatusCode::CONFLICT, "OperationNotAllowed"),
            ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            ErrorKind::Forbidden => (StatusCode::FORBIDDEN, "AuthorizationFailed"),
            ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError"),
            ErrorKind::NotSupported => (StatusCode::NOT_IMPLEMENTED, "NotSupported"),
        };
        Refusal { status, code, problem: error.problem, target: None, allow: None }
    }
}

impl Refusal {
    /// 401.
    pub fn unauthorized() -> Self {
        Refusal {
            status: StatusCode::UNAUTHORIZED,
            code: "InvalidAuthenticationToken",
            problem: Box::new(Code::UNAUTHORIZED.problem("the request carries no valid token")),
            target: None,
            allow: None,
        }
    }
    /// 405 for a path that has the methods `allow`.
    pub fn method(method: &str, allow: String) -> Self {
        let what = format!("{method} is not possible on this path, only {allow}");
        Refusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: "MethodNotAllowed",
            problem: Box::new(Code::BAD_REQUEST.problem(what)),
            target: None,
            allow: Some(allow),
        }
    }
    /// 413.
    pub fn too_large(bytes_max: usize) -> Self {
        let what = format!("the body is larger than {bytes_max} bytes or broke off");
        Refusal {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            code: "RequestEntityTooLarge",
            problem: Box::new(Code::BAD_REQUEST.problem(what)),
            target: None,
            allow: None,
        }
    }
}

/// The body that says why not.
pub(super) fn error_body(code: &str, problem: &Problem, target: Option<&str>) -> Value {
    json!({
        "code": code,
        "message": problem.what,
        "target": target,
        "details": [detail(problem)],
        "additionalInfo": [],
    })
}

fn detail(problem: &Problem) -> Value {
    json!({
        "code": problem.code,
        "message": problem.what,
        "possibleCauses": problem.cause,
        "currentState": problem.now,
        "recommendedAction": problem.todo,
    })
}

/// Is what an answer needs to know of its request.
pub(super) struct Echo {
    /// Scheme, host and port as the client sees them.
    pub origin: String,
    /// The version that the client named.
    pub api_version: String,
    /// The client's own id of the request.
    pub client_request: Option<HeaderValue>,
    /// Our id of the request.
    pub request: String,
}

/// Writes the HTTP answer.
pub(super) fn respond(result: Result<Answer, Refusal>, echo: &Echo) -> Response<Body> {
    let mut response = match result {
        Ok(answer) => good(answer, echo),
        Err(refusal) => bad(&refusal),
    };
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&echo.request) {
        headers.entry("x-ms-request-id").or_insert(value.clone());
        headers.insert("x-ms-correlation-request-id", value);
    }
    if let Some(value) = &echo.client_request {
        headers.insert("x-ms-client-request-id", value.clone());
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn good(answer: Answer, echo: &Echo) -> Response<Body> {
    match answer {
        Answer::Ok(body) => json_response(StatusCode::OK, &body),
        Answer::Created(body) => json_response(StatusCode::CREATED, &body),
        Answer::Empty => empty(StatusCode::NO_CONTENT),
        Answer::Accepted(accepted) => accepted_response(&accepted, echo),
        Answer::Status { body, running } => {
            let mut response = json_response(StatusCode::OK, &body);
            if running {
                put(&mut response, "retry-after", RETRY_AFTER_SECONDS);
            }
            response
        }
        Answer::Text(text) => {
            let mut response = Response::new(Body::from(text));
            put(&mut response, "content-type", "text/plain; version=0.0.4; charset=utf-8");
            response
        }
        Answer::Picture(bytes) => {
            let mut response = Response::new(Body::from(bytes));
            put(&mut response, "content-type", "image/png");
            response
        }
    }
}

fn accepted_response(accepted: &Accepted, echo: &Echo) -> Response<Body> {
    let Accepted { vault, resource, job } = accepted;
    let (origin, version) = (&echo.origin, &echo.api_version);
    let (vault, resource) = (encode_path(vault), encode_path(resource));
    let status = format!("{origin}{vault}/replicationOperationStatus/{job}?api-version={version}");
    let location = format!("{origin}{resource}/operationresults/{job}?api-version={version}");
    let mut response = empty(StatusCode::ACCEPTED);
    put(&mut response, "azure-asyncoperation", &status);
    put(&mut response, "location", &location);
    put(&mut response, "retry-after", RETRY_AFTER_SECONDS);
    put(&mut response, "x-ms-request-id", &format!("{vault}/replicationJobs/{job}"));
    put(&mut response, "content-length", "0");
    response
}

fn bad(refusal: &Refusal) -> Response<Body> {
    let body = error_body(refusal.code, &refusal.problem, refusal.target.as_deref());
    let mut response = json_response(refusal.status, &json!({ "error": body }));
    if let Some(allow) = &refusal.allow {
        put(&mut response, "allow", allow);
    }
    if refusal.status == StatusCode::UNAUTHORIZED {
        put(&mut response, "www-authenticate", "Bearer");
    }
    if refusal.status == StatusCode::SERVICE_UNAVAILABLE {
        put(&mut response, "retry-after", RETRY_AFTER_SECONDS);
    }
    response
}

fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    put(&mut response, "content-type", "application/json; charset=utf-8");
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn put(response: &mut Response<Body>, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// `path` with everything escaped that may not stand in a URL's path as it is.
pub(super) fn encode_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
