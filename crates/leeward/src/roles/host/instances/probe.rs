//! Whether a machine shows what its probe asks for: the evidence of a test.

use super::{InstanceWork, Worker};
use leeward_fabric::MachineRef;
use leeward_model::{MachineSpec, MachineState, Problem};
use leeward_wire::message::ProbeResult;
use std::time::Duration;
use tokio::time::Instant;

/// How long a probe waits when the machine does not say: a slow boot under emulation.
const PROBE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);
/// How long a machine without a probe runs before its test counts as over.
const NO_PROBE_WAIT: Duration = Duration::from_secs(20);
/// From the probe's verdict to the picture: the display shows what the console said a little
/// later, and a picture of half of it proves less.
const PICTURE_SETTLE: Duration = Duration::from_millis(1_500);
/// How much of the console a probe reads.
const CONSOLE_BYTES: u64 = 256 << 10;
/// The longest line that is kept as evidence.
const SEEN_BYTES_MAX: usize = 4096;

impl Worker {
    /// Looks whether the machine has shown what its probe asks for.
    pub(super) async fn probe(&mut self, work: &InstanceWork) -> Result<(), Problem> {
        let Some((_, spec)) = self.store.point(self.item, work.duty.point).await? else {
            return Ok(());
        };
        let begun = *self.probing.get_or_insert_with(Instant::now);
        let machine = MachineRef::Instance(self.instance);
        let wanted = spec.probe.console_contains.as_deref().filter(|text| !text.is_empty());
        if self.verdict.is_none() {
            let tail = self.host.fabric.console_tail(&machine, CONSOLE_BYTES).await;
            let console = tail.map_err(|error| error.problem())?;
            let limit = match (spec.probe.timeout_seconds, wanted) {
                (_, None) => NO_PROBE_WAIT,
                (0, Some(_)) => PROBE_TIMEOUT_DEFAULT,
                (seconds, Some(_)) => Duration::from_secs(u64::from(seconds)),
            };
            let late = || match wanted {
                Some(_) => (false, format!("not seen within {} s", limit.as_secs())),
                None => (false, "machine.toml names no probe: look at the display".to_owned()),
            };
            let late = || (begun.elapsed() > limit).then(late);
            let verdict = judge(&spec, &String::from_utf8_lossy(&console)).or_else(late);
            self.verdict = verdict.map(|verdict| (verdict, Instant::now()));
        }
        let verdict = match &self.verdict {
            Some((verdict, reached)) if reached.elapsed() >= PICTURE_SETTLE => verdict.clone(),
            _ => return Ok(()),
        };
        let started = self.kept.guest_started_at.unwrap_or_else(|| self.host.wall.now());
        let probe = match wanted {
            Some(text) => format!("the console shows “{text}”"),
            None => "none".to_owned(),
        };
        let evidence = leeward_model::Evidence {
            booted_at: started,
            took_ms: (self.host.wall.now().0 - started.0).max(0) as u64,
            probe,
            seen: verdict.1,
            picture: None,
            picture_hash: None,
            content_hash: None,
        };
        let mut result = ProbeResult { passed: verdict.0, evidence };
        if wanted.is_some() {
            // Without a probe nothing was proved, for or against the point.
            let picture = self.picture(&spec).await;
            let point = work.duty.point;
            result = self.store.verified(self.item, point, result, picture).await?;
        }
        self.kept.evidence = Some(result);
        self.save()
    }

    /// A picture of the machine's display, when it has one and can be asked.
    async fn picture(&self, spec: &MachineSpec) -> Option<Vec<u8>> {
        let machine = MachineRef::Instance(self.instance);
        if !spec.display || self.status().await != Some(MachineState::Running) {
            return None;
        }
        match self.host.fabric.machine_screenshot(&machine).await {
            Ok(picture) => Some(picture),
            Err(error) => {
                tracing::warn!(instance = %self.instance, %error, "could not take a picture");
                None
            }
        }
    }
}

/// The probe's verdict on a console, once there is one.
fn judge(spec: &MachineSpec, console: &str) -> Option<(bool, String)> {
    let wanted = spec.probe.console_contains.as_deref().filter(|text| !text.is_empty())?;
    let line = console.lines().find(|line| line.contains(wanted))?;
    let unwanted = spec.probe.console_must_not_contain.as_deref();
    let passed = unwanted.is_none_or(|text| text.is_empty() || !line.contains(text));
    let line = line.trim();
    let end = (0..=line.len().min(SEEN_BYTES_MAX)).rev().find(|at| line.is_char_boundary(*at));
    Some((passed, line[..end.unwrap_or(0)].to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use leeward_model::{Firmware, Probe};

    fn spec(contains: &str, not: &str) -> MachineSpec {
        MachineSpec {
            name: "m".into(),
            memory_mib: 64,
            cpus: 1,
            firmware: Firmware::Bios,
            disks: Vec::new(),
            nics: Vec::new(),
            display: false,
            probe: Probe {
                console_contains: Some(contains.into()),
                console_must_not_contain: Some(not.into()),
                timeout_seconds: 1,
            },
        }
    }

    #[test]
    fn a_probe_passes_only_on_the_line_it_asks_for() {
        let console = "booting\nLEDGER {\"ok\":true,\"last\":7}\n";

        assert_eq!(judge(&spec("READY", ""), console), None);
        let (passed, seen) = judge(&spec("LEDGER {", "\"ok\":false"), console).unwrap();
        assert!(passed);
        assert_eq!(seen, "LEDGER {\"ok\":true,\"last\":7}");
        let broken = console.replace("true", "false");
        assert!(!judge(&spec("LEDGER {", "\"ok\":false"), &broken).unwrap().0);
    }
}
