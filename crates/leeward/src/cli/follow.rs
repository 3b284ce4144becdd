//! Waits for operations and shows how jobs go: a bar on terminals, lines elsewhere.

use super::{
    CliError,
    session::{Session, failure, path_of, text},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Pauses between two looks; the last one repeats. The server's jobs move at about this pace.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_secs(1)];

/// A deadline with growing pauses before it.
pub(crate) struct Patience {
    deadline: Instant,
    seconds: u64,
    looks: usize,
}

impl Patience {
    /// As long as the caller said.
    pub fn of(session: &Session) -> Patience {
        Patience {
            deadline: Instant::now() + session.timeout,
            seconds: session.timeout.as_secs(),
            looks: 0,
        }
    }
    /// Waits for the next look at `what`.
    pub async fn pause(&mut self, what: &str) -> Result<(), CliError> {
        if Instant::now() >= self.deadline {
            return Err(CliError::TimedOut { what: what.to_owned(), seconds: self.seconds });
        }
        let pause = PAUSES[self.looks.min(PAUSES.len() - 1)];
        self.looks += 1;
        sleep(pause.min(self.deadline.saturating_duration_since(Instant::now()))).await;
        Ok(())
    }
}

/// Shows the tasks of one job as they go.
struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    fn new() -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Progress { bar, last: String::new() }
    }

    fn show(&mut self, job: &Value) {
        let properties = &job["properties"];
        let (done, total, line) = summary(properties);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(line);
        } else if line != self.last {
            // A closed standard error loses progress, nothing else.
            let _ = writeln!(std::io::stderr(), "{done}/{total} {line}");
            self.last = line;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Tasks that are over, all tasks, and what goes on.
fn summary(properties: &Value) -> (u64, u64, String) {
    let tasks = properties["tasks"].as_array().map_or(&[][..], Vec::as_slice);
    let over = |task: &&Value| {
        let state = task["state"].as_str().unwrap_or_default();
        !matches!(state, "NotStarted" | "InProgress" | "Suspended")
    };
    let done = tasks.iter().filter(over).count() as u64;
    let now = tasks
        .iter()
        .find(|task| matches!(task["state"].as_str(), Some("InProgress" | "Suspended")));
    let mut line =
        format!("{} {}", text(&properties["friendlyName"]), text(&properties["stateDescription"]));
    if let Some(task) = now {
        line.push_str(&format!(": {}", text(&task["friendlyName"])));
        let message = text(&task["leewardMessage"]);
        if !message.is_empty() {
            line.push_str(&format!(" ({message})"));
        }
    }
    let question = text(&properties["leewardQuestion"]);
    if !question.is_empty() {
        line.push_str(&format!(" - asks: {question}"));
    }
    (done, tasks.len() as u64, line)
}

/// Waits until an operation has ended. `url` is what the server said to ask.
pub(crate) async fn operation(
    session: &Session,
    url: &str,
    job: &str,
    what: &str,
) -> Result<(), CliError> {
    let mut patience = Patience::of(session);
    let mut progress = Progress::new();
    loop {
        let status = session.client.get(path_of(url)).await?;
        match status["status"].as_str() {
            Some("Succeeded") => return Ok(()),
            Some("Failed" | "Canceled") => return Err(failure(&status["error"])),
            _ => {}
        }
        progress.show(&session.client.get(&format!("replicationJobs/{job}")).await?);
        patience.pause(what).await?;
    }
}

/// Watches a job until it has ended, or waits for a person.
pub(crate) async fn job(session: &Session, job: &str) -> Result<Value, CliError> {
    let mut patience = Patience::of(session);
    let mut progress = Progress::new();
    loop {
        let object = session.client.get(&format!("replicationJobs/{job}")).await?;
        progress.show(&object);
        match object["properties"]["state"].as_str() {
            Some("InProgress" | "NotStarted") => patience.pause(&format!("job {job}")).await?,
            _ => return Ok(object),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_job_is_told_in_one_line() {
        let properties = json!({
            "friendlyName": "Failover", "stateDescription": "InProgress",
            "leewardQuestion": null,
            "tasks": [
                {"state": "Succeeded", "friendlyName": "Check"},
                {"state": "Other", "friendlyName": "Shut down"},
                {"state": "InProgress", "friendlyName": "Start", "leewardMessage": "QEMU"},
                {"state": "NotStarted", "friendlyName": "Record"},
            ],
        });

        let (done, total, line) = summary(&properties);

        assert_eq!((done, total), (2, 4));
        assert_eq!(line, "Failover InProgress: Start (QEMU)");
    }
}
