//! Registration keys: a secret, used once, by which a host joins a fabric. Signs no certificate.

use crate::audit_log::AuditRecord;
use crate::fabrics::{FabricKind, fabric_row};
use crate::store::{self, hosts::HostRow};
use crate::{Control, ControlError, ErrorKind, error::Result};
use leeward_model::{Code, FabricId, HostId, UnixMillis, VaultId};
use std::time::Duration;

/// The first part of every key, with its version.
const PREFIX: &str = "lwk1";
/// A key that lives longer would be found in old notes.
const TTL_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Is a host's admission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The new host's id: goes into its certificate.
    pub host: HostId,
    /// The vault.
    pub vault: VaultId,
    /// The fabric that it joined.
    pub fabric: FabricId,
    /// Name of the fabric.
    pub fabric_name: String,
}

/// Is a host that asks to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// Its name; 1 to 64 bytes of letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Where it is dialled for data, `address:port`; none when it only dials others.
    pub data_address: Option<String>,
}

fn wrong_key() -> ControlError {
    let what = "the host's registration key was refused";
    ControlError::new(ErrorKind::Forbidden, Code::WRONG_KEY, what)
}

/// What is stored of a key. The secret has 256 bits, so that one pass of SHA-256 is enough.
fn hash(key: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Control {
    /// Makes a key for one host: `lwk1.FINGERPRINT.SECRET`. It is shown once and stored as a hash.
    ///
    /// `ca_fingerprint` lets the host check the server before it sends the secret: hexadecimal.
    ///
    /// # Errors
    /// BadRequest for a life of none or more than 30 days, and for the recovery site.
    pub async fn registration_key_create(
        &self,
        vault: VaultId,
        fabric: &str,
        ttl: Duration,
        ca_fingerprint: &str,
    ) -> Result<String> {
        if ttl.is_zero() || ttl > TTL_MAX {
            let what = "ttl: a registration key lives from 1 second to 30 days";
            return Err(ControlError::bad_request(what));
        }
        if ca_fingerprint.is_empty() || !ca_fingerprint.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(ControlError::bad_request("ca_fingerprint: hexadecimal is expected"));
        }
        let draw = || self.ports().draw.draw();
        let secret = format!("{:032x}{:032x}", draw(), draw());
        let key = format!("{PREFIX}.{ca_fingerprint}.{secret}");
        let ms = i64::try_from(ttl.as_millis()).expect("checked against TTL_MAX");
        let expires = UnixMillis(self.now().wall.0.saturating_add(ms));
        let mut tx = self.store().begin().await?;
        let row = fabric_row(&mut tx, vault, fabric).await?;
        if row.kind == FabricKind::Recovery {
            let what = format!("{fabric} has the config server's own host and takes no other yet");
            return Err(ControlError::bad_request(what));
        }
        store::keys::save(&mut tx, &hash(&key), row.id, expires).await?;
        store::commit(tx).await?;
        Ok(key)
    }

    /// Uses up a key and admits the host. The caller signs the certificate for the id.
    ///
    /// A host whose name is known in the fabric is admitted anew under its old id, so that a host
    /// that lost its certificate can come back.
    ///
    /// # Errors
    /// Forbidden with `WRONG_KEY` when it is wrong, used or expired; BadRequest for a name that
    /// cannot be used, and then the key is still good.
    pub async fn registration_key_redeem(
        &self,
        key: &str,
        join: JoinRequest,
    ) -> Result<Registration> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !(1..=64).contains(&join.name.len()) || !join.name.chars().all(fits) {
            let what = "name: 1 to 64 letters, digits, -, _ or . are expected";
            return Err(ControlError::bad_request(what));
        }
        let now = self.now().wall;
        self.check_in_charge()?;
        let mut tx = self.store().begin().await?;
        let fabric = store::keys::take(&mut tx, &hash(key), now).await?;
        let Some(fabric) = fabric else {
            store::commit(tx).await?;
            return Err(wrong_key());
        };
        let fabric = store::fabrics::by_id(&mut tx, fabric).await?.ok_or_else(wrong_key)?;
        let known = store::hosts::of_fabric(&mut tx, fabric.id).await?;
        let known = known.into_iter().find(|host| host.name == join.name);
        let row = HostRow {
            id: known.as_ref().map_or_else(|| self.new_id(), |host| host.id),
            boot: known.map(|host| host.boot).unwrap_or_default(),
            name: join.name,
            data_address: join.data_address,
            notes_taken: Vec::new(),
            generation: 0,
        };
        store::hosts::save(&mut tx, &row).await?;
        store::hosts::join(&mut tx, fabric.id, row.id).await?;
        let mut told = Vec::new();
        for item in store::items::of_host(&mut tx, row.id).await? {
            // Its address may be another one now, and the other end is told where to dial.
            for host in [item.plan.primary.host, item.plan.recovery.host] {
                store::hosts::bump(&mut tx, host).await?;
                told.push(host);
            }
        }
        let mut record = AuditRecord::noted(now, &row.name, "HostJoined", &fabric.name);
        record.text = format!("host {} joined with a registration key", row.id);
        store::audit_log::append(&mut tx, &record).await?;
        store::commit(tx).await?;
        self.publish(&told).await?;
        Ok(Registration {
            host: row.id,
            vault: fabric.vault,
            fabric: fabric.id,
            fabric_name: fabric.name,
        })
    }
}
