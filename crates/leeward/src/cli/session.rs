//! What every verb works with: the client, and where and how results are written.

use super::{
    CliError, Connection, Output, follow,
    table::{Colour, fields, table},
};
use crate::client::{ApiClient, ClientError, Reply};
use leeward_model::{Code, Problem};
use serde_json::{Value, json};
use std::{
    io::{IsTerminal as _, Write as _},
    path::Path,
    time::Duration,
};

/// One use of the command line.
pub(crate) struct Session {
    /// The client.
    pub client: ApiClient,
    /// How results are written.
    pub output: Output,
    /// Whether verbs wait for what they start.
    pub wait: bool,
    /// The longest to wait.
    pub timeout: Duration,
    /// Id of the vaults' list: subscription and resource group.
    pub group: String,
    /// Name of the vault.
    pub vault: String,
}

fn read(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path)
        .map_err(|error| CliError::Usage(format!("could not read {}: {error}", path.display())))
}

/// A value that is given, or lies in the folder under `file`.
fn from_folder(
    given: Option<&Path>,
    folder: Option<&Path>,
    file: &str,
    option: &str,
) -> Result<String, CliError> {
    match (given, folder) {
        (Some(path), _) => read(path),
        (None, Some(folder)) => read(&folder.join(file)),
        (None, None) => Err(CliError::Usage(format!("{option} or --folder is missing"))),
    }
}

impl Session {
    /// Reads the files that the connection names.
    pub fn new(connection: &Connection) -> Result<Session, CliError> {
        let folder = connection.folder.as_deref();
        let endpoint = match (&connection.endpoint, folder) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, folder) => from_folder(None, folder, "endpoint", "--endpoint")?,
        };
        let ca = from_folder(connection.ca.as_deref(), folder, "ca.pem", "--ca")?;
        let token = connection.token_file.as_deref();
        let token = from_folder(token, folder, "admin.token", "--token-file")?;
        let group = format!(
            "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.RecoveryServices/vaults",
            escape(&connection.subscription),
            escape(&connection.resource_group)
        );
        let base = format!("{group}/{}", escape(&connection.vault));
        Ok(Session {
            client: ApiClient::new(endpoint.trim(), &ca, &token, &base)?,
            output: connection.output,
            wait: connection.wait,
            timeout: Duration::from_secs(connection.timeout),
            group,
            vault: connection.vault.clone(),
        })
    }

    /// Whether standard output takes colours.
    pub fn colour(&self) -> Colour {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if std::io::stdout().is_terminal() && !plain { Colour::On } else { Colour::Off }
    }

    /// Writes a line of text, of table output only.
    pub fn say(&self, text: &str) {
        if self.output == Output::Table {
            print(&format!("{text}\n"));
        }
    }

    /// Writes an object as the API gave it, or else as `pairs`.
    pub fn show(&self, object: &Value, pairs: &[(&str, String)]) {
        match self.output {
            Output::Json => print_json(object),
            Output::Table => print(&fields(pairs, self.colour())),
        }
    }

    /// Writes an object as the API gave it, or else only its secret, as the file has it that it
    /// goes into.
    pub fn show_secret(&self, object: &Value, secret: &str) {
        match self.output {
            Output::Json => print_json(object),
            Output::Table => print(&format!("{secret}\n")),
        }
    }

    /// Writes a list as the API gave it, or else as a table of what `row` makes of each.
    pub fn list(&self, objects: &[Value], heads: &[&str], row: impl Fn(&Value) -> Vec<String>) {
        match self.output {
            Output::Json => print_json(&Value::from(objects.to_vec())),
            Output::Table => {
                let rows: Vec<_> = objects.iter().map(row).collect();
                print(&table(heads, &rows, self.colour()));
            }
        }
    }

    /// Ends a verb whose request was taken: tells the job, and waits for it when asked to.
    /// Returns whether the operation is known to have ended well.
    pub async fn finish(&self, reply: &Reply, what: &str) -> Result<(), CliError> {
        let Some(operation) = &reply.operation else {
            self.show(&reply.body, &[("done", what.to_owned())]);
            return Ok(());
        };
        let job = reply.job.as_deref().map(last_segment).unwrap_or_default().to_owned();
        if self.wait {
            follow::operation(self, operation, &job, what).await?;
            let object = self.client.get(&format!("replicationJobs/{job}")).await?;
            self.show(&object, &[("done", what.to_owned()), ("job", job)]);
            return Ok(());
        }
        self.show(&json!({ "job": job }), &[("started", what.to_owned()), ("job", job.clone())]);
        Ok(())
    }

    /// Does what has to be over before the next request can be made, waiting for it.
    pub async fn settle(&self, reply: &Reply, what: &str) -> Result<(), CliError> {
        let Some(operation) = &reply.operation else { return Ok(()) };
        let job = reply.job.as_deref().map(last_segment).unwrap_or_default().to_owned();
        follow::operation(self, operation, &job, what).await
    }

    /// Finds the container of a fabric: its id.
    pub async fn container(&self, fabric: &str) -> Result<String, CliError> {
        let path = format!("replicationFabrics/{}/replicationProtectionContainers", escape(fabric));
        let containers = self.client.list(&path).await?;
        let id = containers.first().and_then(|container| container["id"].as_str());
        id.map(str::to_owned).ok_or_else(|| missing(format!("fabric {fabric} has no container")))
    }

    /// Finds a protected item by name: the object.
    pub async fn item(&self, name: &str, fabric: Option<&str>) -> Result<Value, CliError> {
        let same = |value: &Value, wanted: &str| {
            value.as_str().is_some_and(|value| value.eq_ignore_ascii_case(wanted))
        };
        let all = self.client.list("replicationProtectedItems").await?;
        let mut found = all.into_iter().filter(|item| {
            let site = &item["properties"]["primaryFabricFriendlyName"];
            same(&item["name"], name) && fabric.is_none_or(|fabric| same(site, fabric))
        });
        match (found.next(), found.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(missing(format!("there is no protected item {name}"))),
            (Some(_), Some(_)) => Err(CliError::Usage(format!(
                "several protected items are called {name}; choose one with --fabric"
            ))),
        }
    }
}

