//! A host's folder and identity: how `leeward host` joins a site, and what both roles that have
//! machines need to start.

use crate::{
    audit_pace::{AuditOptions, AuditPace},
    folder,
    roles::host::{
        self, Host, HostParts, clock,
        dial::{self, TlsDialer},
        exports::ProcessLauncher,
        link,
        site_store::SiteStore,
        spool::room::{SpoolOptions, SpoolRoom},
    },
    roles::place::{StoreOptions, StorePlace},
    roles::session::{FrameReader, FrameWriter},
    sealing::{Sealing, SealingOptions},
    trust::{
        authority::{self, Identity},
        tls,
    },
};
use anyhow::{Context as _, bail};
use leeward_fabric::{
    Fabric as _, MachineRef, accelerator,
    qemu::{QemuConfig, QemuFabric},
};
use leeward_model::{Code, HostId, MachineState, Problem, Site};
use leeward_replica::Store;
use leeward_wire::{
    data::{DataMessage, JoinRequest},
    message::{HostNote, NoteKind},
    seal::Compression,
};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_rustls::TlsConnector;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long the config server may take to admit a host.
const JOIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Sockets of machines lie below a folder whose path has at most this many bytes: socket paths
/// hold 107.
const RUN_FOLDER_BYTES_MAX: usize = 60;

/// Settings of `leeward host`.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct HostOptions {
    /// What to do by hand, instead of running the host.
    #[command(subcommand)]
    pub command: Option<HostCommand>,
    /// Folder of this host: identity, state, machines.
    #[arg(long, required = true)]
    pub data: Option<PathBuf>,
    /// Folder of the machines (machines/NAME/machine.toml) [default: DATA/machines].
    #[arg(long)]
    pub machines: Option<PathBuf>,
    /// Config server to join or to connect to, host:port; kept after the first start.
    #[arg(long)]
    pub join: Option<String>,
    /// File with the single-use registration key; needed at the first start only.
    #[arg(long)]
    pub key_file: Option<PathBuf>,
    /// Name of this host for people [default: the machine's host name].
    #[arg(long)]
    pub name: Option<String>,
    /// Where its replica store is.
    #[command(flatten)]
    pub store: StoreOptions,
    /// How its machines' data are sealed.
    #[command(flatten)]
    pub sealing: SealingOptions,
    /// How fast its machines and replicas are audited.
    #[command(flatten)]
    pub audit: AuditOptions,
    /// How much may wait for a store that is away.
    #[command(flatten)]
    pub spool: SpoolOptions,
}

/// What may be asked of a host by hand, on its own machine.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum HostCommand {
    /// Starts one of this host's machines. A protected one needs a start permit of this boot.
    Start {
        /// The machine's name.
        name: String,
        /// Folder of this host.
        #[arg(long)]
        data: PathBuf,
        /// Folder of the machines [default: DATA/machines].
        #[arg(long)]
        machines: Option<PathBuf>,
        /// Start it without a permit: you know that it runs nowhere else.
        #[arg(long)]
        i_am_sure: bool,
    },
}

/// Does what was asked by hand.
///
/// # Errors
/// NO_PERMIT without `--i-am-sure`; whatever QEMU says.
pub async fn command(command: HostCommand) -> anyhow::Result<()> {
    let HostCommand::Start { name, data, machines, i_am_sure } = command;
    let data = folder::existing(&data).map_err(|error| error.problem())?;
    let id = host_id(&data).unwrap_or(HostId::from_u128(0));
    let check = host::permits::PermitCheck {
        key: std::fs::read_to_string(data.join("permit-key")).ok(),
        host: id,
        boot: clock::boot_id()?,
    };
    let assignment = host::assignment_load(&data);
    if let Err(problem) = host::start_allowed(&data, &assignment, &check, &name) {
        if !i_am_sure {
            return Err(problem.into());
        }
        tracing::warn!(machine = %name, code = %problem.code, "started by hand without a permit");
        let what = format!("machine {name} was started by hand without a permit");
        audit(&data, &what)?;
        let note = HostNote {
            id: uuid::Uuid::new_v4(),
            at: clock::WallClock::system().now(),
            kind: NoteKind::StartedByHand,
            item: host::autostart::item_of(&assignment, &name),
            object: name.clone(),
            text: format!("{what} (uid {})", rustix::process::getuid().as_raw()),
        };
        host::notes::note_add(&data, &note)?;
        println!("starting {name} without a permit, as you asked");
    }
    let machines = machines.unwrap_or_else(|| data.join("machines"));
    let fabric = qemu(&data, &machines, 0).await?.0;
    let machine = MachineRef::Owned(name.clone());
    let state = fabric.machine_state(&machine).await.map_err(|error| error.problem())?;
    if state == MachineState::Unknown && host_runs(&data) {
        // QEMU takes one client at a time, and that is the host's own process: it has started the
        // machine itself, or was first to look at it.
        println!("{name} has a QEMU already, in the hands of the running host: see its log");
        return Ok(());
    }
    fabric.machine_start(&name).await.map_err(|error| error.problem())?;
    println!("{name} is running");
    Ok(())
}

