//! Sends a signed request, again after failures that may pass, and keeps the answer. The headers
//! and the signature are those of Standard Webhooks, for which many receivers have a library.

use super::{ActionOptions, causes, http, tail, told};
use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use leeward_control::plans::{ActionEnd, ActionRun, Task};
use serde_json::json;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Between the first attempts; doubled each time.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest time between two attempts: an operator waits for the end of them.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long one attempt may take. The action's own timeout is over all of them.
const ATTEMPT: Duration = Duration::from_secs(30);
/// A secret in the form of Standard Webhooks begins so; the rest is base64.
const ENCODED: &str = "whsec_";

/// Sends it.
pub(super) async fn run(
    options: &ActionOptions,
    run: &ActionRun,
    url: &str,
    retries: u32,
    secret: &str,
) -> ActionEnd {
    if !options.webhooks.iter().any(|allowed| begins(url, allowed)) {
        return ActionEnd::failed(format!(
            "{url} is none of the addresses that leeward up was given with --webhook"
        ));
    }
    let client = match http(options) {
        Ok(client) => client,
        Err(why) => return ActionEnd::failed(why),
    };
    let mode = if run.task == Task::Undo { "undo" } else { "do" };
    let body = json!({
        "type": "leeward.recovery-plan.action",
        "id": run.id,
        "mode": mode,
        "attempt": run.attempt,
        "data": told(&run.facts),
    });
    let body = body.to_string();
    let mut pause = PAUSE;
    for left in (0..=retries).rev() {
        let end = send(&client, url, &run.id, &body, secret).await;
        if end.failure.is_none() || left == 0 || !may_pass(end.code) {
            return end;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    unreachable!("the last attempt returns")
}

/// Whether an address is below another one. A prefix alone would let `hooks.example` stand for
/// `hooks.example.evil`.
fn begins(url: &str, allowed: &str) -> bool {
    let (Ok(url), Ok(allowed)) = (url.parse::<reqwest::Url>(), allowed.parse::<reqwest::Url>())
    else {
        return false;
    };
    let whole = allowed.path().strip_suffix('/').unwrap_or(allowed.path());
    let rest = url.path().strip_prefix(whole);
    url.origin() == allowed.origin() && rest.is_some_and(|r| r.is_empty() || r.starts_with('/'))
}

/// Whether another attempt may do better: nobody answered, or the server says so.
fn may_pass(code: Option<i32>) -> bool {
    match code {
        None => true,
        Some(code) => code >= 500 || [408, 425, 429].contains(&code),
    }
}

/// `v1,…` over id, time and body.
fn signature(secret: &str, id: &str, seconds: u64, body: &str) -> String {
    let encoded = secret.strip_prefix(ENCODED).and_then(|rest| STANDARD.decode(rest).ok());
    let key = encoded.unwrap_or_else(|| secret.as_bytes().to_vec());
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let tag = hmac::sign(&key, format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(tag))
}

async fn send(
    client: &reqwest::Client,
    url: &str,
    id: &str,
    body: &str,
    secret: &str,
) -> ActionEnd {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let request = client
        .post(url)
        .timeout(ATTEMPT)
        .header("content-type", "application/json")
        .header("webhook-id", id)
        .header("webhook-timestamp", now)
        .header("webhook-signature", signature(secret, id, now, body))
        .body(body.to_owned());
    let mut answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) => return ActionEnd::failed(causes(&error.without_url())),
    };
    let status = answer.status();
    let mut kept = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        kept.extend_from_slice(&chunk);
        if kept.len() >= ActionEnd::OUTPUT_MAX {
            kept.truncate(ActionEnd::OUTPUT_MAX);
            break;
        }
    }
    let refused = || format!("it answered {status}");
    ActionEnd {
        failure: (!status.is_success()).then(refused),
        code: Some(i32::from(status.as_u16())),
        output: tail(&kept),
        found: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_below_another_one_only_at_a_border() {
        let allowed = "https://hooks.example/leeward";
        for url in ["https://hooks.example/leeward", "https://hooks.example/leeward/x?y"] {
            assert!(begins(url, allowed), "{url}");
        }
        for url in [
            "http://hooks.example/leeward",
            "https://hooks.example.evil/leeward",
            "https://hooks.example/leewardx",
            "https://hooks.example:8443/leeward",
            "https://hooks.example/leeward/../x",
            "no address",
        ] {
            assert!(!begins(url, allowed), "{url}");
        }
        assert!(begins("http://127.0.0.1:8/x", "http://127.0.0.1:8"));
    }

    /// The example of the specification of Standard Webhooks.
    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let found = signature(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(found, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
