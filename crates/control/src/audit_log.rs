//! The audit log: who asked for what that changes something, from where, and what came of it. Each
//! entry is chained to the one before by its hash. Bodies of requests, tokens and other secrets are
//! never in it. Not the audits of stored data: those are the hosts'.

use crate::events::{EventView, Severity};
use crate::store::audit_log::{AuditRow, ENTRIES_MAX, link};
use crate::store::{self, Asked, Conn, snapshot};
use crate::{Control, ControlError, error::Result};
use leeward_model::{Code, Problem, UnixMillis};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Longest text in an entry, in bytes: a path that is longer is cut, and ends with "…".
const TEXT_MAX: usize = 1024;
/// Entries that are read at once while the chain is walked.
const WALK: u64 = 1_000;
/// How often the head of the log is written into the process's own log, in milliseconds: what
/// leaves the machine from there is an anchor that nobody on it can change.
const TOLD_EVERY_MS: u64 = 3_600_000;

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditOutcome {
    /// Something was changed; the entry was stored with the change, in one transaction.
    Changed,
    /// It was answered well, and nothing had to be stored.
    Unchanged,
    /// It was refused.
    Refused,
    /// It failed within the server; an entry before may say what it had changed by then.
    Failed,
    /// It is no request: something that happened.
    Noted,
}

/// What an entry says about the log itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditMark {
    /// Another config server took over: its log begins with this entry of the former one's.
    BeginsAt(u64),
    /// From this number on, entries that were kept outside the database were gone or others.
    LostFrom(u64),
}

/// Is what an entry says. Stored as JSON in this order of fields; the hash covers those bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// When, by the config server's clock.
    pub at: UnixMillis,
    /// Who: the name that belongs to the token, a host, or the server itself.
    pub who: String,
    /// The role of a caller; empty for others.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub role: String,
    /// The network address that it came from; empty when it came from nowhere.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// What was asked for or happened, one word.
    pub action: String,
    /// Of which object: the path of the request, or a name.
    pub object: String,
    /// What came of it.
    pub outcome: AuditOutcome,
    /// Why not, `LW-NNNN`, of what was refused or failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// Jobs that began with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<String>,
    /// The request's id, which its answer carried too.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub correlation: String,
    /// One sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// What it says about the log itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<AuditMark>,
}

impl AuditRecord {
    /// What happened without a request.
    pub(crate) fn noted(at: UnixMillis, who: &str, action: &str, object: &str) -> AuditRecord {
        AuditRecord {
            at,
            who: short(who),
            role: String::new(),
            from: String::new(),
            action: action.to_owned(),
            object: short(object),
            outcome: AuditOutcome::Noted,
            code: String::new(),
            jobs: Vec::new(),
            correlation: String::new(),
            text: String::new(),
            mark: None,
        }
    }
}

/// Is who asks for something over the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditCaller {
    /// The name that belongs to the token.
    pub who: String,
    /// The caller's role.
    pub role: String,
    /// The network address.
    pub from: String,
    /// The request's id.
    pub correlation: String,
}

/// Is an entry as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its number: each is one more than the one before.
    pub number: u64,
    /// Its hash, hexadecimal.
    pub hash: String,
    /// What it says; none when its bytes are not what the log writes.
    pub record: Option<AuditRecord>,
}

/// Number and hash of an entry, as it was seen somewhere else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditAnchor {
    /// The entry's number.
    pub number: u64,
    /// Its hash, hexadecimal.
    pub hash: String,
}

/// Is what a walk over the whole chain found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditVerdict {
    /// Entries that were read.
    pub entries: u64,
    /// Number of the oldest one.
    pub first: u64,
    /// The newest one.
    pub head: Option<AuditAnchor>,
    /// The newest one that is kept outside the database, when that could be read.
    pub kept: Option<AuditAnchor>,
    /// The first entry that is not as it was written, and why.
    pub broken: Option<(u64, String)>,
}

impl AuditVerdict {
    /// What an operator reads when the log is broken.
    pub fn problem(&self) -> Option<Problem> {
        let (number, why) = self.broken.as_ref()?;
        let what = format!("the audit log is broken at entry {number}");
        Some(Code::AUDIT_LOG_BROKEN.because(what, why.clone()))
    }
}

fn short(text: &str) -> String {
    if text.len() <= TEXT_MAX {
        return text.to_owned();
    }
    let mut cut = text[..text.floor_char_boundary(TEXT_MAX)].to_owned();
    cut.push('…');
    cut
}

fn number(row: &AuditRow) -> u64 {
    row.number.unsigned_abs()
}

/// Walks over a chain, entry by entry, and keeps the first fault.
#[derive(Default)]
struct Walk {
    entries: u64,
    first: i64,
    last: Option<AuditRow>,
    /// An entry that allows the log to begin at this number.
    begins_at: Option<u64>,
    broken: Option<(u64, String)>,
}

