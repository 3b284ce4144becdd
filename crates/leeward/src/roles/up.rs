//! `leeward up`: the config server, the public API and a host with a replica store, in one
//! process and on one port. The recovery site, or one machine on its own.

pub mod actions;
pub mod adopt;
pub mod break_glass;
pub mod charge;
pub mod join;
pub mod listener;
pub mod ports;
pub mod sessions;

use crate::{
    audit_pace::{AuditOptions, AuditPace},
    folder,
    roles::{
        host::{self, Host, dial::TlsDialer, spool::room::SpoolOptions},
        place::{StoreOptions, StorePlace},
        site,
    },
    sealing::SealingOptions,
    trust::{
        authority::{self, Authority, Identity},
        permits::PermitKey,
        tls,
    },
};
use actions::{ActionOptions, Outside};
use adopt::AdoptOptions;
use anyhow::Context as _;
use charge::StoreKeeper;
use leeward_control::{
    Config, Control, Durability, LocalHost, Ports, Store, Superseded,
    api::{self, ApiSettings},
};
use leeward_model::{Code, HostId, Problem, Site};
use leeward_wire::{message::SILENCE_MS, seal::Compression};
use listener::Doors;
use std::{
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Settings of `leeward up`.
#[derive(Clone, Debug, clap::Args)]
pub struct UpOptions {
    /// Folder of this site: database, keys, replica store, machines.
    #[arg(long)]
    pub data: PathBuf,
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8943")]
    pub listen: SocketAddr,
    /// Address that other sites reach this one at, host:port [default: the listen address].
    #[arg(long)]
    pub public_address: Option<String>,
    /// Another name or address for the server's certificate; may be given several times.
    #[arg(long = "name")]
    pub names: Vec<String>,
    /// Name of this site's fabric in every vault.
    #[arg(long, default_value = Config::RECOVERY_SITE)]
    pub site: String,
    /// Cap, for each disk, on how fast a machine that runs from the store takes its data over, in
    /// bytes a second; 0 for none.
    #[arg(long, env = "LEEWARD_HYDRATION_BYTES_PER_SECOND", default_value_t = 0)]
    pub hydration_bytes_per_second: u64,
    /// Where its replica store is.
    #[command(flatten)]
    pub store: StoreOptions,
    /// Taking over a store whose config server is gone.
    #[command(flatten)]
    pub adopt: AdoptOptions,
    /// How its machines' data are sealed.
    #[command(flatten)]
    pub sealing: SealingOptions,
    /// How fast its replicas are audited.
    #[command(flatten)]
    pub audit: AuditOptions,
    /// How much may wait for a store that is away.
    #[command(flatten)]
    pub spool: SpoolOptions,
    /// What its recovery plans may do outside.
    #[command(flatten)]
    pub actions: ActionOptions,
}

/// Runs until it is told to end.
///
/// # Errors
/// When the folder, the database or the address cannot be used.
pub async fn run(options: UpOptions) -> anyhow::Result<()> {
    let _lock = folder::lock(&options.data, "config server").map_err(|error| error.problem())?;
    let data = options.data.canonicalize()?;
    // Before anything is made: a start without its port leaves nothing behind.
    let listener = TcpListener::bind(options.listen).await.map_err(|error| {
        let what = format!("could not listen on {}", options.listen);
        Code::PORT_IN_USE.because(what, error.to_string())
    })?;
    host::folders_make(&data)?;
    let address = listener.local_addr()?;
    let reached = options.public_address.clone().unwrap_or_else(|| address.to_string());
    adopt(&data, &options, &reached).await?;
    let authority = Arc::new(Authority::open_or_create(&data)?);
    let (id, identity) = local_identity(&data, &authority)?;
    let name = site::machine_name();
    let own = OwnHost { id, name: name.clone(), identity };
    let by = charge_state(&data, &options).await?;
    let (host, keeper) = match &by {
        None => {
            let authority = (authority.as_ref(), reached.as_str());
            let (host, keeper) = local_host(&options, &data, own, authority).await?;
            (host, Some(Arc::new(keeper)))
        }
        Some(_) => (idle_host(&data, own, &authority).await?, None),
    };
    let control = control_open(&data, &options, LocalHost { id, name, data_address: reached });
    let (control, returned) = control.await?;
    match (by, &keeper) {
        (Some(by), _) => control.supersede(by),
        (None, Some(keeper)) => {
            control.keep_with(keeper.clone());
            control.configuration_keep().await?;
        }
        (None, None) => {}
    }
    let tokens = Arc::new(break_glass::Tokens::new(&token_open(&data)?, &data, control.clone()));
    let settings = ApiSettings { tokens, ca_fingerprint: authority.fingerprint()? };
    let doors = Arc::new(Doors {
        control: control.clone(),
        api: api::router(control.clone(), settings),
        host: Arc::clone(&host),
        authority: Arc::clone(&authority),
    });
    let server = authority.issue_server(&[address.ip()], &options.names)?;
    let acceptor = TlsAcceptor::from(tls::server_config(&server, authority.ca_pem())?);
    let stop = CancellationToken::new();
    let tasks = match keeper {
        Some(keeper) => {
            let tasks = site::start(&host, loopback(address), &stop);
            tasks.spawn(charge::watch(control.clone(), keeper, stop.clone()));
            tasks.spawn(drive(control, returned, stop.clone()));
            tasks
        }
        // Whoever is not in charge shows what it knows, and does nothing.
        None => TaskTracker::new(),
    };
    tasks.spawn(listener::run(listener, acceptor, doors, stop.clone()));
    announce(&data, address)?;
    crate::roles::ended().await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Adopts a store if that was asked for. It waits for disks and derives keys: not on a thread of
/// others.
async fn adopt(data: &Path, options: &UpOptions, reached: &str) -> anyhow::Result<()> {
    let (data, adopt, reached) = (data.to_owned(), options.adopt.clone(), reached.to_owned());
    tokio::task::spawn_blocking(move || adopt::run(&data, &adopt, &reached)).await?
}

/// Who is in charge of this site's store, if that is another config server. Looked up before the
/// store is opened for writing: its lock is the other's.
async fn charge_state(data: &Path, options: &UpOptions) -> anyhow::Result<Option<Superseded>> {
    let (data, wanted) = (data.to_owned(), options.store.store.clone());
    let found = tokio::task::spawn_blocking(move || {
        let newest = StorePlace::of(&data, wanted.as_deref())?.generation()?;
        let own = charge::own(&data)?;
        anyhow::Ok(charge::superseded(own.as_ref(), newest))
    });
    found.await?
}

/// Opens the database; says whether there was one before.
async fn control_open(
    data: &Path,
    options: &UpOptions,
    local_host: LocalHost,
) -> anyhow::Result<(Control, bool)> {
    let config = Config { recovery_site: options.site.clone(), local_host };
    let ports = Ports {
        clock: Arc::new(ports::SystemClock::new()?),
        draw: Arc::new(ports::SystemDraw),
        signer: Arc::new(ports::FileSigner(PermitKey::open_or_create(data)?)),
        actions: Arc::new(Outside::new(options.actions.clone())),
    };
    let path = data.join("control.db");
    let returned = path.exists();
    make_private(&path).with_context(|| format!("could not open {}", path.display()))?;
    let database = Store::open(&path, Durability::PowerCut).await?;
    Ok((Control::open(database, config, ports).await?, returned))
}

/// The database has the secrets of plans' actions: only this user reads it, and what SQLite keeps
/// beside it, also where an earlier version made it for all to read.
fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt};
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).open(path)?;
    for suffix in ["", "-wal", "-shm"] {
        let beside = PathBuf::from(format!("{}{suffix}", path.display()));
        if beside.exists() {
            std::fs::set_permissions(beside, PermissionsExt::from_mode(0o600))?;
        }
    }
    Ok(())
}

