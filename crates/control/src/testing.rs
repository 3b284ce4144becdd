//! Runs the config server's core against scripted hosts: no network, no disks, no QEMU, own time.
//!
//! The hosts converge on their assignments a little with every [`Fleet::step`], as real ones do.
//! They panic where a real host would be asked for something it must refuse.

mod actions;
mod host;
mod instance;
mod source;
pub mod steps;
mod target;

pub use actions::ScriptedActions;
pub use host::{Machine, NIC, ScriptedHost, ScriptedItem, Temper};
pub use instance::Instance;
pub use source::COPY_STEPS;

use crate::clock::{Clock, Draw, Now, PermitSigner};
use crate::{Config, Control, Durability, LocalHost, Ports, Store};
use leeward_model::{HostId, UnixMillis};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Milliseconds that pass with each [`Fleet::step`].
pub const STEP_MS: u64 = 500;
/// Id of the config server's own host.
pub const TARGET: HostId = HostId::from_u128(0x7a);

/// Is a clock that moves only when told.
#[derive(Debug)]
pub struct ManualClock {
    now: Mutex<Now>,
}

impl Default for ManualClock {
    fn default() -> Self {
        let now = Now {
            wall: UnixMillis(1_790_000_000_000),
            boottime_ms: 1_000_000,
            boot: "boot-of-the-config-server".to_owned(),
        };
        ManualClock { now: Mutex::new(now) }
    }
}

impl ManualClock {
    /// Moves both clocks on.
    pub fn advance(&self, ms: u64) {
        let mut now = self.now.lock().expect("nobody panics while holding this lock");
        now.boottime_ms += ms;
        now.wall.0 += i64::try_from(ms).expect("tests do not last for ever");
    }

    /// Moves the wall clock alone, as an administrator or a broken NTP server does.
    pub fn skew_wall(&self, ms: i64) {
        self.now.lock().expect("nobody panics while holding this lock").wall.0 += ms;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        self.now.lock().expect("nobody panics while holding this lock").clone()
    }
}

/// Draws numbers that differ and are the same in every run.
#[derive(Debug, Default)]
pub struct CountingDraw(AtomicU64);

impl Draw for CountingDraw {
    fn draw(&self) -> u128 {
        let count = u128::from(self.0.fetch_add(1, Ordering::Relaxed) + 1);
        // An odd factor spreads the count over all bits; products of different counts differ.
        count.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
    }
}

/// Signs with a length. Only tells whether a permit was signed at all.
#[derive(Debug, Default)]
pub struct LengthSigner;

impl PermitSigner for LengthSigner {
    fn sign(&self, bytes: &[u8]) -> String {
        format!("{:0128x}", bytes.len())
    }
    fn public_key(&self) -> String {
        format!("{:064x}", 1)
    }
}

/// Is the settings that [`Fleet`] uses.
pub fn config() -> Config {
    Config {
        recovery_site: Config::RECOVERY_SITE.to_owned(),
        local_host: LocalHost {
            id: TARGET,
            name: "recovery-host".to_owned(),
            data_address: "127.0.0.1:4300".to_owned(),
        },
    }
}

/// Is a config server and its scripted hosts.
pub struct Fleet {
    /// The config server.
    pub control: Control,
    /// Its time.
    pub clock: Arc<ManualClock>,
    /// Its randomness, which the hosts share.
    pub draw: Arc<CountingDraw>,
    /// What plans do outside.
    pub actions: Arc<ScriptedActions>,
    /// The hosts; the first one is the config server's own.
    pub hosts: Vec<ScriptedHost>,
}

impl Fleet {
    /// A config server on the database `path`, with its own host.
    pub async fn new(path: &Path) -> Fleet {
        let (clock, draw) = (Arc::new(ManualClock::default()), Arc::new(CountingDraw::default()));
        let actions = Arc::new(ScriptedActions::default());
        let control = open(path, &clock, &draw, &actions).await;
        let hosts = vec![ScriptedHost::new(TARGET, "recovery-host", &[])];
        Fleet { control, clock, draw, actions, hosts }
    }

    /// The same hosts, time and randomness on the database `path`, with all sessions new.
    pub async fn fork(&self, path: &Path) -> Fleet {
        let clock = Arc::new(ManualClock { now: Mutex::new(self.clock.now()) });
        let draw = Arc::new(CountingDraw(AtomicU64::new(self.draw.0.load(Ordering::Relaxed))));
        let actions = Arc::new(self.actions.copy());
        let control = open(path, &clock, &draw, &actions).await;
        let hosts = self.hosts.iter().map(ScriptedHost::without_session).collect();
        Fleet { control, clock, draw, actions, hosts }
    }

    /// Ends the config server as a crash does and starts it again on the same database.
    pub async fn restart(&mut self, path: &Path) {
        self.control.close().await;
        for host in &mut self.hosts {
            host.session = None;
        }
        self.control = open(path, &self.clock, &self.draw, &self.actions).await;
    }

    /// Lets time pass: hosts dial, converge a little, exchange data, and report.
    pub async fn step(&mut self) {
        self.clock.advance(STEP_MS);
        for host in &mut self.hosts {
            host.connect(&self.control).await;
            host.converge(&*self.draw, &self.clock.now());
        }
        self.exchange();
        for host in &mut self.hosts {
            host.answer();
            host.report(&self.control, &self.clock.now()).await;
        }
    }

    /// A step, then a turn of the config server.
    pub async fn turn(&mut self) {
        self.step().await;
        self.control.tick().await.expect("the database works");
    }

    /// Takes turns until `done` says so of the fleet.
    ///
    /// # Panics
    /// After `turns_max` turns.
    pub async fn until(
        &mut self,
        turns_max: usize,
        what: &str,
        done: impl AsyncFn(&Fleet) -> bool,
    ) {
        for _ in 0..turns_max {
            if done(self).await {
                return;
            }
            self.turn().await;
        }
        panic!("not within {turns_max} turns: {what}");
    }

    /// Awaits a request while the hosts answer questions.
    pub async fn during<T>(&mut self, request: impl Future<Output = T>) -> T {
        tokio::pin!(request);
        loop {
            tokio::select! {
                biased;
                value = &mut request => return value,
                () = tokio::task::yield_now() => {
                    self.hosts.iter_mut().for_each(ScriptedHost::answer);
                }
            }
        }
    }

    /// A host by id.
    ///
    /// # Panics
    /// When there is none.
    pub fn host(&mut self, id: HostId) -> &mut ScriptedHost {
        self.hosts.iter_mut().find(|host| host.id == id).expect("the test names its own hosts")
    }

    /// Points flow from sources to the replicas that take them.
    fn exchange(&mut self) {
        let now = self.clock.now();
        for index in 0..self.hosts.len() {
            for sent in self.hosts[index].sends() {
                let target = self.hosts.iter_mut().find(|host| host.id == sent.target);
                let point = target.and_then(|target| target.receive(&sent, &*self.draw, &now));
                self.hosts[index].acknowledged(&sent, point);
            }
        }
    }
}

async fn open(
    path: &Path,
    clock: &Arc<ManualClock>,
    draw: &Arc<CountingDraw>,
    actions: &Arc<ScriptedActions>,
) -> Control {
    let store = Store::open(path, Durability::ProcessEnd).await.expect("a folder of our own");
    let signer = Arc::new(LengthSigner);
    let (clock, draw, actions) = (clock.clone(), draw.clone(), actions.clone());
    let ports = Ports { clock, draw, signer, actions };
    Control::open(store, config(), ports).await.expect("a database of our own")
}
