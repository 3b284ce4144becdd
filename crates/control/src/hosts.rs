//! What is known of hosts right now: sessions, heartbeats, last observations. Lost at a restart.

use crate::audit_log::AuditRecord;
use crate::events::{EventView, Severity};
use crate::store::items::ItemRow;
use crate::{Control, Now, error::Result, store};
use leeward_model::{Code, HostId, ItemId, Problem, UnixMillis};
use leeward_wire::message::{
    Answer, Assignment, HostHello, HostNote, ItemObserved, NOTES_MAX, NoteKind, Observed, Query,
    SILENCE_MS,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{mpsc, oneshot, watch};

/// Questions to one host that wait to be sent; more are refused as if the host were away.
const QUERIES_MAX: usize = 64;
/// How long a host may take to answer a question.
const ANSWER_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// Ids of notes that are remembered of a host: those of several messages, of which one comes twice
/// only when its receipt was lost.
const NOTES_REMEMBERED: usize = 4 * NOTES_MAX;

/// Is an open session as the transport sees it. Only the newest of a host counts.
#[derive(Debug)]
pub struct HostSession {
    /// The host.
    pub host: HostId,
    /// Number of the session in this server process.
    pub number: u64,
    /// The newest assignment; send it whenever it changes.
    pub assignments: watch::Receiver<Arc<Assignment>>,
    /// Questions to send.
    pub queries: mpsc::Receiver<HostQuery>,
}

/// Is a question and where its answer goes.
#[derive(Debug)]
pub struct HostQuery {
    /// The question.
    pub query: Query,
    /// Where the answer goes.
    pub reply: oneshot::Sender<std::result::Result<Answer, Problem>>,
}

/// Is what is known of a host.
#[derive(Debug)]
struct HostLive {
    session: u64,
    open: bool,
    heard_ms: u64,
    heard_wall: UnixMillis,
    program: String,
    observed: Option<Arc<Observed>>,
    assignments: watch::Sender<Arc<Assignment>>,
    queries: mpsc::Sender<HostQuery>,
}

/// Is a host as others read it, at one instant.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostSight {
    pub(crate) connected: bool,
    pub(crate) heard: Option<UnixMillis>,
    pub(crate) program: String,
    /// The last observation, however old.
    pub(crate) observed: Option<Arc<Observed>>,
}

impl HostSight {
    pub(crate) fn item(&self, item: ItemId) -> Option<&ItemObserved> {
        self.observed.as_ref()?.items.iter().find(|seen| seen.item == item)
    }
}

/// Is the live memory of all hosts.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    sessions: u64,
    hosts: BTreeMap<HostId, HostLive>,
    /// When the newest point of an item was last written down, boot-time milliseconds.
    noted: BTreeMap<ItemId, u64>,
}

impl Hosts {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().expect("nobody panics while holding this lock")
    }

    pub(crate) fn sight(&self, host: HostId, now: &Now) -> HostSight {
        let live = self.live();
        let Some(host) = live.hosts.get(&host) else { return HostSight::default() };
        HostSight {
            connected: host.open && now.boottime_ms.saturating_sub(host.heard_ms) < SILENCE_MS,
            heard: Some(host.heard_wall),
            program: host.program.clone(),
            observed: host.observed.clone(),
        }
    }

    /// Hands an assignment to the host's session, unless it has a newer one.
    pub(crate) fn assign(&self, host: HostId, assignment: Assignment) {
        let live = self.live();
        let Some(host) = live.hosts.get(&host) else { return };
        host.assignments.send_if_modified(|held| {
            let newer = assignment.generation > held.generation;
            if newer {
                *held = Arc::new(assignment);
            }
            newer
        });
    }

    /// Whether the newest point of `item` was not written down in the last `every_ms`.
    pub(crate) fn note_is_due(&self, item: ItemId, now: &Now, every_ms: u64) -> bool {
        let mut live = self.live();
        let due = live
            .noted
            .get(&item)
            .is_none_or(|then| now.boottime_ms.saturating_sub(*then) >= every_ms);
        if due {
            live.noted.insert(item, now.boottime_ms);
        }
        due
    }
}