/// Moves jobs on until `stop`.
async fn drive(control: Control, returned: bool, stop: CancellationToken) {
    if returned {
        // No host has dialled yet, and none of them is dead for that: a job that went on now
        // would take a live source for silent and start a second machine beside it.
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(SILENCE_MS)) => {}
        }
    }
    control.run(stop).await;
}

/// Says where the API is: on standard output, and in the folder for the CLI.
fn announce(data: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let endpoint = format!("https://{}", loopback(address));
    folder::write_whole(&data.join("endpoint"), format!("{endpoint}\n").as_bytes())?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "leeward is ready at {endpoint}")?;
    writeln!(out, "  CA certificate  {}", data.join("ca.pem").display())?;
    writeln!(out, "  admin token     {}", data.join("admin.token").display())?;
    out.flush()?;
    Ok(())
}

/// The address under which this process reaches its own listener.
fn loopback(address: SocketAddr) -> String {
    let ip = match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => "127.0.0.1".to_owned(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => "[::1]".to_owned(),
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    };
    format!("{ip}:{}", address.port())
}

/// The admin token, made at the first start.
fn token_open(data: &Path) -> anyhow::Result<String> {
    let path = data.join("admin.token");
    if !path.exists() {
        let token = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        folder::write_secret(&path, format!("{token}\n").as_bytes())?;
    }
    let token = std::fs::read_to_string(&path).context("could not read admin.token")?;
    Ok(token.trim().to_owned())
}

