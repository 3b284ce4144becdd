//! An item as those see it who open one point: without its lists, so that it costs the same with
//! two points and with ten thousand. Whoever lists, audits or writes takes an [`ItemReader`].

use crate::{
    ItemReader, Pin, PointRecord, Store, StoreError, View,
    folder::{ItemFolder, LABEL},
    outline::Outline,
    pins,
    reader::{Label, point_marker},
};
use leeward_model::{ItemId, MachineSpec, PointId, UnixMillis};
use std::sync::Arc;
use uuid::Uuid;

/// See the module. As of when it was opened, or of its last [`PointReader::pin`].
pub struct PointReader {
    folder: Arc<ItemFolder>,
    known: Known,
}

enum Known {
    Outline(Box<Outline>),
    /// Where there is no outline, or it is damaged.
    Whole(Box<ItemReader>),
}

impl Known {
    fn open(folder: &Arc<ItemFolder>) -> Result<Known, StoreError> {
        match Outline::open(folder) {
            Ok(Some(outline)) => return Ok(Known::Outline(Box::new(outline))),
            Ok(None) => {}
            Err(error) => say_unusable(&error),
        }
        Ok(Known::Whole(Box::new(ItemReader::load(folder.clone())?)))
    }
}

fn say_unusable(error: &StoreError) {
    tracing::warn!(%error, "an outline is left aside: the manifests are read instead");
}

impl Store {
    /// Opens an item for reading some of its points.
    ///
    /// # Errors
    /// [`StoreError::NoItem`], [`StoreError::Key`], [`StoreError::Damaged`].
    pub fn point_read(&self, item: ItemId) -> Result<PointReader, StoreError> {
        let folder = self.folder(item)?;
        Ok(PointReader { known: Known::open(&folder)?, folder })
    }
}

impl PointReader {
    pub(crate) fn folder(&self) -> &ItemFolder {
        &self.folder
    }

    /// The item.
    pub fn item(&self) -> ItemId {
        self.folder.owner.item
    }

    /// Whether the lists were left alone so far.
    pub fn is_outlined(&self) -> bool {
        matches!(self.known, Known::Outline(_))
    }

    /// Asks the outline; the manifests if that cannot say.
    fn ask<T>(
        &mut self,
        outline: impl Fn(&Outline) -> Result<T, StoreError>,
        whole: impl Fn(&ItemReader) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if let Known::Outline(known) = &self.known {
            match outline(known) {
                Ok(answer) => return Ok(answer),
                Err(error) => say_unusable(&error),
            }
            self.known = Known::Whole(Box::new(ItemReader::load(self.folder.clone())?));
        }
        match &self.known {
            Known::Whole(reader) => whole(reader),
            Known::Outline(_) => unreachable!("it was replaced above"),
        }
    }

    /// The point that was committed last, on any timeline.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn newest_point(&mut self) -> Result<Option<PointRecord>, StoreError> {
        self.ask(Outline::newest_point, |reader| Ok(reader.newest_point().cloned()))
    }

    /// The replicated point of this id, if it is listed.
    ///
    /// # Errors
    /// As [`Self::newest_point`].
    pub fn point(&mut self, id: PointId) -> Result<Option<PointRecord>, StoreError> {
        self.ask(|outline| outline.point(id), |reader| Ok(reader.state().point(id).cloned()))
    }

    /// Number of listed points.
    pub fn points_len(&self) -> u64 {
        match &self.known {
            Known::Outline(outline) => outline.points_len(),
            Known::Whole(reader) => reader.state().points.len() as u64,
        }
    }

    /// The machine at a point.
    ///
    /// # Errors
    /// As [`Self::newest_point`].
    pub fn machine(&self, point: &PointRecord) -> Result<MachineSpec, StoreError> {
        Ok(point_marker(&self.folder, point)?.machine)
    }

    /// As [`ItemReader::label`].
    ///
    /// # Errors
    /// As [`Self::newest_point`].
    pub fn label(&self) -> Result<Option<String>, StoreError> {
        Ok(self.folder.note::<Label>(LABEL)?.map(|label| label.name))
    }

    /// Opens the disks at a point that was looked up here.
    ///
    /// # Errors
    /// As [`View::open`].
    pub fn view(&mut self, point: &PointRecord) -> Result<View, StoreError> {
        let folder = self.folder.clone();
        self.ask(
            |outline| View::open_listed(folder.clone(), outline, point),
            |reader| View::open(reader, point.position),
        )
    }

    /// As [`ItemReader::pin`].
    ///
    /// # Errors
    /// [`StoreError::NoPoint`] when it is not listed (any more); nothing stays pinned then.
    pub fn pin(
        &mut self,
        point: PointId,
        who: &str,
        why: &str,
        now: UnixMillis,
    ) -> Result<Pin, StoreError> {
        if let Known::Whole(reader) = &mut self.known {
            return reader.pin(point, who, why, now);
        }
        let listed = self.point(point)?.ok_or(StoreError::NoPoint { point })?;
        let folder = self.folder.clone();
        pins::put(&folder, (point, listed.position), (who, why), now, || {
            self.known = Known::open(&folder)?;
            self.point(point)?.map(drop).ok_or(StoreError::NoPoint { point })
        })
    }

    /// Takes a pin off; an unknown one is fine.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn unpin(&self, pin: Uuid) -> Result<(), StoreError> {
        pins::delete(&self.folder, pin)
    }

    /// Reads the lists as well, from now on.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Storage`].
    pub fn whole(&mut self) -> Result<&ItemReader, StoreError> {
        if self.is_outlined() {
            self.known = Known::Whole(Box::new(ItemReader::load(self.folder.clone())?));
        }
        match &self.known {
            Known::Whole(reader) => Ok(reader),
            Known::Outline(_) => unreachable!("it was replaced above"),
        }
    }

    /// As [`Self::whole`].
    ///
    /// # Errors
    /// As [`Self::whole`].
    pub fn into_whole(self) -> Result<ItemReader, StoreError> {
        match self.known {
            Known::Whole(reader) => Ok(*reader),
            Known::Outline(_) => ItemReader::load(self.folder),
        }
    }
}
