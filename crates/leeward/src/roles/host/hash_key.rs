//! One hash key per item, whichever store made its part first: how the key comes to the others.
//!
//! A store that has no part yet, while the item has another store, asks there before it makes one:
//! in a data session in place of the welcome (`target` and `data_link`), and before a seed, which
//! comes before any such session, in a session of its own: this module's. Data keys stay where
//! they are. A part that is there keeps its key, whatever another store has.

use super::{Host, dial::connection_problem, site_store::SiteStore};
use crate::roles::session::{FrameReader, FrameWriter, SessionError};
use leeward_model::{Code, HostId, ItemId, Problem, VaultId};
use leeward_replica::StoreError;
use leeward_wire::{
    data::{DataHello, DataMessage, HashKeyWord, Role},
    keys::HashKey,
    message::{OtherStore, PROTOCOL_VERSION, TargetDuty},
};
use std::{io, sync::Arc, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};

/// How long the other end may take for a word: it may have to open the item's log.
pub const WORD_TIMEOUT: Duration = Duration::from_secs(15);

/// Why the item's hash key could not be had or handed on.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The other store's host could not be dialled.
    #[error("could not connect to the host of the item's other store")]
    Dial(#[from] io::Error),
    /// The session failed.
    #[error("the session to the item's other store failed")]
    Session(#[from] SessionError),
    /// The other end refused.
    #[error("the host of the item's other store refused: {0}")]
    Refused(Box<Problem>),
    /// This host's own store failed.
    #[error("this host's own store could not be used")]
    Store(#[from] StoreError),
    /// The other store's host has to dial this one.
    #[error("host {0} of the item's other store has not dialled this one yet")]
    NotDialled(HostId),
}

impl KeyError {
    /// What the operator reads; `what` says what was tried.
    pub fn problem(&self, what: String) -> Problem {
        match self {
            KeyError::Store(error) => error.problem(what),
            KeyError::Refused(problem) => (**problem).clone(),
            KeyError::Dial(error) => {
                let problem = connection_problem(what.clone(), error);
                match problem.code == Code::ROLE_AWAY.code {
                    true => Code::TARGET_AWAY.because(what, format!("{self}: {error}")),
                    false => problem,
                }
            }
            KeyError::Session(error) => Code::TARGET_AWAY.because(what, format!("{self}: {error}")),
            KeyError::NotDialled(_) => Code::TARGET_AWAY.because(what, self.to_string()),
        }
    }
}

/// Makes sure that the item has a part in this host's store: with the hash key of its other store
/// if it has one there, which is asked, else with one that is drawn.
///
/// # Errors
/// See [`KeyError`]; then no part was made.
pub async fn ensure_part(
    host: &Host,
    store: &Arc<SiteStore>,
    vault: VaultId,
    item: ItemId,
) -> Result<(), KeyError> {
    if store.hash_key(item).await?.is_some() {
        return Ok(());
    }
    let other = host.target_duty(item).and_then(|duty| duty.other_store);
    let hash = match other {
        None => None,
        Some(OtherStore { host, address: None, .. }) => return Err(KeyError::NotDialled(host)),
        Some(OtherStore { address: Some(address), .. }) => ask(host, item, &address).await?,
    };
    make_part(host, store, vault, item, hash).await?;
    Ok(())
}

/// Makes the part and raises its fence to the duty's, which no part could carry until now.
///
/// # Errors
/// Those of the store.
pub async fn make_part(
    host: &Host,
    store: &Arc<SiteStore>,
    vault: VaultId,
    item: ItemId,
    hash: Option<HashKey>,
) -> Result<(), StoreError> {
    store.ensure(vault, item, hash).await?;
    if let Some(duty) = host.target_duty(item) {
        store.fence(item, duty.fence).await?;
        host.replica_changed(item).await;
    }
    Ok(())
}

/// This host's answer to a store that misses the item's hash key.
///
/// # Errors
/// Those of the store: a key that cannot be read must not pass for none.
pub async fn answer(host: &Host, item: ItemId) -> Result<HashKeyWord, StoreError> {
    let key = match &host.store {
        Some(store) => store.hash_key(item).await?,
        None => None,
    };
    Ok(key.map_or(HashKeyWord::Missing, |hash_key| HashKeyWord::Key { hash_key }))
}

type Dialled =
    (FrameReader<ReadHalf<super::dial::BoxStream>>, FrameWriter<WriteHalf<super::dial::BoxStream>>);

/// Dials the other store's host for the item's hash key.
async fn dial(host: &Host, item: ItemId, address: &str) -> Result<Dialled, KeyError> {
    let not_now = || {
        let what = format!("the hash key of item {item} was not asked for");
        KeyError::Refused(Box::new(Code::NOT_FOUND.problem(what)))
    };
    let duty = host.target_duty(item).ok_or_else(not_now)?;
    let hello = host.hello(item, Role::HashKey, duty.fence, duty.branch);
    let (read, write) = tokio::io::split(host.dialer.dial(address).await?);
    let (reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
    writer.message(&DataMessage::Hello(hello)).await?;
    Ok((reader, writer))
}

/// Reads the other end's word.
async fn word<R: AsyncRead + Unpin>(reader: &mut FrameReader<R>) -> Result<HashKeyWord, KeyError> {
    match reader.message(WORD_TIMEOUT).await? {
        DataMessage::HashKey(word) => Ok(word),
        DataMessage::Refused(problem) => Err(KeyError::Refused(Box::new(problem))),
        _ => Err(SessionError::OutOfTurn("something else than a word on the hash key").into()),
    }
}

async fn say<W: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
    word: HashKeyWord,
) -> Result<(), KeyError> {
    Ok(writer.message(&DataMessage::HashKey(word)).await?)
}

fn out_of_turn() -> KeyError {
    SessionError::OutOfTurn("a word on the hash key that answers nothing").into()
}

/// Asks the other store; none when it has no part of the item either.
async fn ask(host: &Host, item: ItemId, address: &str) -> Result<Option<HashKey>, KeyError> {
    let (mut reader, mut writer) = dial(host, item, address).await?;
    say(&mut writer, HashKeyWord::Missing).await?;
    match word(&mut reader).await? {
        HashKeyWord::Key { hash_key } => Ok(Some(hash_key)),
        HashKeyWord::Missing => Ok(None),
        HashKeyWord::Held => Err(out_of_turn()),
    }
}

/// Offers the hash key of this host's part to the other store, which cannot dial; it is sent only
/// if that store misses it.
///
/// # Errors
/// See [`KeyError`].
pub async fn offer(
    host: &Host,
    item: ItemId,
    hash_key: HashKey,
    address: &str,
) -> Result<(), KeyError> {
    let (mut reader, mut writer) = dial(host, item, address).await?;
    say(&mut writer, HashKeyWord::Held).await?;
    match word(&mut reader).await? {
        HashKeyWord::Held => return Ok(()),
        HashKeyWord::Missing => {}
        HashKeyWord::Key { .. } => return Err(out_of_turn()),
    }
    say(&mut writer, HashKeyWord::Key { hash_key }).await?;
    match word(&mut reader).await? {
        HashKeyWord::Held => Ok(()),
        HashKeyWord::Missing | HashKeyWord::Key { .. } => Err(out_of_turn()),
    }
}

/// Serves a session of [`Role::HashKey`] that `peer`, whose certificate was checked, dialled and
/// whose hello was read.
pub async fn serve<R, W>(
    host: &Host,
    peer: HostId,
    hello: DataHello,
    mut reader: FrameReader<R>,
    mut writer: FrameWriter<W>,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let item = hello.item;
    let Err(error) = share(host, peer, &hello, &mut reader, &mut writer).await else {
        writer.close().await;
        return;
    };
    let what = format!("the session for the hash key of item {item} was ended");
    let problem = match &error {
        KeyError::Session(error) => Code::BAD_REQUEST.because(what, error.to_string()),
        error => error.problem(what),
    };
    tracing::warn!(%peer, %item, code = %problem.code, cause = %problem.cause, "{}", problem.what);
    // The other end is told if it still listens; either way it comes again.
    let _ = writer.message(&DataMessage::Refused(problem)).await;
    writer.close().await;
}

/// Whether `peer` has the item's other store, by this host's duty.
fn check(host: &Host, peer: HostId, hello: &DataHello) -> Result<TargetDuty, KeyError> {
    let refuse = |code: Code, why: &str| {
        let what = "a session for an item's hash key was refused";
        Err(KeyError::Refused(Box::new(code.because(what, why))))
    };
    if hello.host != peer {
        return refuse(Code::WRONG_CA, "the hello names another host than the certificate");
    }
    if !(hello.version_min..=hello.version_max).contains(&PROTOCOL_VERSION) {
        return refuse(Code::VERSION_MISMATCH, "the other store's host speaks another version");
    }
    let Some(duty) = host.target_duty(hello.item).filter(|duty| !duty.delete) else {
        return refuse(Code::NOT_FOUND, "this host holds no replica of the item");
    };
    if duty.other_store.as_ref().is_none_or(|other| other.host != peer) {
        return refuse(Code::STORE_FOREIGN, "the item's other store is on another host");
    }
    Ok(duty)
}

async fn share<R, W>(
    host: &Host,
    peer: HostId,
    hello: &DataHello,
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
) -> Result<(), KeyError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let item = hello.item;
    check(host, peer, hello)?;
    let (Some(store), Some(vault)) = (&host.store, host.vault(item)) else {
        let what = "a session for an item's hash key was refused";
        let problem = Code::STORE_FOREIGN.because(what, "this host has no replica store");
        return Err(KeyError::Refused(Box::new(problem)));
    };
    match (word(reader).await?, answer(host, item).await?) {
        (HashKeyWord::Missing, own) => say(writer, own).await,
        (HashKeyWord::Held, HashKeyWord::Missing) => {
            say(writer, HashKeyWord::Missing).await?;
            let HashKeyWord::Key { hash_key } = word(reader).await? else {
                return Err(out_of_turn());
            };
            // The duty may have changed meanwhile.
            check(host, peer, hello)?;
            make_part(host, store, vault, item, Some(hash_key)).await?;
            say(writer, HashKeyWord::Held).await
        }
        (HashKeyWord::Held, _) => say(writer, HashKeyWord::Held).await,
        (HashKeyWord::Key { .. }, _) => Err(out_of_turn()),
    }
}