/// This machine's identity as a host: issued by the CA itself, without a registration key.
fn local_identity(data: &Path, authority: &Authority) -> anyhow::Result<(HostId, Identity)> {
    let mark = data.join("host.id");
    let id = match std::fs::read_to_string(&mark) {
        Ok(text) => text.trim().parse().context("host.id is damaged")?,
        Err(_) => {
            let id = HostId::from(uuid::Uuid::new_v4());
            folder::write_whole(&mark, format!("{id}\n").as_bytes())?;
            id
        }
    };
    let (key_pem, csr) = authority::host_request()?;
    Ok((id, Identity { chain_pem: authority.issue_host(&csr, id)?, key_pem }))
}

/// This machine as a host.
struct OwnHost {
    id: HostId,
    name: String,
    identity: Identity,
}

async fn local_host(
    options: &UpOptions,
    data: &Path,
    own: OwnHost,
    (authority, reached): (&Authority, &str),
) -> anyhow::Result<(Arc<Host>, StoreKeeper)> {
    let (at, wanted, id) = (data.to_owned(), options.store.clone(), own.id);
    let opened = tokio::task::spawn_blocking(move || {
        let opened = site::role_store(&at, &wanted, id)?;
        adopt::check_database(&at, &opened.0, &opened.2)?;
        Ok::<_, Problem>(opened)
    });
    let (store, secret, at) = opened.await??;
    if let Some(secret) = secret {
        show_recovery_key(data, &secret)?;
    }
    let fingerprint = authority.fingerprint()?;
    let begin = charge::begin(data, &store, &at, charge::own(data)?, || {
        charge::generation(1, &own.name, fingerprint, reached)
    });
    let dialer = Arc::new(TlsDialer::new(&own.identity, authority.ca_pem())?);
    let generation = begin?;
    let store = site::site_store(store, Site::Recovery);
    PermitKey::open_or_create(data)?;
    let site = options.site.clone();
    let keeper = StoreKeeper::new(data, store.clone(), generation, own.id, site)?;
    let place = site::MachinePlace {
        machines: data.join("machines"),
        hydration_bytes_per_second: options.hydration_bytes_per_second,
        sealing: options.sealing.or(Compression::Adaptive),
        store: at,
        audit: options.audit.pace(),
        spool_bytes: options.spool.spool_bytes,
    };
    let parts = site::parts(data, &place, (own.id, own.name), dialer, Some(store)).await?;
    Ok((Host::new(parts), keeper))
}

/// This machine as a host that nothing was assigned to and that has no store: it is not in charge.
async fn idle_host(data: &Path, own: OwnHost, authority: &Authority) -> anyhow::Result<Arc<Host>> {
    let folder = data.join("superseded");
    host::folders_make(&folder)?;
    let dialer = Arc::new(TlsDialer::new(&own.identity, authority.ca_pem())?);
    let place = site::MachinePlace {
        machines: folder.join("machines"),
        hydration_bytes_per_second: 0,
        sealing: SealingOptions::default().or(Compression::Adaptive),
        store: StorePlace::own(&folder),
        audit: AuditPace::default(),
        spool_bytes: 0,
    };
    let parts = site::parts(&folder, &place, (own.id, own.name), dialer, None).await?;
    Ok(Host::new(parts))
}

/// Shows the recovery recipient's secret once: to the person at the terminal, or, when nobody is
/// there, in a file that only its owner can read and that should be moved away.
fn show_recovery_key(data: &Path, secret: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    if out.is_terminal() {
        writeln!(out, "The recovery key of this site's replica store. It is shown once and kept")?;
        writeln!(out, "nowhere; with it the store can be read when this machine is gone:")?;
        writeln!(out, "  {secret}")?;
    } else {
        site::recovery_key_keep(data, secret)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_database_is_read_by_nobody_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("control.db");
        let log = folder.path().join("control.db-wal");
        std::fs::write(&log, b"old").expect("a file");
        std::fs::set_permissions(&log, PermissionsExt::from_mode(0o644)).expect("our file");
        for _ in 0..2 {
            make_private(&path).expect("a folder of ours");
            for path in [&path, &log] {
                let mode = std::fs::metadata(path).expect("it is there").permissions().mode();
                assert_eq!(mode & 0o777, 0o600);
            }
        }
        assert_eq!(std::fs::read(&log).expect("it is there"), b"old");
    }
}
