//! Takes back a failover that has finished: the target is stopped, the source runs again.

use super::way_back::{self, HasWayBack, WayBack};
use crate::world::World;
use leeward_durable::{Forward, Job, Reversible};
use serde::{Deserialize, Serialize};

/// Is the job's memory. A cancel after its first step has begun is too late: it goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CancelFailover {
    pub(crate) way_back: WayBack,
}

impl HasWayBack for CancelFailover {
    fn way_back(&mut self) -> &mut WayBack {
        &mut self.way_back
    }
}

impl Job for CancelFailover {
    type Context = World;
    const KIND: &'static str = "cancel-failover";
    const REVERSIBLE: &'static [Reversible<Self>] = &[];
    const FORWARD: &'static [Forward<Self>] = &way_back::steps::<Self>();
    const ABANDON: &'static [Forward<Self>] = &[];
}