impl Walk {
    fn fault(&mut self, number: u64, why: impl Into<String>) {
        if self.broken.is_none() {
            self.broken = Some((number, why.into()));
        }
    }

    fn take(&mut self, row: AuditRow, anchors: &[(i64, String)]) {
        self.entries += 1;
        match &self.last {
            None => self.first = row.number,
            Some(last) if last.number.checked_add(1) != Some(row.number) => {
                let missing = last.number.unsigned_abs() + 1;
                self.fault(missing, format!("it is missing; the next one is {}", row.number));
            }
            Some(last) if link(row.number, &last.hash, &row.body) != row.hash => {
                let why = "its text, or its place in the chain, is not the one that was written";
                self.fault(number(&row), why);
            }
            Some(_) => {}
        }
        // What is before the oldest one is gone, so its own hash proves itself only at the start.
        if row.number == 1 && link(1, "", &row.body) != row.hash {
            self.fault(1, "its text is not the one that was written");
        }
        match serde_json::from_str::<AuditRecord>(&row.body) {
            Err(_) => self.fault(number(&row), "its text is none that the log writes"),
            Ok(AuditRecord { mark: Some(AuditMark::LostFrom(from)), .. }) => {
                let why = format!(
                    "when the server started, this and later entries were not those that it had \
                     kept in its store; entry {} says so",
                    row.number
                );
                self.fault(from, why);
            }
            Ok(AuditRecord { mark: Some(AuditMark::BeginsAt(first)), .. }) => {
                self.begins_at = Some(first);
            }
            Ok(_) => {}
        }
        let other = |(number, hash): &&(i64, String)| *number == row.number && *hash != row.hash;
        if anchors.iter().any(|anchor| other(&anchor)) {
            self.fault(number(&row), "it is not the one that was kept outside the database");
        }
        self.last = Some(row);
    }

    fn end(mut self, anchors: &[(i64, String)]) -> AuditVerdict {
        let first = self.first.unsigned_abs();
        let newest = self.last.as_ref().map_or(0, |last| last.number);
        let begins = first <= 1 || self.entries >= ENTRIES_MAX || self.begins_at == Some(first);
        if self.entries > 0 && !begins {
            let missing = first - 1;
            self.broken =
                Some((missing, format!("it and all before it are gone: {first} is first")));
        }
        let gone = anchors.iter().map(|(number, _)| *number).filter(|number| *number > newest);
        if let Some(gone) = gone.min() {
            let why = format!("it was kept outside the database, where entry {newest} is the last");
            self.fault(gone.unsigned_abs(), why);
        }
        let kept = anchors.last().map(|(number, hash)| AuditAnchor {
            number: number.unsigned_abs(),
            hash: hash.clone(),
        });
        let head = self.last.map(|row| AuditAnchor { number: number(&row), hash: row.hash });
        AuditVerdict { entries: self.entries, first, head, kept, broken: self.broken }
    }
}

impl Control {
    /// The same config server, asked for `action` on `object` by `caller`: the first change made
    /// through it takes the request into the audit log, in the same transaction.
    pub(crate) fn audited(&self, caller: AuditCaller, action: &str, object: &str) -> Control {
        let mut record = AuditRecord::noted(self.now().wall, &caller.who, action, object);
        record.role = caller.role;
        record.from = short(&caller.from);
        record.correlation = caller.correlation;
        self.with_asked(Arc::new(Asked::new(record)))
    }

    /// Writes down what came of the request of [`Self::audited`], unless its change says it all.
    ///
    /// Returns whether it changed something.
    pub(crate) async fn audit_close(&self, refused: Option<(AuditOutcome, &str)>) -> bool {
        let Some(asked) = self.asked() else { return false };
        let changed = asked.has_changed();
        let (outcome, code) = match refused {
            None if changed => return true,
            None => (AuditOutcome::Unchanged, ""),
            Some((outcome, code)) => (outcome, code),
        };
        let code = code.to_owned();
        let record = AuditRecord { outcome, code, ..asked.record().clone() };
        if let Err(error) = self.audit_note(&record).await {
            tracing::error!(%error, ?record, "a request is not in the audit log");
        }
        changed
    }

    /// Appends an entry in a transaction of its own.
    pub(crate) async fn audit_note(&self, record: &AuditRecord) -> Result<()> {
        // Not in the name of a request: that would take the request into the log a second time.
        let mut tx = self.store_plain().begin().await?;
        store::audit_log::append(&mut tx, record).await?;
        Ok(store::commit(tx).await?)
    }

    /// Number of the newest entry; 0 when there is none.
    pub(crate) async fn audit_head(&self) -> Result<u64> {
        let mut tx = self.store().read().await?;
        Ok(store::audit_log::head(&mut tx).await?.map_or(0, |head| number(&head)))
    }

