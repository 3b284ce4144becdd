//! New hash files from the target's leaf hashes, or for a target that holds nothing yet.

use super::{
    DiskFile, HashError, HashFiles, InFlight, file_bytes, file_name,
    header::{Header, HeaderState},
    record_at,
};
use crate::{
    folder::FolderFile,
    pending::{DiskSize, JOURNAL},
    record::{RECORD_BYTES, Record},
};
use leeward_model::{DiskNumber, ExtentHash, ExtentNumber, Position};
use std::{collections::BTreeMap, io, sync::Arc};

// 256 records are 72 KiB: a system call per 16 MiB of disk.
const BUFFER_RECORDS: usize = 256;

/// Consecutive records that are not written yet.
struct Run {
    disk: DiskNumber,
    first: ExtentNumber,
    bytes: Vec<u8>,
}

/// A rebuild in progress. Dropped before [`Self::finish`], it leaves the files untrusted.
pub struct Rebuild<'a> {
    files: &'a HashFiles,
    label: Position,
    disks: BTreeMap<DiskNumber, (Arc<dyn FolderFile>, u64)>,
    run: Option<Run>,
}

impl<'a> Rebuild<'a> {
    pub(super) fn start(
        files: &'a HashFiles,
        label: Position,
        disks: &[DiskSize],
    ) -> io::Result<Rebuild<'a>> {
        for disk in files.load()?.keys() {
            files.folder.remove(&file_name(*disk))?;
        }
        files.folder.remove(JOURNAL)?;
        let mut rebuild = Rebuild { files, label, disks: BTreeMap::new(), run: None };
        // Durable before any new file: an old file may never stand beside new ones.
        files.folder.sync()?;
        for (disk, size) in disks {
            let file = files.folder.create(&file_name(*disk))?;
            rebuild.disks.insert(*disk, (file, *size));
        }
        for disk in rebuild.disks.keys() {
            rebuild.write_header(*disk, HeaderState::Building)?;
        }
        files.folder.sync()?;
        Ok(rebuild)
    }

    fn write_header(&self, disk: DiskNumber, state: HeaderState) -> io::Result<()> {
        let Some((file, size)) = self.disks.get(&disk) else { return Ok(()) };
        let header = Header {
            item: self.files.item,
            disk,
            disks: self.disks.len() as u16,
            size: *size,
            label: self.label,
            state,
        };
        file.write_at(&header.to_bytes(), 0)?;
        file.sync()
    }

    /// Notes the leaf hash of an extent at the target. Fastest in ascending order. Extents beyond
    /// the disk's end and disks that were not named are ignored: the target reads zero there.
    pub fn leaf(
        &mut self,
        disk: DiskNumber,
        extent: ExtentNumber,
        leaf: ExtentHash,
    ) -> Result<(), HashError> {
        let inside = self.disks.get(&disk).is_some_and(|(_, size)| extent.offset() < *size);
        if !inside {
            return Ok(());
        }
        let record = Record::from_leaf(leaf).to_bytes();
        if let Some(run) = &mut self.run {
            let count = run.bytes.len() / RECORD_BYTES;
            let next = u64::from(run.first.0) + count as u64;
            if run.disk == disk && next == u64::from(extent.0) && count < BUFFER_RECORDS {
                run.bytes.extend_from_slice(&record);
                return Ok(());
            }
        }
        self.flush().map_err(self.files.io("write a hash file"))?;
        self.run = Some(Run { disk, first: extent, bytes: record.to_vec() });
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(run) = self.run.take() else { return Ok(()) };
        let Some((file, _)) = self.disks.get(&run.disk) else { return Ok(()) };
        file.write_at(&run.bytes, record_at(run.first))
    }

    /// Makes the new files durable and trusted.
    pub fn finish(mut self) -> Result<(), HashError> {
        self.settle().map_err(self.files.io("finish new hash files"))?;
        let mut state = self.files.lock();
        state.in_flight = InFlight::Nothing;
        state.label = Some(self.label);
        let entry = |(file, size)| DiskFile { file, size, at_target: true };
        state.disks = self.disks.into_iter().map(|(disk, kept)| (disk, entry(kept))).collect();
        Ok(())
    }

    fn settle(&mut self) -> io::Result<()> {
        self.flush()?;
        for (file, size) in self.disks.values() {
            file.set_len(file_bytes(*size))?;
            file.sync()?;
        }
        for disk in self.disks.keys() {
            self.write_header(*disk, HeaderState::Valid)?;
        }
        Ok(())
    }
}