/// Whether a role's process runs on the folder.
fn host_runs(data: &Path) -> bool {
    let owner = std::fs::read_to_string(data.join("leeward.role")).unwrap_or_default();
    matches!(folder::lock(data, owner.trim()), Err(folder::FolderError::InUse(_)))
}

/// Adds a line to the host's audit log: what a person did against the rules, and when. Durable
/// before it is done.
fn audit(data: &Path, what: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let path = data.join("audit.log");
    let mut log = std::fs::File::options().create(true).append(true).open(path)?;
    let now = clock::stamp(clock::WallClock::system().now());
    writeln!(log, "{now} uid={} {what}", rustix::process::getuid().as_raw())?;
    log.sync_all()?;
    Ok(())
}

/// The QEMU fabric of a host's folder, its run folder and its accelerator.
async fn qemu(
    data: &Path,
    machines: &Path,
    hydration_bytes_per_second: u64,
) -> anyhow::Result<(QemuFabric, PathBuf, accelerator::Accelerator)> {
    std::fs::create_dir_all(machines)?;
    let run = run_folder(data)?;
    let blank = QemuConfig::new(PathBuf::new(), PathBuf::new(), accelerator::Accelerator::Tcg);
    let accelerator = accelerator::probe(&blank.program, &data.join("accelerator.json")).await?;
    let mut config = QemuConfig::new(machines.to_owned(), run.clone(), accelerator);
    config.hydration_bytes_per_second = hydration_bytes_per_second;
    Ok((QemuFabric::new(config), run, accelerator))
}

/// Who a host is, in `host.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostFile {
    /// Its id.
    pub host: HostId,
    /// Its name.
    pub name: String,
    /// The config server's address.
    pub server: String,
}

