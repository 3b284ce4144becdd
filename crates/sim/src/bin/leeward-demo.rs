//! `./demo`: runs the story, writes `demo-report.json`, prints the table.

use clap::Parser;
use leeward_sim::demo::{
    sites::Sites,
    story::{Options, Story},
};
use std::{path::PathBuf, process::ExitCode};

/// Shows a real disaster and a real recovery on this machine.
#[derive(Parser)]
struct Arguments {
    /// Leave both sites running and say how to look around.
    #[arg(long)]
    keep: bool,
    /// End what an earlier --keep left in this folder, and delete it.
    #[arg(long, value_name = "FOLDER")]
    clean: Option<PathBuf>,
    /// Where the report is written.
    #[arg(long, default_value = "demo-report.json")]
    report: PathBuf,
    /// Size of the guest's data disk, sparse.
    #[arg(long, default_value = "64M")]
    data_size: String,
    /// Milliseconds between the last recovery point and the disaster.
    #[arg(long, default_value_t = 1_000)]
    kill_after_ms: u64,
    /// End after the commit, without the way home.
    #[arg(long)]
    outward_only: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(folder) = arguments.clean {
        let marked = folder.join("up/leeward.role").exists();
        if !marked {
            eprintln!("{} is no folder of the demo", folder.display());
            return ExitCode::from(2);
        }
        Sites::new(folder, PathBuf::new(), false).clean();
        return ExitCode::SUCCESS;
    }
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let program = match std::env::current_exe() {
        Ok(path) => path.with_file_name("leeward"),
        Err(error) => {
            eprintln!("could not find the product's program: {error}");
            return ExitCode::from(1);
        }
    };
    let folder = std::env::temp_dir().join(format!("lw-demo-{}", std::process::id()));
    let options = Options {
        keep: arguments.keep,
        root,
        program,
        folder,
        data_size: arguments.data_size,
        kill_after_ms: arguments.kill_after_ms,
        outward_only: arguments.outward_only,
    };
    let mut story = Story::new(options);
    let ok = tokio::select! {
        ok = story.run() => ok,
        () = leeward::roles::ended() => {
            // Whoever interrupts wants it gone, whatever was asked for before.
            eprintln!("\ninterrupted; ending both sites");
            story.clean();
            return ExitCode::from(130);
        }
    };
    let json = serde_json::to_string_pretty(&story.report).expect("plain figures serialize");
    if let Err(error) = std::fs::write(&arguments.report, json + "\n") {
        eprintln!("could not write {}: {error}", arguments.report.display());
        return ExitCode::from(1);
    }
    story.show_table();
    if arguments.keep {
        println!("{}", story.look_around());
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
