//! The verbs of the command line that speak to a config server. They use the public API and can do
//! nothing that it cannot. The roles (`up`, `host`, `export`) are not here.
//!
//! `setup` is everything before an item is protected, `items` and `home` the failover verbs,
//! `points` and `jobs` what there is to look at. `docs/api.md` lists verbs and exit codes.

mod audit_log;
mod follow;
mod home;
mod item_set;
mod item_show;
mod items;
mod jobs;
mod network;
mod plans;
mod points;
mod readiness;
mod session;
mod setup;
pub(crate) mod table;

pub use audit_log::AuditVerb;
pub use home::{Planned, Synchronize};
pub use item_set::Settings;
pub use items::ItemVerb;
pub use jobs::{EventVerb, JobVerb};
pub use network::NetworkVerb;
pub use plans::PlanVerb;
pub use points::PointVerb;
pub use readiness::ReadinessOptions;
pub use setup::{FabricVerb, HostVerb, KeyVerb, MachineVerb, MappingVerb, PolicyVerb, VaultVerb};

use crate::client::ClientError;
use clap::{Args, Subcommand, ValueEnum};
use leeward_model::Problem;
use session::Session;
use std::{io::Write as _, path::PathBuf, process::ExitCode};

/// What stands below the help of the command: the stable exit codes.
pub const EXIT_CODES: &str = "Exit codes:
  0  done
  1  the operation failed, or the server hit an error
  2  the command line or its files cannot be used
  3  the config server cannot be reached
  4  the config server refused (bad request, not found, not now, not allowed)
  5  Leeward does not support this yet
  6  timed out waiting; the operation goes on";

/// How output is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// The API's own objects.
    Json,
}

/// Where the config server is, and how to behave.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// Folder of a config server on this machine: gives endpoint, CA and token.
    #[arg(long, global = true, env = "LEEWARD_FOLDER", value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Address of the config server, https://host:port.
    #[arg(long, global = true, env = "LEEWARD_ENDPOINT", value_name = "URL")]
    pub endpoint: Option<String>,
    /// File with the CA's certificate.
    #[arg(long, global = true, env = "LEEWARD_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// File with the bearer token.
    #[arg(long, global = true, env = "LEEWARD_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The vault.
    #[arg(long, global = true, env = "LEEWARD_VAULT", default_value = "default")]
    pub vault: String,
    /// The vault's resource group.
    #[arg(long, global = true, env = "LEEWARD_RESOURCE_GROUP", default_value = "leeward")]
    pub resource_group: String,
    /// The vault's subscription, a UUID.
    #[arg(
        long,
        global = true,
        env = "LEEWARD_SUBSCRIPTION",
        default_value = "00000000-0000-0000-0000-000000000001"
    )]
    pub subscription: String,
    /// How to write what comes back.
    #[arg(long, global = true, env = "LEEWARD_OUTPUT", value_enum, default_value = "table")]
    pub output: Output,
    /// Wait until the operation has ended.
    #[arg(long, global = true)]
    pub wait: bool,
    /// The longest to wait, in seconds.
    #[arg(long, global = true, env = "LEEWARD_TIMEOUT", default_value_t = 600)]
    pub timeout: u64,
}

/// The verbs, by noun.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Vaults: the units of administration.
    #[command(subcommand, after_help = EXIT_CODES)]
    Vault(VaultVerb),
    /// Fabrics: sites with hosts.
    #[command(subcommand, after_help = EXIT_CODES)]
    Fabric(FabricVerb),
    /// Registration keys, by which hosts join.
    #[command(subcommand, after_help = EXIT_CODES)]
    RegistrationKey(KeyVerb),
    /// Hosts that joined.
    #[command(subcommand, after_help = EXIT_CODES)]
    Hosts(HostVerb),
    /// Machines found on hosts.
    #[command(subcommand, after_help = EXIT_CODES)]
    Machine(MachineVerb),
    /// Replication policies.
    #[command(subcommand, after_help = EXIT_CODES)]
    Policy(PolicyVerb),
    /// Which site is replicated where.
    #[command(subcommand, after_help = EXIT_CODES)]
    Mapping(MappingVerb),
    /// Networks, and which one is which at another site.
    #[command(subcommand, after_help = EXIT_CODES)]
    Network(NetworkVerb),
    /// Protected items: protect, test, fail over.
    #[command(subcommand, after_help = EXIT_CODES)]
    Item(ItemVerb),
    /// Recovery plans: machines that go together, in order.
    #[command(subcommand, after_help = EXIT_CODES)]
    Plan(PlanVerb),
    /// Recovery points.
    #[command(subcommand, after_help = EXIT_CODES)]
    Point(PointVerb),
    /// Jobs.
    #[command(subcommand, after_help = EXIT_CODES)]
    Job(JobVerb),
    /// Events.
    #[command(subcommand, after_help = EXIT_CODES)]
    Event(EventVerb),
    /// Whether a failover would work now, of each item, of all at once, and of each plan.
    #[command(after_help = EXIT_CODES)]
    Readiness(ReadinessOptions),
    /// The audit log: who changed what.
    #[command(subcommand, after_help = EXIT_CODES)]
    Audit(AuditVerb),
}