    /// Lists entries after number `after`, oldest first, at most `limit` (1 to 1000).
    ///
    /// # Errors
    /// BadRequest for another limit.
    pub async fn audit_list(&self, after: u64, limit: u64) -> Result<Vec<AuditEntry>> {
        if !(1..=1000).contains(&limit) {
            return Err(ControlError::bad_request("limit: 1 to 1000 entries a page"));
        }
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let mut tx = self.store().read().await?;
        let rows = store::audit_log::list(&mut tx, after, limit).await?;
        let entry = |row: AuditRow| AuditEntry {
            number: number(&row),
            record: serde_json::from_str(&row.body).ok(),
            hash: row.hash,
        };
        Ok(rows.into_iter().map(entry).collect())
    }

    /// Proves the whole chain, and compares it with what is kept outside the database and with
    /// `seen`, an entry that the caller saw earlier.
    ///
    /// # Errors
    /// Internal when the database fails.
    pub async fn audit_verify(&self, seen: Option<AuditAnchor>) -> Result<AuditVerdict> {
        let mut anchors = match self.kept_elsewhere().await {
            Some(bytes) => snapshot::audit_entries(&bytes)?,
            None => Vec::new(),
        };
        let mut tx = self.store().read().await?;
        // Seen earlier than what is kept, so that the newest kept one stays last.
        let seen = seen.map(|seen| (i64::try_from(seen.number).unwrap_or(i64::MAX), seen.hash));
        let kept = anchors.last().cloned();
        anchors.extend(seen.clone());
        let mut verdict = walk(&mut tx, &anchors).await?;
        if let Some((number, _)) = seen.filter(|(number, _)| number.unsigned_abs() < verdict.first)
        {
            let what = format!("head: entry {number} is not kept any more");
            return Err(ControlError::bad_request(what));
        }
        verdict.kept = kept.map(|(number, hash)| {
            let number = number.unsigned_abs();
            AuditAnchor { number, hash }
        });
        Ok(verdict)
    }

    /// Compares the log with what was kept of it outside the database before this start. What is
    /// gone or other is an entry itself from then on, and an alarm.
    pub(crate) async fn audit_resume(&self, kept: &[u8]) -> Result<()> {
        let anchors = snapshot::audit_entries(kept)?;
        let mut tx = self.store_plain().begin().await?;
        let Some(from) = first_difference(&mut tx, &anchors).await? else { return Ok(()) };
        let text = format!(
            "the audit log is not the one that was kept in the store: entry {from} and what \
             followed it are gone or were changed. Somebody changed the database, or an old copy \
             of it was put back"
        );
        tracing::error!("{text}");
        let now = self.now().wall;
        let own = self.config().local_host.name.clone();
        let mut record = AuditRecord::noted(now, "config server", "AuditLogBroken", &own);
        record.text.clone_from(&text);
        record.mark = Some(AuditMark::LostFrom(from));
        store::audit_log::append(&mut tx, &record).await?;
        let problem = Code::AUDIT_LOG_BROKEN.problem(format!("the audit log is broken at {from}"));
        for vault in store::vaults::all_ids(&mut tx).await? {
            let event = EventView {
                seq: 0,
                at: now,
                name: record.action.clone(),
                severity: Severity::Critical,
                text: text.clone(),
                item: None,
                object: own.clone(),
                job: None,
                problem: Some(problem.clone()),
            };
            store::events::append(&mut tx, vault, &event).await?;
        }
        Ok(store::commit(tx).await?)
    }

    /// Tells the head of the log to the process's own log, once in a while.
    pub(crate) async fn audit_tell(&self, told_ms: &mut Option<u64>) -> Result<()> {
        let now = self.now().boottime_ms;
        if told_ms.is_some_and(|told| now.saturating_sub(told) < TOLD_EVERY_MS) {
            return Ok(());
        }
        let mut tx = self.store().read().await?;
        if let Some(head) = store::audit_log::head(&mut tx).await? {
            tracing::info!(number = head.number, hash = %head.hash, "head of the audit log");
            *told_ms = Some(now);
        }
        Ok(())
    }
}

async fn walk(conn: &mut Conn, anchors: &[(i64, String)]) -> Result<AuditVerdict> {
    let mut walk = Walk::default();
    let mut after = i64::MIN;
    loop {
        let rows = store::audit_log::list(conn, after, WALK).await?;
        let Some(last) = rows.last() else { return Ok(walk.end(anchors)) };
        after = last.number;
        rows.into_iter().for_each(|row| walk.take(row, anchors));
    }
}

/// The lowest number of `anchors` whose entry is another one or gone.
async fn first_difference(conn: &mut Conn, anchors: &[(i64, String)]) -> Result<Option<u64>> {
    let Some((lowest, _)) = anchors.first() else { return Ok(None) };
    let rows = store::audit_log::list(conn, lowest - 1, anchors.len() as u64).await?;
    let differs = |(number, hash): &&(i64, String)| {
        !rows.iter().any(|row| row.number == *number && row.hash == *hash)
    };
    Ok(anchors.iter().find(differs).map(|(number, _)| number.unsigned_abs()))
}
