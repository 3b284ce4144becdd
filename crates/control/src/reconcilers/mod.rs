//! Loops over reality: time passed or something drifted. Nobody asks for them; each is idempotent.

mod half;
mod late;
mod machines;
mod replication;
mod source;
mod told;
mod window;

use crate::error::Result;
use crate::world::World;
use crate::{Control, ControlError, items, store};
use leeward_durable::StepError;
use leeward_model::ItemId;

type Reconciler = fn(&mut World) -> std::result::Result<(), StepError>;

const ALL: &[Reconciler] = &[
    replication::reconcile,
    source::reconcile,
    told::reconcile,
    late::reconcile,
    machines::reconcile,
    half::reconcile,
    window::reconcile,
];

fn run_all(world: &mut World) -> Result<()> {
    for reconcile in ALL {
        reconcile(world).map_err(|error| {
            ControlError::internal("could not follow what the hosts see", &error)
        })?;
    }
    Ok(())
}

impl Control {
    /// Brings one item in line with what its hosts see. Says whether that changed anything.
    pub(crate) async fn item_reconcile(&self, item: ItemId) -> Result<bool> {
        let mut tx = self.store().read().await?;
        let mut world = self.world(&mut tx, Some(item)).await?;
        let before = world.item.clone();
        drop(tx);
        run_all(&mut world)?;
        if world.item == before {
            return Ok(false);
        }
        let mut tx = self.store().begin().await?;
        let mut world = self.world(&mut tx, Some(item)).await?;
        let before = world.item.clone();
        run_all(&mut world)?;
        let hosts = items::record(&mut tx, before.as_ref(), &world).await?;
        store::commit(tx).await?;
        self.publish(&hosts).await?;
        Ok(true)
    }
}
