//! Runs a script of the folder of scripts: without rights, for a bounded time, with its output
//! kept. It ends with the process that started it. What it does is not looked at.

use super::{ActionOptions, direction, operation, tail, told};
use leeward_control::plans::{ActionEnd, ActionRun, Task};
use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use std::{
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::mpsc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe::Receiver,
    process::{Child, Command},
    runtime::Handle,
};

/// Where scripts find programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long output is waited for after the end of a script, whose children are killed by then: what
/// is in the pipe is there at once.
const DRAIN: Duration = Duration::from_secs(1);

/// Ends all that a script has started, with the script.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // Nobody is left in it: that is what is wanted.
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

/// Runs a script.
pub(super) async fn run(options: &ActionOptions, run: &ActionRun, path: &str) -> ActionEnd {
    let file = match allowed(&options.scripts, path) {
        Ok(file) => file,
        Err(why) => return ActionEnd::failed(why),
    };
    match carry_out(options, run, &file).await {
        Ok((status, output)) => ended(path, status, output),
        Err(error) => ActionEnd::failed(format!("{path} could not be started: {error}")),
    }
}

fn ended(path: &str, status: ExitStatus, output: String) -> ActionEnd {
    let failure = match (status.success(), status.code(), status.signal()) {
        (true, _, _) => None,
        (false, Some(code), _) => Some(format!("{path} ended with exit code {code}")),
        (false, None, signal) => {
            Some(format!("{path} was ended by signal {}", signal.unwrap_or_default()))
        }
    };
    ActionEnd { failure, code: status.code(), output, found: None }
}

/// The script, if nobody but this process's user and root can change it.
fn allowed(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let file = folder.join(name);
    let look = |path: &Path| {
        path.symlink_metadata().map_err(|error| format!("{}: {error}", path.display()))
    };
    for path in [folder, &file] {
        let found = look(path)?;
        let strange = found.uid() != 0 && found.uid() != geteuid().as_raw();
        if strange || found.permissions().mode() & 0o022 != 0 {
            return Err(format!(
                "{} is not run: somebody else than root and the user of leeward can change it",
                path.display()
            ));
        }
    }
    let found = look(&file)?;
    match found.is_file() && found.permissions().mode() & 0o111 != 0 {
        true => Ok(file),
        false => Err(format!("{} is no program: a file that can be run", file.display())),
    }
}

/// The command that gives up all rights and becomes the script. `setpriv` does it, because that
/// happens between fork and exec, where only unsafe code of ours could.
fn command(options: &ActionOptions, run: &ActionRun, file: &Path) -> Command {
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--no-new-privs", "--pdeathsig=KILL"]);
    if geteuid().is_root() {
        let (user, group) =
            options.script_user.split_once(':').unwrap_or((&options.script_user, "nogroup"));
        command.arg(format!("--reuid={user}")).arg(format!("--regid={group}"));
        command.args(["--clear-groups", "--inh-caps=-all"]);
    }
    command.arg("--").arg(file).env_clear().env("PATH", PATH).envs(environment(run));
    command.current_dir("/").process_group(0).kill_on_drop(true).stdin(Stdio::piped());
    command
}

fn environment(run: &ActionRun) -> Vec<(&'static str, String)> {
    let facts = &run.facts;
    let mode = match run.task {
        Task::Undo => "undo",
        Task::Do | Task::Look => "do",
    };
    let lines = |of: &dyn Fn(&leeward_control::plans::ActionMachine) -> String| {
        facts.machines.iter().map(of).collect::<Vec<_>>().join("\n")
    };
    vec![
        ("LEEWARD_MODE", mode.to_owned()),
        ("LEEWARD_OPERATION", operation(facts)),
        ("LEEWARD_DIRECTION", direction(facts).unwrap_or_default().to_owned()),
        ("LEEWARD_PLAN", facts.plan.clone()),
        ("LEEWARD_GROUP", facts.group.clone()),
        ("LEEWARD_ACTION", facts.action.clone()),
        ("LEEWARD_JOB", facts.job.to_string()),
        ("LEEWARD_RUN", run.id.clone()),
        ("LEEWARD_ATTEMPT", run.attempt.to_string()),
        ("LEEWARD_MACHINES", lines(&|one| one.name.clone())),
        (
            "LEEWARD_POINTS",
            lines(&|one| one.point.map(|point| point.to_string()).unwrap_or_default()),
        ),
        ("LEEWARD_HOSTS", lines(&|one| one.host.clone())),
        ("LEEWARD_ADDRESSES", lines(&|one| one.macs.join(" "))),
    ]
}

/// Starts the child on a thread that stays as long as `stay` says. The kernel ends the child when
/// the thread that made it ends, not only with the process.
async fn spawn(mut command: Command, stay: mpsc::Receiver<()>) -> io::Result<Child> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let runtime = Handle::current();
    std::thread::Builder::new().name("script".to_owned()).spawn(move || {
        let _entered = runtime.enter();
        let spawned = command.spawn();
        // Its ends of the pipes would keep the output open.
        drop(command);
        if tell.send(spawned).is_ok() {
            let _ = stay.recv();
        }
    })?;
    told.await.map_err(|_| io::Error::other("the thread that starts it ended"))?
}

async fn carry_out(
    options: &ActionOptions,
    run: &ActionRun,
    file: &Path,
) -> io::Result<(ExitStatus, String)> {
    let (output, writer) = io::pipe()?;
    let mut command = command(options, run, file);
    command.stdout(writer.try_clone()?).stderr(writer);
    let (_stays, stay) = mpsc::channel();
    let mut child = spawn(command, stay).await?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let group = pid.map(Group);
    let mut output = Receiver::from_owned_fd(output.into())?;
    let told = told(&run.facts).to_string();
    let stdin = child.stdin.take();
    let mut kept = Vec::new();
    let status = {
        // A script need not read what it is told.
        let tell = async {
            if let Some(mut stdin) = stdin {
                stdin.write_all(told.as_bytes()).await.ok();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            status = child.wait() => status,
            () = tell => unreachable!("it never ends"),
            () = read(&mut output, &mut kept) => child.wait().await,
        }
    }?;
    drop(group);
    tokio::time::timeout(DRAIN, read(&mut output, &mut kept)).await.ok();
    Ok((status, tail(&kept)))
}

/// Reads to the end and keeps the last of it.
async fn read(output: &mut Receiver, kept: &mut Vec<u8>) {
    let mut piece = [0; ActionEnd::OUTPUT_MAX];
    while let Ok(count @ 1..) = output.read(&mut piece).await {
        kept.extend_from_slice(&piece[..count]);
        kept.drain(..kept.len().saturating_sub(ActionEnd::OUTPUT_MAX));
    }
}
