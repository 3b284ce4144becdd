//! A config server for the tests of the interface: an empty database in a folder that is deleted
//! when its process ends, and numbers that only count.

use crate::{Clock, Config, Control, Draw, Durability, LocalHost, Now, PermitSigner, Ports, Store};
use leeward_model::{HostId, UnixMillis};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

struct Still;

impl Clock for Still {
    fn now(&self) -> Now {
        Now { wall: UnixMillis(1_000), boottime_ms: 1_000, boot: "boot".into() }
    }
}

#[derive(Default)]
struct Counting(AtomicU64);

impl Draw for Counting {
    fn draw(&self) -> u128 {
        u128::from(self.0.fetch_add(1, Ordering::Relaxed)) + 100
    }
}

struct NoSigner;

impl PermitSigner for NoSigner {
    fn sign(&self, _bytes: &[u8]) -> String {
        "00".repeat(64)
    }
    fn public_key(&self) -> String {
        "00".repeat(32)
    }
}

/// The config server and its folder.
pub(super) async fn control() -> (Control, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.db");
    let store = Store::open(&path, Durability::ProcessEnd).await.unwrap();
    let config = Config {
        recovery_site: Config::RECOVERY_SITE.into(),
        local_host: LocalHost {
            id: HostId::from_u128(9),
            name: "kvm-b".into(),
            data_address: "127.0.0.1:4444".into(),
        },
    };
    let ports = Ports {
        clock: Arc::new(Still),
        draw: Arc::new(Counting::default()),
        signer: Arc::new(NoSigner),
    };
    (Control::open(store, config, ports).await.unwrap(), folder)
}
