//! Before protection ends: the machines that were left are known to be off, or a person says that
//! it ends all the same. Nobody fences them afterwards.

use crate::plan::{RunPlan, other};
use crate::world::{POLL_MS, Step, World, pending, warning};
use leeward_durable::{Moment, Outcome, StepError};
use leeward_model::{Code, Protection, SourceState};
use serde::{Deserialize, Serialize};

/// How long hosts may take to confirm it before a person is asked.
const WAIT_MS: u64 = 15_000;
/// The reply that ends protection although nobody knows.
const GO_ON: &str = "go-on";

/// Is what was asked so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeftBehind {
    /// Whether a person has resumed the job once.
    resumed: bool,
}

impl LeftBehind {
    /// Done at once, with a warning that names the hosts that may still run the old machine.
    pub(super) fn go_on(world: &World) -> Step {
        let unsure = unsure(world)?;
        Ok(match unsure.is_empty() {
            true => Outcome::Done,
            false => not_known_off(&world.item()?.name, &unsure.join(" and ")),
        })
    }

    /// Done once every host that was left says that its machine is off. They are told to keep it
    /// off for as long as this asks.
    pub(super) fn wait(&mut self, world: &mut World, moment: &Moment) -> Step {
        let unsure = unsure(world)?;
        if unsure.is_empty() {
            return Ok(Outcome::Done);
        }
        let hosts = unsure.join(" and ");
        if moment.answered {
            let says = moment.reply.as_deref().map(str::trim) == Some(GO_ON);
            if says || self.resumed {
                return Ok(not_known_off(&world.item()?.name, &hosts));
            }
            self.resumed = true;
        } else if !self.resumed && moment.step_elapsed_ms() <= WAIT_MS {
            return pending(format!("host {hosts} to confirm that the old machine is off"));
        }
        let question = format!(
            "{}: the old machine on host {hosts} is not known to be off, and nobody would stop it \
             any more. Bring the host back: it stops the machine, and the job goes on by itself. \
             Or switch the machine off and resume the job; resume it a second time, or with the \
             comment {GO_ON}, to end protection all the same: then nothing fences the old machine \
             any more, and both may run. Cancel the job to leave protection as it is",
            Code::BOTH_MAY_BE_LIVE.code
        );
        Ok(Outcome::AskAndLook { question, poll_after_ms: POLL_MS })
    }
}

fn not_known_off(name: &str, hosts: &str) -> Outcome {
    let what = format!(
        "protection of {name} ends although its old machine on host {hosts} is not known to be off"
    );
    warning(Code::BOTH_MAY_BE_LIVE, what)
}

/// The hosts that may still run a machine that was left on them, by name.
fn unsure(world: &World) -> Result<Vec<String>, StepError> {
    let item = world.item()?;
    let left = other(item.state.active);
    let end = item.plan.end(left);
    // Replication the other way begins only once the machine that was left is known to be off.
    let turned = matches!(
        item.state.protection,
        Protection::FailedOver { .. } | Protection::Committed { .. }
    );
    let off = matches!(item.state.source, SourceState::ConfirmedOff { .. });
    let stopped = end.run == RunPlan::Unassigned && world.source_is_off();
    let mut unsure = Vec::new();
    if turned && !off && !world.is_fenced(left) && !stopped {
        unsure.push(world.host(left).name.clone());
    }
    let former = item.plan.left.iter().filter(|left| !left.off && !world.left_is_off(left.host));
    unsure.extend(former.map(|left| {
        let host = world.left.iter().find(|host| host.id == left.host);
        host.map_or_else(|| left.host.to_string(), |host| host.name.clone())
    }));
    Ok(unsure)
}
