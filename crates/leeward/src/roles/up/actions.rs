//! What recovery plans do outside: scripts, webhooks, DNS updates, waiting. Decides nothing of a
//! plan; each kind has its file.

mod dns;
mod script;
mod wait;
mod webhook;

use leeward_control::plans::{Act, ActionEnd, ActionFacts, ActionRun, ActionRunner, Task};
use leeward_model::Direction;
use std::{path::PathBuf, time::Duration};

/// What recovery plans may do outside.
#[derive(Clone, Debug, clap::Args)]
pub struct ActionOptions {
    /// Folder with the scripts of recovery plans; no other program is run by a plan.
    #[arg(long, default_value = "/etc/leeward/scripts")]
    pub scripts: PathBuf,
    /// Who scripts run as when this process is root: user:group, by name or number.
    #[arg(long, default_value = "nobody:nogroup")]
    pub script_user: String,
    /// An address that webhooks of recovery plans may begin with; again for more. None: no
    /// webhook is sent.
    #[arg(long = "webhook", value_name = "URL")]
    pub webhooks: Vec<String>,
    /// Certificates (PEM) of authorities that webhooks and waits trust beside the system's.
    #[arg(long, value_name = "FILE")]
    pub webhook_ca: Option<PathBuf>,
}

/// Carries actions out from this process.
pub struct Outside {
    options: ActionOptions,
}

impl Outside {
    /// Takes the settings.
    pub fn new(options: ActionOptions) -> Outside {
        Outside { options }
    }

    async fn carry_out(&self, run: &ActionRun) -> ActionEnd {
        match (&run.act, run.task) {
            (Act::Dns { update, .. }, task) => {
                dns::run(update, task, run.found.as_ref()).await.unwrap_or_else(ActionEnd::failed)
            }
            (_, Task::Look) | (Act::Wait { .. }, Task::Undo) => ActionEnd::default(),
            (Act::Script { path, .. }, _) => script::run(&self.options, run, path).await,
            (Act::Webhook { url, retries, secret, .. }, _) => {
                let secret = secret.as_ref().map(|secret| secret.reveal()).unwrap_or_default();
                webhook::run(&self.options, run, url, *retries, secret).await
            }
            (Act::Wait { url, .. }, Task::Do) => wait::run(&self.options, url).await,
        }
    }
}

#[async_trait::async_trait]
impl ActionRunner for Outside {
    async fn run(&self, run: ActionRun) -> ActionEnd {
        let limit = Duration::from_secs(u64::from(run.act.timeout_s()));
        let (action, task, job) = (&run.facts.action, run.task, run.facts.job);
        tracing::info!(%job, %action, ?task, attempt = run.attempt, "an action of a plan begins");
        let end = match tokio::time::timeout(limit, self.carry_out(&run)).await {
            Ok(end) => end,
            Err(_) => ActionEnd::failed(format!("it was not over after {} s", limit.as_secs())),
        };
        let (code, failure) = (end.code, &end.failure);
        tracing::info!(%job, %action, ?task, ?code, ?failure, "an action of a plan ended");
        end
    }
}

/// A failover's name as the API has it.
fn operation(facts: &ActionFacts) -> String {
    format!("{:?}", facts.verb)
}

/// A direction as the API has it.
fn direction(facts: &ActionFacts) -> Option<&'static str> {
    facts.direction.map(|direction| match direction {
        Direction::ToRecovery => "PrimaryToRecovery",
        Direction::ToPrimary => "RecoveryToPrimary",
    })
}

/// What scripts and webhooks are told, in the words of the API.
fn told(facts: &ActionFacts) -> serde_json::Value {
    serde_json::json!({
        "plan": facts.plan,
        "job": facts.job,
        "operation": operation(facts),
        "direction": direction(facts),
        "group": facts.group,
        "action": facts.action,
        "machines": facts.machines,
    })
}

/// The end of a text that may be long, as far as it is kept.
fn tail(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(ActionEnd::OUTPUT_MAX);
    let text = String::from_utf8_lossy(&bytes[from..]).into_owned();
    // A letter that was cut, or is none, takes three bytes as its mark.
    let over = text.len().saturating_sub(ActionEnd::OUTPUT_MAX);
    let begin = (over..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text[begin..].to_owned()
}

/// The HTTP client of webhooks and waits: no proxy, no redirects.
fn http(options: &ActionOptions) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT);
    if let Some(path) = &options.webhook_ca {
        let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let pem = std::fs::read(path).map_err(|error| told(&error))?;
        let certificates =
            reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| told(&error))?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| causes(&error))
}

/// How long one attempt to connect may take: longer than three lost SYN packets.
const CONNECT: Duration = Duration::from_secs(10);

/// An error with all its causes: the outermost one says the least.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_output_the_end_is_kept() {
        assert_eq!(tail(b"short"), "short");
        let long = [vec![b'a'; ActionEnd::OUTPUT_MAX], b"end".to_vec()].concat();
        assert!(tail(&long).len() == ActionEnd::OUTPUT_MAX && tail(&long).ends_with("aend"));
        let odd = vec![0xff; ActionEnd::OUTPUT_MAX];
        assert!(tail(&odd).len() <= ActionEnd::OUTPUT_MAX);
    }
}
