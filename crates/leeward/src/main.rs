//! The `leeward` command: roles that run until they are told to end, and verbs of the public API.

use clap::{Parser, Subcommand};
use leeward::{
    cli::{self, Connection, EXIT_CODES, Verb},
    export::{self, ExportOptions},
    kit::{self, KitVerb},
    roles::{
        site::{self, HostOptions},
        up::{self, UpOptions},
    },
    store::{self, StoreVerb},
};
use std::{io::IsTerminal as _, process::ExitCode};
use tracing_subscriber::EnvFilter;

/// Open, self-hosted site recovery.
#[derive(Parser)]
#[command(version, about, max_term_width = 100, after_help = EXIT_CODES)]
struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a site: config server, public API, replica store, machines.
    Up(UpOptions),
    /// Runs a host of machines that another site protects.
    Host(HostOptions),
    /// Serves one recovery point over NBD; needs no other part of Leeward.
    Export(ExportOptions),
    /// Break-glass tool: reads and writes a replica store without any server.
    #[command(subcommand, after_help = store::CARD)]
    Store(StoreVerb),
    /// Recovery kit: opens a replica store with everything else gone.
    #[command(subcommand, after_help = store::EXIT_CODES)]
    Kit(KitVerb),
    #[command(flatten)]
    Verb(Verb),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("LEEWARD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("could not start: {error}");
            return ExitCode::from(1);
        }
    };
    let outcome = runtime.block_on(async {
        match arguments.command {
            Command::Up(options) => up::run(options).await.map(|()| ExitCode::SUCCESS),
            Command::Host(options) => site::run(options).await.map(|()| ExitCode::SUCCESS),
            Command::Export(options) => export::run(options).await.map(|()| ExitCode::SUCCESS),
            Command::Store(verb) => Ok(store::run(verb, arguments.connection.output).await),
            Command::Kit(verb) => Ok(kit::run(verb, arguments.connection.output).await),
            Command::Verb(verb) => Ok(cli::run(arguments.connection, verb).await),
        }
    });
    // Store work that hangs on a dead disk must not hold the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(1)
        }
    }
}