impl Control {
    /// Opens a session; an older one of the same host no longer counts.
    ///
    /// The caller has checked that the hello's id is the one in the host's certificate.
    ///
    /// # Errors
    /// NotFound when the host never registered, or was removed.
    pub async fn host_hello(&self, hello: &HostHello) -> Result<HostSession> {
        self.check_in_charge()?;
        let host = hello.host;
        let mut tx = self.store().begin().await?;
        let Some(mut row) = store::hosts::find(&mut tx, host).await? else {
            return Err(crate::ControlError::not_found(format!("no host {host} is registered")));
        };
        let member = !store::hosts::fabrics(&mut tx, host).await?.is_empty();
        if !member && host != self.config().local_host.id {
            let what = format!("host {} was removed from its site", row.name);
            return Err(crate::ControlError::not_found(what));
        }
        if row.boot != hello.boot {
            row.boot.clone_from(&hello.boot);
            store::hosts::save(&mut tx, &row).await?;
            store::hosts::bump(&mut tx, host).await?;
        }
        store::commit(tx).await?;
        let now = self.now();
        let (assignments, receiver) = watch::channel(Arc::default());
        let (queries, questions) = mpsc::channel(QUERIES_MAX);
        let number = {
            let mut live = self.hosts().live();
            live.sessions += 1;
            let session = live.sessions;
            let observed = live.hosts.remove(&host).and_then(|before| before.observed);
            // What an earlier boot reported is history, not a sight of this boot.
            let observed = observed.filter(|seen| seen.boot == hello.boot);
            live.hosts.insert(
                host,
                HostLive {
                    session,
                    open: true,
                    heard_ms: now.boottime_ms,
                    heard_wall: now.wall,
                    program: hello.program.clone(),
                    observed,
                    assignments,
                    queries,
                },
            );
            session
        };
        self.publish(&[host]).await?;
        self.poke();
        Ok(HostSession { host, number, assignments: receiver, queries: questions })
    }

    /// Takes what a host sees. Of an older session it is dropped.
    ///
    /// # Errors
    /// Internal when the database fails; the observation counts all the same.
    pub async fn host_observed(&self, host: HostId, number: u64, seen: Observed) -> Result<()> {
        let now = self.now();
        let seen = Arc::new(seen);
        let before = {
            let mut live = self.hosts().live();
            let Some(known) = live.hosts.get_mut(&host).filter(|h| h.session == number) else {
                return Ok(());
            };
            known.heard_ms = now.boottime_ms;
            known.heard_wall = now.wall;
            known.observed.replace(seen.clone())
        };
        let machines_before = before.as_ref().map(|before| &before.machines);
        if machines_before != Some(&seen.machines) {
            self.machines_seen(host, &seen.machines).await?;
        }
        self.newest_seen(host, &seen, &now).await?;
        if before.is_none_or(|before| before.items != seen.items) {
            self.poke();
        }
        Ok(())
    }

    /// Makes events of what a host noted, each once, and says which notes it may forget.
    ///
    /// # Errors
    /// Internal when the database fails: the host sends them again.
    pub async fn host_notes(&self, host: HostId, notes: Vec<HostNote>) -> Result<Vec<uuid::Uuid>> {
        let mut tx = self.store().begin().await?;
        let Some(mut row) = store::hosts::find(&mut tx, host).await? else { return Ok(Vec::new()) };
        let fabrics = store::hosts::fabrics(&mut tx, host).await?;
        let mut ids = Vec::new();
        for note in notes.into_iter().take(NOTES_MAX) {
            ids.push(note.id);
            if row.notes_taken.contains(&note.id) {
                continue;
            }
            row.notes_taken.push(note.id);
            let item = match note.item {
                Some(item) => store::items::find(&mut tx, item).await?,
                None => None,
            };
            let vault = match (&item, fabrics.first()) {
                (Some(item), _) => Some(item.vault),
                (None, Some(fabric)) => {
                    store::fabrics::by_id(&mut tx, *fabric).await?.map(|fabric| fabric.vault)
                }
                (None, None) => None,
            };
            if let Some(record) = audited(&row.name, &note) {
                store::audit_log::append(&mut tx, &record).await?;
            }
            if let Some(vault) = vault {
                let event = noted_event(&row.name, host, item.as_ref(), note);
                store::events::append(&mut tx, vault, &event).await?;
            }
        }
        let extra = row.notes_taken.len().saturating_sub(NOTES_REMEMBERED);
        row.notes_taken.drain(..extra);
        store::hosts::save(&mut tx, &row).await?;
        store::commit(tx).await?;
        Ok(ids)
    }

    /// Notes that a session ended.
    pub fn host_closed(&self, host: HostId, number: u64) {
        if let Some(host) = self.hosts().live().hosts.get_mut(&host)
            && host.session == number
        {
            host.open = false;
        }
        self.poke();
    }

