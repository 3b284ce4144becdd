//! Waits until something answers, over TCP or HTTP. The caller's timeout ends it.

use super::{ActionOptions, CONNECT, causes, http};
use leeward_control::plans::ActionEnd;
use std::time::Duration;
use tokio::net::TcpStream;

/// Between two looks: the boot of a machine takes many of them.
const PAUSE: Duration = Duration::from_secs(1);
/// How long an HTTP answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Looks until it answers.
pub(super) async fn run(options: &ActionOptions, url: &str) -> ActionEnd {
    let client = match http(options) {
        Ok(client) => client,
        Err(why) => return ActionEnd::failed(why),
    };
    let mut last = String::new();
    loop {
        let look = match url.strip_prefix("tcp://") {
            Some(place) => tcp(place).await.map(|()| None),
            None => answers(&client, url).await.map(Some),
        };
        match look {
            Ok(code) => return ActionEnd { code, output: last, ..ActionEnd::default() },
            Err(why) => last = why,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn tcp(place: &str) -> Result<(), String> {
    match tokio::time::timeout(CONNECT, TcpStream::connect(place)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

async fn answers(client: &reqwest::Client, url: &str) -> Result<i32, String> {
    let answer = client.get(url).timeout(ANSWER).send().await.map_err(|error| causes(&error))?;
    let status = answer.status();
    match status.is_success() {
        true => Ok(i32::from(status.as_u16())),
        false => Err(format!("it answered {status}")),
    }
}