/// Why a verb did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The server could not be reached, refused, or the client cannot be set up.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server took the operation and it failed.
    #[error("{0}")]
    Failed(Box<Problem>),
    /// The server does not have what was named.
    #[error("{0}")]
    Missing(Box<Problem>),
    /// The command line or a file cannot be used.
    #[error("{0}")]
    Usage(String),
    /// It takes longer than the caller waits.
    #[error("{what} has not ended after {seconds} s; it goes on")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
    },
}

impl CliError {
    /// The stable exit code; [`EXIT_CODES`] explains them.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            CliError::Client(ClientError::Refused { status: 501, .. }) => 5,
            CliError::Client(ClientError::Refused { status: 400..=499, .. })
            | CliError::Missing(_) => 4,
            CliError::Client(ClientError::Refused { .. }) | CliError::Failed(_) => 1,
            CliError::Client(ClientError::Unreachable { .. }) => 3,
            CliError::Client(ClientError::Setup(_)) | CliError::Usage(_) => 2,
            CliError::TimedOut { .. } => 6,
        }
    }
}

/// Runs one verb and returns its exit code. Results go to standard output, everything else to
/// standard error.
pub async fn run(connection: Connection, verb: Verb) -> ExitCode {
    let result = match Session::new(&connection) {
        Ok(session) => dispatch(&session, verb).await,
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed standard error leaves the exit code to tell.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

async fn dispatch(session: &Session, verb: Verb) -> Result<(), CliError> {
    match verb {
        Verb::Vault(verb) => setup::vault(session, verb).await,
        Verb::Fabric(verb) => setup::fabric(session, verb).await,
        Verb::RegistrationKey(verb) => setup::key(session, verb).await,
        Verb::Hosts(verb) => setup::host(session, verb).await,
        Verb::Machine(verb) => setup::machine(session, verb).await,
        Verb::Policy(verb) => setup::policy(session, verb).await,
        Verb::Mapping(verb) => setup::mapping(session, verb).await,
        Verb::Network(verb) => network::run(session, verb).await,
        Verb::Item(verb) => items::run(session, verb).await,
        Verb::Plan(verb) => plans::run(session, verb).await,
        Verb::Point(verb) => points::run(session, verb).await,
        Verb::Job(verb) => jobs::run(session, verb).await,
        Verb::Event(verb) => jobs::events(session, verb).await,
        Verb::Audit(verb) => audit_log::run(session, verb).await,
        Verb::Readiness(options) => readiness::run(session, options).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory as _, Parser};
    use leeward_model::Code;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        verb: Verb,
    }

    #[test]
    fn the_command_line_has_no_contradictions() {
        Program::command().debug_assert();
    }

    #[test]
    fn options_stand_before_or_behind_the_verb_and_aliases_are_known() {
        for line in [
            "leeward --vault v item failover web01 --point latest-processed --no-shutdown",
            "leeward item unplanned-failover web01 --vault v --wait --timeout 5",
            "leeward item reverse-replicate web01 --vault v",
            "leeward item reprotect web01 --host kvm-b --vault v --wait",
            "leeward item planned-failover web01 --wait-to-complete --wait --vault v",
            "leeward item planned-failover web01 --point p --sync for-synchronization --vault v",
            "leeward item planned-failover web01 --data-sync for-down-time --dry-run --vault v",
            "leeward item planned-failover web01 --host kvm-b --vault v",
            "leeward item complete-failover web01 --vault v --comment now",
            "leeward job resume 7 --comment power-off --vault v",
            "leeward job complete-failover 7 --vault v",
            "leeward item resync web01 --vault v",
            "leeward plan create shop --primary a --group db01 --group app01,web01 --vault v",
            "leeward plan unplanned-failover shop --point latest-processed --vault v --wait",
            "leeward plan planned-failover shop --direction recovery-to-primary --vault v",
            "leeward item disable web01 --migration-complete --keep-points --vault v",
            "leeward registration-key create --fabric hill --vault v",
        ] {
            let program = Program::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(program.connection.vault, "v", "{line}");
        }
        for line in [
            "leeward item explode web01",
            "leeward plan create shop --primary a",
            "leeward item planned-failover web01 --no-shutdown",
            "leeward item disable web01 --purge --migration-complete",
            "leeward job resume 7 --answer maybe",
        ] {
            let wrong = Program::try_parse_from(line.split(' '));
            assert_eq!(wrong.err().unwrap().exit_code(), 2, "{line}");
        }
        let program = Program::try_parse_from(["leeward", "vault", "list"]).unwrap();
        assert!(matches!(program.verb, Verb::Vault(VaultVerb::List)));
    }

    #[test]
    fn every_kind_of_failure_has_its_exit_code() {
        let refused = |status| {
            CliError::Client(ClientError::Refused {
                status,
                code: "Code".into(),
                problem: Box::new(Code::BAD_REQUEST.problem("it")),
            })
        };
        let failed = || Box::new(Code::BAD_REQUEST.problem("it"));
        for (error, code) in [
            (CliError::Failed(failed()), 1),
            (refused(500), 1),
            (refused(503), 1),
            (CliError::Usage("x".into()), 2),
            (CliError::Client(ClientError::Setup("x".into())), 2),
            (
                CliError::Client(ClientError::Unreachable { address: "a".into(), why: "b".into() }),
                3,
            ),
            (refused(400), 4),
            (refused(401), 4),
            (refused(404), 4),
            (refused(409), 4),
            (CliError::Missing(failed()), 4),
            (refused(501), 5),
            (CliError::TimedOut { what: "x".into(), seconds: 1 }, 6),
        ] {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }
}