    /// Whether a host is connected and was heard within the last [`SILENCE_MS`].
    pub fn host_connected(&self, host: HostId) -> bool {
        self.hosts().sight(host, &self.now()).connected
    }

    /// Ends every session: nobody is told anything by this server any more.
    pub(crate) fn hosts_dismiss(&self) {
        // A session ends when the sender of its assignments is gone.
        self.hosts().live().hosts.clear();
    }

    /// The public key for checking start permits, for the welcome.
    pub fn permit_key(&self) -> String {
        self.ports().signer.public_key()
    }

    /// Asks a host and waits for its answer.
    pub(crate) async fn ask(&self, host: HostId, name: &str, query: Query) -> Result<Answer> {
        let away = || {
            crate::ControlError::new(
                crate::ErrorKind::Unavailable,
                Code::ROLE_AWAY,
                format!("host {name} holds the answer and is not connected"),
            )
        };
        if !self.host_connected(host) {
            return Err(away());
        }
        let queries = self.hosts().live().hosts.get(&host).map(|host| host.queries.clone());
        let (reply, answer) = oneshot::channel();
        let queries = queries.ok_or_else(away)?;
        queries.try_send(HostQuery { query, reply }).map_err(|_| away())?;
        match tokio::time::timeout(ANSWER_MAX, answer).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(problem))) => {
                let kind = match problem.code.as_str() {
                    code if code == Code::NOT_FOUND.code => crate::ErrorKind::NotFound,
                    code if code == Code::BAD_REQUEST.code => crate::ErrorKind::BadRequest,
                    _ => crate::ErrorKind::Unavailable,
                };
                Err(crate::ControlError { kind, problem: Box::new(problem) })
            }
            Ok(Err(_)) | Err(_) => Err(away()),
        }
    }

    /// Recomputes the assignments of `hosts` and hands them to their sessions.
    ///
    /// What they are told is kept outside this machine first; a server that is not in charge any
    /// more tells nobody anything.
    ///
    /// # Errors
    /// Conflict when another config server is in charge; those of the database.
    pub(crate) async fn publish(&self, hosts: &[HostId]) -> Result<()> {
        if hosts.is_empty() {
            return Ok(());
        }
        self.configuration_keep().await?;
        for host in hosts.iter().collect::<BTreeSet<_>>() {
            let mut tx = self.store().read().await?;
            let assignment =
                crate::assignment::of_host(&mut tx, *host, &*self.ports().signer).await?;
            if let Some(assignment) = assignment {
                self.hosts().assign(*host, assignment);
            }
        }
        Ok(())
    }
}

/// The audit entry of what a person did on a host by hand; none of what the host did by itself.
fn audited(host: &str, note: &HostNote) -> Option<AuditRecord> {
    let action = match note.kind {
        NoteKind::StartedByHand => "MachineStartedByHand",
        NoteKind::ServedWritable => "PointServedWritable",
        NoteKind::ServeEnded => "PointServeEnded",
        NoteKind::PointsRemoved | NoteKind::AuditFound | NoteKind::AuditRepaired => return None,
    };
    let who = format!("host {host}");
    let mut record = AuditRecord::noted(note.at, &who, action, &note.object);
    record.text.clone_from(&note.text);
    Some(record)
}

/// What operators read of a note. A machine that was started by hand where it does not belong may
/// be live on both sides.
fn noted_event(host: &str, id: HostId, item: Option<&ItemRow>, note: HostNote) -> EventView {
    let here = item.is_some_and(|item| item.plan.end(item.state.active).host == id);
    let (name, severity) = match note.kind {
        NoteKind::StartedByHand if here => ("MachineStartedByHand", Severity::Warning),
        NoteKind::StartedByHand => ("MachineStartedByHand", Severity::Critical),
        NoteKind::PointsRemoved => ("PointsRemoved", Severity::Info),
        NoteKind::AuditFound => ("AuditFound", Severity::Critical),
        NoteKind::AuditRepaired => ("AuditRepaired", Severity::Info),
        NoteKind::ServedWritable => ("PointServedWritable", Severity::Warning),
        NoteKind::ServeEnded => ("PointServeEnded", Severity::Info),
    };
    EventView {
        seq: 0,
        at: note.at,
        name: name.to_owned(),
        severity,
        text: format!("host {host}: {}", note.text),
        item: note.item,
        object: note.object,
        job: None,
        problem: None,
    }
}