/// The refusal of a name that the server's list does not have.
pub(crate) fn missing(what: String) -> CliError {
    CliError::Missing(Box::new(Code::NOT_FOUND.problem(what)))
}

/// The failure that a status document tells.
pub(crate) fn failure(error: &Value) -> CliError {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let detail = &error["details"][0];
    CliError::Failed(Box::new(Problem {
        code: text(&detail["code"]),
        what: text(&error["message"]),
        cause: text(&detail["possibleCauses"]),
        now: text(&detail["currentState"]),
        todo: text(&detail["recommendedAction"]),
    }))
}

/// The path and query of an absolute URL; this client keeps to the server that it was given.
pub(crate) fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find('/').map_or(rest, |at| &rest[at..])
}

/// The name at the end of an id.
pub(crate) fn last_segment(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or_default()
}

/// A name as one segment of a path.
pub(crate) fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A field as text for people; empty when it is absent.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A list of texts with commas.
pub(crate) fn texts(value: &Value) -> String {
    let items: Vec<_> = value.as_array().into_iter().flatten().map(text).collect();
    items.join(", ")
}

fn print_json(value: &Value) {
    print(&format!("{value:#}\n"));
}

/// Writes to standard output; a reader that has gone is no error of ours.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

impl From<Problem> for CliError {
    fn from(problem: Problem) -> Self {
        CliError::Failed(Box::new(problem))
    }
}

/// Whether an error is the server's "no such object".
pub(crate) fn is_not_found(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { status: 404, .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_links_are_cut_to_their_path() {
        assert_eq!(escape("web 01/ä"), "web%2001%2F%C3%A4");
        assert_eq!(path_of("https://host:1/a/b?c=d"), "/a/b?c=d");
        assert_eq!(path_of("/a?b"), "/a?b");
        assert_eq!(last_segment("/a/b"), "b");
    }

    #[test]
    fn a_missing_file_or_option_is_bad_usage() {
        let given = from_folder(None, None, "ca.pem", "--ca");
        let gone = from_folder(Some(Path::new("/nonexistent/ca.pem")), None, "ca.pem", "--ca");

        assert_eq!(given.unwrap_err().exit_code(), 2);
        assert_eq!(gone.unwrap_err().exit_code(), 2);
    }
}