/// Runs `leeward host` until it is told to end.
///
/// # Errors
/// When the folder cannot be used or the host cannot join. Once it has joined it keeps trying.
pub async fn run(options: HostOptions) -> anyhow::Result<()> {
    if let Some(asked) = options.command {
        return command(asked).await;
    }
    let data = options.data.clone().context("--data is needed")?;
    let _lock = folder::lock(&data, "host").map_err(|error| error.problem())?;
    let data = data.canonicalize()?;
    host::folders_make(&data)?;
    let known = std::fs::read(data.join("host.json")).ok();
    let file: HostFile = match known {
        Some(bytes) => serde_json::from_slice(&bytes).context("host.json is damaged")?,
        None => join(&options, &data).await?,
    };
    let file = match options.join {
        Some(server) if server != file.server => {
            let moved = HostFile { server, ..file };
            folder::write_whole(&data.join("host.json"), &serde_json::to_vec_pretty(&moved)?)?;
            moved
        }
        _ => file,
    };
    let identity = identity(&data)?;
    let ca_pem = std::fs::read_to_string(data.join("ca.pem"))?;
    let dialer = Arc::new(TlsDialer::new(&identity, &ca_pem)?);
    let machines = options.machines.unwrap_or_else(|| data.join("machines"));
    let sealing = options.sealing.or(Compression::Adaptive);
    let (audit, spool_bytes) = (options.audit.pace(), options.spool.spool_bytes);
    let (store, secret, at) = role_store(&data, &options.store, file.host)?;
    if let Some(secret) = secret {
        recovery_key_keep(&data, &secret)?;
    }
    let place = MachinePlace {
        machines,
        hydration_bytes_per_second: 0,
        sealing,
        store: at,
        audit,
        spool_bytes,
    };
    let store = Some(site_store(store, Site::Primary));
    let parts = parts(&data, &place, (file.host, file.name), dialer, store).await?;
    let host = Host::new(parts);
    let stop = CancellationToken::new();
    let tasks = start(&host, file.server, &stop);
    println!("leeward host {} is running", host.name);
    crate::roles::ended().await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Starts the tasks that every host has.
pub fn start(host: &Arc<Host>, server: String, stop: &CancellationToken) -> TaskTracker {
    let tasks = TaskTracker::new();
    tasks.spawn(Arc::clone(host).discover_loop(stop.clone()));
    tasks.spawn(link::run(Arc::clone(host), server, stop.clone()));
    let (starting, ending) = (Arc::clone(host), stop.clone());
    tasks.spawn(async move { starting.autostart(ending).await });
    tasks
}

/// The identity in a host's folder.
///
/// # Errors
/// When a file cannot be read.
pub fn identity(data: &Path) -> anyhow::Result<Identity> {
    let read = |name: &str| {
        std::fs::read_to_string(data.join(name)).with_context(|| format!("could not read {name}"))
    };
    Ok(Identity { chain_pem: read("host.pem")?, key_pem: read("host.key")? })
}

/// The id of the host whose folder it is, whichever role made it.
fn host_id(data: &Path) -> Option<HostId> {
    if let Ok(bytes) = std::fs::read(data.join("host.json")) {
        return serde_json::from_slice::<HostFile>(&bytes).ok().map(|file| file.host);
    }
    std::fs::read_to_string(data.join("host.id")).ok()?.trim().parse().ok()
}

/// Where a host's machines are and how they are treated.
#[derive(Clone, Debug)]
pub struct MachinePlace {
    /// Folder of the machines.
    pub machines: PathBuf,
    /// Cap of each disk's hydration in bytes a second; 0 for none.
    pub hydration_bytes_per_second: u64,
    /// How it seals what they write.
    pub sealing: Sealing,
    /// Where its replica store is.
    pub store: StorePlace,
    /// How fast it is audited.
    pub audit: AuditPace,
    /// Bytes that points may take which wait for their store; 0 for none.
    pub spool_bytes: u64,
}

/// Everything that a host with QEMU machines is made of.
///
/// # Errors
/// When folders cannot be made or `/proc` cannot be read.
pub async fn parts(
    data: &Path,
    place: &MachinePlace,
    (id, name): (HostId, String),
    dialer: dial::SharedDialer,
    store: Option<Arc<SiteStore>>,
) -> anyhow::Result<HostParts> {
    let hydration = place.hydration_bytes_per_second;
    let (fabric, run_folder, accelerator) = qemu(data, &place.machines, hydration).await?;
    let launcher =
        ProcessLauncher { program: std::env::current_exe()?, store: place.store.clone() };
    Ok(HostParts {
        id,
        name,
        boot: clock::boot_id()?,
        folder: data.to_owned(),
        run_folder,
        accelerator: accelerator.name().to_owned(),
        fabric: Arc::new(fabric),
        store,
        dialer,
        exports: Arc::new(launcher),
        wall: clock::WallClock::system(),
        sealing: place.sealing.clone(),
        audit: place.audit,
        spool: SpoolRoom::new(place.spool_bytes, Some(data)),
    })
}

/// A folder for sockets whose path is short enough, the same at every start.
pub fn run_folder(data: &Path) -> anyhow::Result<PathBuf> {
    let inside = data.join("run");
    let folder = if inside.as_os_str().len() <= RUN_FOLDER_BYTES_MAX {
        inside
    } else {
        use aws_lc_rs::digest::{SHA256, digest};
        let hash = digest(&SHA256, data.as_os_str().as_encoded_bytes());
        let short: String = hash.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        std::env::temp_dir().join(format!("leeward-{short}"))
    };
    std::fs::create_dir_all(&folder)?;
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    Ok(folder)
}

/// Opens the host's replica store, making it at the first start. What comes beside it is the
/// recovery recipient's secret, once.
///
/// # Errors
/// When the folder belongs to another host or cannot be used.
pub fn store_open(data: &Path, host: HostId) -> Result<(Store, Option<String>), Problem> {
    let (store, secret) = StorePlace::own(data).open_or_init(host)?;
    Ok((store, secret.map(|secret| secret.to_text())))
}

/// Opens the store of a role's folder: the one that it has, or that `wanted` names at its first
/// start. What comes beside it is the recovery recipient's secret, once.
///
/// # Errors
/// When it is another's or cannot be used.
pub fn role_store(
    data: &Path,
    wanted: &StoreOptions,
    host: HostId,
) -> Result<(Store, Option<String>, StorePlace), Problem> {
    let place = StorePlace::of(data, wanted.store.as_deref())?;
    if wanted.object_lock {
        place.prove_lock()?;
    }
    place.keep(data)?;
    let (store, secret) = place.open_or_init(host)?;
    Ok((store, secret.map(|secret| secret.to_text()), place))
}

/// Keeps the recovery recipient's secret in a file that only its owner can read.
///
/// # Errors
/// Those of the file system.
pub fn recovery_key_keep(data: &Path, secret: &str) -> anyhow::Result<()> {
    let path = data.join("recovery-key.txt");
    folder::write_secret(&path, format!("{secret}\n").as_bytes())?;
    println!("the recovery key is in {}: move it to a safe place", path.display());
    Ok(())
}

/// Wraps a store for the host at `site`.
pub fn site_store(store: Store, site: Site) -> Arc<SiteStore> {
    Arc::new(SiteStore::new(store, site, clock::WallClock::system()))
}

/// Joins a fabric with a registration key and keeps the identity that it gets.
async fn join(options: &HostOptions, data: &Path) -> anyhow::Result<HostFile> {
    let (Some(server), Some(key_file)) = (&options.join, &options.key_file) else {
        let what = "this host has not joined a site yet";
        return Err(Code::WRONG_KEY
            .because(what, "it needs --join HOST:PORT and --key-file FILE at its first start")
            .into());
    };
    let key = std::fs::read_to_string(key_file).map_err(|error| {
        let what = format!("the registration key in {} cannot be read", key_file.display());
        Code::WRONG_KEY.because(what, error.to_string())
    })?;
    let key = key.trim();
    let fingerprint = key_fingerprint(key).ok_or_else(|| {
        Code::WRONG_KEY
            .problem(format!("the registration key in {} is not one", key_file.display()))
    })?;
    let name = options.name.clone().unwrap_or_else(machine_name);
    let (key_pem, csr_pem) = authority::host_request()?;
    let connector = TlsConnector::from(tls::join_client_config(fingerprint)?);
    let stream = dial::connect_tls(&connector, server).await.map_err(|error| {
        let what = format!("could not join through the config server at {server}");
        dial::connection_problem(what, &error)
    })?;
    let (read, write) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
    let request = JoinRequest {
        registration_key: key.to_owned(),
        csr_pem,
        host_name: name.clone(),
        boot: clock::boot_id()?,
    };
    writer.message(&DataMessage::JoinRequest(request)).await?;
    let answer = match reader.message(JOIN_TIMEOUT).await? {
        DataMessage::JoinAnswer(answer) => answer,
        DataMessage::Refused(problem) => return Err(problem.into()),
        _ => bail!("the config server answered something else than a join"),
    };
    folder::write_secret(&data.join("host.key"), key_pem.as_bytes())?;
    folder::write_whole(&data.join("host.pem"), answer.certificate_pem.as_bytes())?;
    folder::write_whole(&data.join("ca.pem"), answer.ca_pem.as_bytes())?;
    let file = HostFile { host: answer.host, name, server: server.clone() };
    // Last: it is what says that the host has joined.
    folder::write_whole(&data.join("host.json"), &serde_json::to_vec_pretty(&file)?)?;
    println!("joined {} as host {}", answer.fabric, answer.host);
    Ok(file)
}

/// The CA's fingerprint in a registration key; none when the text is no such key.
fn key_fingerprint(key: &str) -> Option<&str> {
    let hex = |part: &str| part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (fingerprint, secret) = key.strip_prefix("lwk1.")?.split_once('.')?;
    (hex(fingerprint) && hex(secret)).then_some(fingerprint)
}

/// The machine's host name, reduced to what names may hold.
pub fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name
        .trim()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '-' })
        .take(64)
        .collect();
    if name.is_empty() { "host".to_owned() } else { name }
}
